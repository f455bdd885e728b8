"""Which devices an engine computes on: its processes, held against those that the drivers tell of each device."""

from collections.abc import Callable, Collection, Iterable, Mapping

import psutil

from jouled.api import Reading
from jouled.app.runtime.engines.device_masks import devices_by_mask
from jouled.model.device import Device
from jouled.model.readings import DeviceStatus

DevicesOf = Callable[[Collection[int]], tuple[str, ...]]
"""The devices on which one of these processes computes."""


class DeviceProcesses:
    """What drivers told last of each device's processes, and what processes' environments say where drivers do not."""

    def __init__(self) -> None:
        self._by_device: dict[str, frozenset[int]] = {}
        self._devices: dict[str, Device] = {}
        self._environments: Mapping[int, tuple[Mapping[str, str], bool]] = {}

    @property
    def by_device(self) -> Mapping[str, frozenset[int]]:
        """The processes on each device."""
        return dict(self._by_device)

    def note(self, readings: Iterable[Reading]) -> None:
        """Take what is told of devices beside their energy."""
        for reading in readings:
            if type(reading) is DeviceStatus:
                self._by_device[reading.device] = frozenset(reading.processes)

    def note_devices(self, devices: Iterable[Device]) -> None:
        """Take which devices there are: masks name them by number and UUID."""
        self._devices.update((device.name, device) for device in devices)

    def note_environments(self, environments: Mapping[int, tuple[Mapping[str, str], bool]]) -> None:
        """Take the environment of servers, as far as it may be seen, and whether each is in a container."""
        self._environments = environments

    def devices_of(self, processes: Collection[int]) -> tuple[str, ...]:
        """The devices on which one of these processes computes, by name, or may: none where nobody tells."""
        there = tuple(sorted(name for name, pids in self._by_device.items() if not pids.isdisjoint(processes)))
        if there:
            return there
        for pid in processes:
            environ, in_container = self._environments.get(pid, ({}, False))
            masked = devices_by_mask(environ, tuple(self._devices.values()), in_container=in_container)
            if masked:
                return masked
        return ()


def family_of(pid: int) -> frozenset[int]:
    """A process and all that it started; empty where it is gone. Walks all processes: belongs into a thread."""
    try:
        process = psutil.Process(pid)
        return frozenset({pid, *(child.pid for child in process.children(recursive=True))})
    except (psutil.Error, OSError):
        return frozenset()
