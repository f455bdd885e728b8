"""The opened NVML source: its GPUs, read one after the other; one that does not answer is left out and told apart."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pynvml

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds, seconds
from jouled_collectors.power.nvml_bus import Bus
from jouled_collectors.power.nvml_errors import source_error
from jouled_collectors.power.nvml_find import Found, find
from jouled_collectors.power.nvml_gpu import REPROBE_NS, RETRY_NS
from jouled_collectors.power.nvml_meters import probe
from jouled_collectors.power.nvml_mig import partitions

DEFAULT_INTERVAL_SECONDS = 0.1
"""The counter moves about every 100 ms. Asking at 50 Hz would find the moment, for a third of a node's whole budget."""

COST_PROBES = 5
STATUS_NS = nanoseconds(10)
GAUGE_NS = nanoseconds(1)
"""Power beside the counter is for a check of minutes only."""


class NvmlSource:
    """The GPUs of this node.

    parts: each GPU by name, and why it is not read; the others go on.
    """

    def __init__(self, clock: Clock, found: Found, driver: str, bus: Bus) -> None:
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self.parts: Mapping[str, SourceError | None] = {}
        self._missing = {f"gpu{index}": error for index, error in found.missing.items()}
        self._clock = clock
        self._gpus = found.gpus
        self._driver = driver
        self._bus = bus
        self._missing_at_ns = {index: clock.now_ns() + _retry_ns(error) for index, error in found.missing.items()}
        self._status_at_ns = self._look_at_ns = self._gauge_at_ns = clock.now_ns()
        self._partitions: Sequence[Device] = ()
        self.devices: Sequence[Device] = ()
        self._look_around(clock.now_ns())
        self._tell_devices()

    def read(self) -> list[Reading]:
        """Read every GPU that answers; about every 10 s also its status. Raises `SourceError` when none answers."""
        now_ns = self._clock.now_ns()
        if now_ns >= self._look_at_ns:
            self._look_around(now_ns)
        readings: list[Reading] = [*self.read_meters()]
        if now_ns >= self._gauge_at_ns:
            self._gauge_at_ns = now_ns + GAUGE_NS
            readings.extend(gauge for gpu in self._gpus if (gauge := gpu.gauge(self._clock)) is not None)
        if now_ns >= self._status_at_ns:
            self._status_at_ns = now_ns + STATUS_NS
            readings.extend(
                gpu.status.read(gpu.device.name, gpu.handle, now_ns, self._driver)
                for gpu in self._gpus
                if gpu.error is None
            )
        self._tell_devices()
        return readings

    def read_meters(self) -> list[EnergyReading | PowerReading]:
        """Energy or power of every GPU that answers. Raises `SourceError` when none does."""
        readings = [reading for gpu in self._gpus if (reading := gpu.read(self._clock)) is not None]
        self.parts = {**self._missing, **{gpu.device.name: gpu.error for gpu in self._gpus}}
        if not readings:
            failure = next(gpu.failure for gpu in self._gpus if gpu.failure is not None)
            raise source_error(failure) from failure
        return readings

    def close(self) -> None:
        """Let go of the driver."""
        shut_down()

    def _look_around(self, now_ns: int) -> None:
        """About every 30 s: which MIG instances there are, and whether a GPU was added or answers again.

        NVML lists the GPUs that were there when it was initialised, so a new one asks for opening the source again.
        """
        self._look_at_ns = now_ns + RETRY_NS
        if self._bus.has_more():
            raise SourceError(SourceState.DOWN, "gpu_added", "A GPU was added: NVML is opened again to see it")
        for index, ask_at_ns in self._missing_at_ns.items():
            if now_ns >= ask_at_ns:
                self._missing_at_ns[index] = now_ns + _retry_ns(self._missing[f"gpu{index}"])
                _raise_if_back(index)
        self._partitions = [
            partition
            for gpu in self._gpus
            if gpu.handle is not None
            for partition in partitions(gpu.device, gpu.handle)
        ]

    def _tell_devices(self) -> None:
        devices = [*(gpu.device for gpu in self._gpus), *self._partitions]
        if devices != self.devices:
            self.devices = devices


def _retry_ns(error: SourceError) -> int:
    return REPROBE_NS if error.state is SourceState.ABSENT else RETRY_NS


def _raise_if_back(index: int) -> None:
    """Asks a GPU that could not be read when the source was opened."""
    try:
        probe(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return
    raise SourceError(SourceState.DOWN, "gpu_returned", f"GPU {index}, not read until now, answers: opened again")


def open_source(
    clock: Clock,
    *,
    selected: Sequence[int | str] | None,
    interval_seconds: float | None,
    idle_watts: float | None,
    uplift_watts: float | None,
    proc_root: Path,
) -> NvmlSource:
    """Open NVML and its GPUs; NVML is shut down again where that fails. Raises `SourceError`."""
    with contextlib.ExitStack() as undo:
        try:
            pynvml.nvmlInit()
            undo.callback(shut_down)
            bus = Bus(proc_root)
            source = NvmlSource(clock, find(selected, idle_watts, uplift_watts), driver_version(), bus)
        except pynvml.NVMLError as error:
            raise source_error(error) from error
        source.interval_seconds = interval_seconds or choose_interval_seconds(source.read_meters, clock)
        undo.pop_all()
    return source


def driver_version() -> str:
    """The kernel driver's version, empty where it is not told."""
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""


def shut_down() -> None:
    """Undo one `nvmlInit`; a library that lost its driver may refuse, and has nothing left to undo."""
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def choose_interval_seconds(read: Callable[[], Any], clock: Clock) -> float:
    """100 ms, or twice the cost of very slow reads."""
    costs_ns = []
    for _ in range(COST_PROBES):
        before_ns = clock.now_ns()
        read()
        costs_ns.append(clock.now_ns() - before_ns)
    cost_seconds = seconds(sorted(costs_ns)[COST_PROBES // 2])
    return max(DEFAULT_INTERVAL_SECONDS, 2 * cost_seconds)
