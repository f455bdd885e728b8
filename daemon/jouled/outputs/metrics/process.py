"""What the daemon itself uses: CPU and memory of the main process and of its children, from /proc."""

import os
from pathlib import Path

from msgspec import Struct

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Positions behind the command's closing bracket in /proc/PID/stat (proc(5) numbers the fields from 1; these from 3).
_UTIME, _STIME, _FINISHED_UTIME, _FINISHED_STIME, _START, _RESIDENT = 11, 12, 13, 14, 19, 21


class ProcessUse(Struct, frozen=True):
    """Seconds and bytes used by a process; `finished_seconds` is the CPU time of its children that have ended."""

    cpu_seconds: float
    finished_seconds: float
    resident_bytes: int
    start_ticks: int


class Processes:
    """Reads the use of this process and its direct children. Linux only; values that cannot be read are absent."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._boot_seconds = _boot_seconds(proc)

    def read(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Metric name to label values to value, in the catalogue's form."""
        own = _use(self._proc / "self")
        if own is None:
            return {}
        children = [use for pid in self._children() if (use := _use(self._proc / pid)) is not None]
        values: dict[str, dict[tuple[str, ...], float]] = {
            "process_cpu_seconds_total": {
                ("daemon",): own.cpu_seconds,
                ("children",): own.finished_seconds
                + sum(child.cpu_seconds + child.finished_seconds for child in children),
            },
            "process_resident_memory_bytes": {
                ("daemon",): own.resident_bytes,
                ("children",): sum(child.resident_bytes for child in children),
            },
            "process_open_fds": {("daemon",): len(os.listdir(self._proc / "self/fd"))},  # noqa: PTH208 - names only
        }
        if self._boot_seconds is not None:
            start = self._boot_seconds + own.start_ticks / _TICKS_PER_SECOND
            values["process_start_time_seconds"] = {("daemon",): start}
        return values

    def _children(self) -> list[str]:
        pids: list[str] = []
        for task in (self._proc / "self/task").iterdir():
            try:
                pids += (task / "children").read_text(encoding="ascii").split()
            except OSError:
                continue  # the thread has ended, or the kernel was built without this file
        return pids


def _use(directory: Path) -> ProcessUse | None:
    try:
        fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessUse(
        cpu_seconds=(int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_SECOND,
        finished_seconds=(int(fields[_FINISHED_UTIME]) + int(fields[_FINISHED_STIME])) / _TICKS_PER_SECOND,
        resident_bytes=int(fields[_RESIDENT]) * _PAGE_BYTES,
        start_ticks=int(fields[_START]),
    )


def _boot_seconds(proc: Path) -> float | None:
    """Unix time of the boot, once: the start of this process must not move when the wall clock is set."""
    try:
        lines = (proc / "stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), None)
