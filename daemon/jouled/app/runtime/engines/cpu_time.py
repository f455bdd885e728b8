"""CPU time of an engine's processes: what parts the host's energy where several engines share it."""

import psutil


def cpu_seconds(pid: int) -> float | None:
    """CPU seconds used so far by a process, those it started, and those of them that have ended.

    `None` where one of them cannot be seen: part of the sum would be a wrong share, none is an absent one. Walks all
    processes of the host, so it belongs into a thread.
    """
    total = 0.0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        for member in family:
            used = member.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    except (psutil.Error, OSError):
        return None
    return total
