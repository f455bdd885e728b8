"""Processes that compute on this node's devices and belong to no engine that is known."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import psutil

from jouled.app.runtime.engines.containers import Container, container_of
from jouled.app.runtime.engines.facts import shown


class Stranger(NamedTuple):
    """A process on devices, without an engine. `title` is empty where this process may not see it."""

    pid: int
    title: str
    devices: tuple[str, ...]
    container: Container | None


def strangers(by_device: Mapping[str, Collection[int]], servers: Collection[int]) -> Iterator[Stranger]:
    """Of the processes on each device those that neither are one of these servers nor descend from one."""
    devices: dict[int, list[str]] = {}
    for device in sorted(by_device):
        for pid in by_device[device]:
            devices.setdefault(pid, []).append(device)
    for pid in sorted(devices):
        title, line = _line_of(pid)
        if line.isdisjoint(servers):
            yield Stranger(pid, title, tuple(devices[pid]), container_of(pid))


def stranger_note(stranger: Stranger, kinds: Collection[str]) -> str:
    """What the operator should know of it. kinds: names of the engines that jouled can read."""
    where = ", ".join(stranger.devices)
    place = f" in {stranger.container}" if stranger.container else ""
    who = f"process {stranger.pid} ({stranger.title or 'not visible from here'}){place} computes on {where}"
    kind = next((name for name in kinds if stranger.title.lower().startswith(name.lower())), "")
    if kind:
        devices = ", ".join(f'"{device}"' for device in stranger.devices)
        return (
            f"{who} as a worker of {kind}, and no server that started it is recognised; if there is one, put into the "
            f'configuration, with its port:\n[[engines]]\ntype = "{kind}"\nurl = "http://127.0.0.1:8000"\n'
            f"devices = [{devices}]"
        )
    return (
        f"{who} and belongs to no known engine: what it uses counts as idle of these devices, or as the work of an "
        "engine that shares them"
    )


def _line_of(pid: int) -> tuple[str, frozenset[int]]:
    """Title of a process, and its pid with those of all its parents."""
    try:
        process = psutil.Process(pid)
        argv = process.cmdline()
        # Whoever sets a title writes it over the command line, where it is longer than the name may be.
        title = shown(argv[0] if argv and "::" in argv[0] else process.name())
        return title, frozenset({pid, *(parent.pid for parent in process.parents())})
    except (psutil.Error, OSError):
        return "", frozenset({pid})
