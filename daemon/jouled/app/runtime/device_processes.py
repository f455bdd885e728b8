"""Which devices an engine computes on: its processes, held against those that the drivers tell of each device."""

from collections.abc import Callable, Collection, Iterable

import psutil

from jouled.api import Reading
from jouled.model.readings import DeviceStatus

DevicesOf = Callable[[Collection[int]], tuple[str, ...]]
"""The devices on which one of these processes computes."""


class DeviceProcesses:
    """What drivers told last of each device's processes."""

    def __init__(self) -> None:
        self._by_device: dict[str, frozenset[int]] = {}

    def note(self, readings: Iterable[Reading]) -> None:
        """Take what is told of devices beside their energy."""
        for reading in readings:
            if type(reading) is DeviceStatus:
                self._by_device[reading.device] = frozenset(reading.processes)

    def devices_of(self, processes: Collection[int]) -> tuple[str, ...]:
        """The devices on which one of these processes computes, by name; none where no driver tells."""
        return tuple(sorted(name for name, there in self._by_device.items() if not there.isdisjoint(processes)))


def family_of(pid: int) -> frozenset[int]:
    """A process and all that it started; empty where it is gone. Walks all processes: belongs into a thread."""
    try:
        process = psutil.Process(pid)
        return frozenset({pid, *(child.pid for child in process.children(recursive=True))})
    except (psutil.Error, OSError):
        return frozenset()
