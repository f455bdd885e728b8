"""The opened NVML source: its GPUs, read one after the other; a lost one is left out and asked again."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds, seconds
from jouled_collectors.power.nvml_errors import DEVICE_LOST, SOURCE_GONE, UNSUPPORTED, source_error
from jouled_collectors.power.nvml_find import Gpu, find
from jouled_collectors.power.nvml_meters import Handle, probe

FAST_INTERVAL_SECONDS = 0.02
DEFAULT_INTERVAL_SECONDS = 0.1
FAST_COST_SHARE = 0.05
"""The counter moves about every 100 ms: polling at 20 ms finds the moment, if it costs at most this share."""

COST_PROBES = 5
RETRY_NS = nanoseconds(30)
STATUS_NS = nanoseconds(10)

_logger = logging.getLogger(__name__)


class NvmlSource:
    """The GPUs of this node."""

    def __init__(self, clock: Clock, gpus: Sequence[Gpu], lost: Sequence[int], driver: str) -> None:
        self.devices: Sequence[Device] = tuple(gpu.device for gpu in gpus)
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self._clock = clock
        self._gpus = gpus
        self._lost_at_open = lost
        self._lost_retry_at_ns = clock.now_ns() + RETRY_NS
        self._driver = driver
        self._status_at_ns = clock.now_ns()
        self._failure = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    def read(self) -> list[Reading]:
        """Read every GPU that answers; about every 10 s also its status. Raises `SourceError` when none answers."""
        now_ns = self._clock.now_ns()
        self._ask_lost_again(now_ns)
        readings: list[Reading] = [*self.read_meters()]
        if now_ns >= self._status_at_ns:
            self._status_at_ns = now_ns + STATUS_NS
            readings.extend(
                gpu.status.read(gpu.device.name, gpu.handle, now_ns, self._driver)
                for gpu in self._gpus
                if gpu.handle is not None
            )
        return readings

    def read_meters(self) -> list[EnergyReading | PowerReading]:
        """Energy or power of every GPU that answers. Raises `SourceError` when none does."""
        readings = [reading for gpu in self._gpus if (reading := self._read_meter(gpu)) is not None]
        if readings:
            return readings
        raise source_error(self._failure) from self._failure

    def close(self) -> None:
        """Let go of the driver."""
        shut_down()

    def _read_meter(self, gpu: Gpu) -> EnergyReading | PowerReading | None:
        if gpu.handle is None:
            return None
        before_ns = self._clock.now_ns()
        try:
            value = gpu.meter.read(gpu.handle)
        except pynvml.NVMLError as error:
            self._take_failure(gpu, error)
            return None
        return gpu.meter.reading(gpu.device.name, (before_ns + self._clock.now_ns()) // 2, value)

    def _take_failure(self, gpu: Gpu, error: pynvml.NVMLError) -> None:
        self._failure = error
        if error.value in SOURCE_GONE:
            raise source_error(error) from error
        if error.value in UNSUPPORTED:
            raise SourceError(
                SourceState.DOWN,
                "reading_vanished",
                f"{gpu.device.name} no longer supports {gpu.meter.method}; it is opened again with what is left",
            ) from error
        if error.value in DEVICE_LOST:
            gpu.handle = None
            gpu.retry_at_ns = self._clock.now_ns() + RETRY_NS
            _logger.warning("%s is lost (%s); the other GPUs go on", gpu.device.name, error)

    def _ask_lost_again(self, now_ns: int) -> None:
        for gpu in self._gpus:
            if gpu.handle is None and now_ns >= gpu.retry_at_ns:
                gpu.retry_at_ns = now_ns + RETRY_NS
                gpu.handle = _handle_again(gpu)
        if self._lost_at_open and now_ns >= self._lost_retry_at_ns:
            self._lost_retry_at_ns = now_ns + RETRY_NS
            for index in self._lost_at_open:
                _raise_if_back(index)


def _handle_again(gpu: Gpu) -> Handle | None:
    device = gpu.device
    try:
        # Indices move up when a GPU has fallen off the bus; the UUID stays.
        handle = (
            pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
            if device.uuid
            else pynvml.nvmlDeviceGetHandleByIndex(device.index)
        )
        gpu.meter.read(handle)
    except pynvml.NVMLError:
        return None
    _logger.warning("%s answers again", device.name)
    return handle


def _raise_if_back(index: int) -> None:
    """A source's devices are fixed while it is open, so a new one asks for opening it again."""
    try:
        probe(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return
    raise SourceError(SourceState.DOWN, "gpu_returned", f"GPU {index}, lost at the start, answers again")


def open_source(
    clock: Clock,
    *,
    selected: Sequence[int | str] | None,
    interval_seconds: float | None,
    idle_watts: float | None,
    uplift_watts: float | None,
) -> NvmlSource:
    """Open NVML and its GPUs; NVML is shut down again where that fails. Raises `SourceError`."""
    with contextlib.ExitStack() as undo:
        try:
            pynvml.nvmlInit()
            undo.callback(shut_down)
            gpus, lost = find(selected, idle_watts, uplift_watts)
        except pynvml.NVMLError as error:
            raise source_error(error) from error
        source = NvmlSource(clock, gpus, lost, driver_version())
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
    """20 ms where reading all devices costs at most 5 % of it, else 100 ms, or twice the cost of very slow reads."""
    costs_ns = []
    for _ in range(COST_PROBES):
        before_ns = clock.now_ns()
        read()
        costs_ns.append(clock.now_ns() - before_ns)
    cost_seconds = seconds(sorted(costs_ns)[COST_PROBES // 2])
    if cost_seconds <= FAST_COST_SHARE * FAST_INTERVAL_SECONDS:
        return FAST_INTERVAL_SECONDS
    return max(DEFAULT_INTERVAL_SECONDS, 2 * cost_seconds)
