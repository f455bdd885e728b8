"""One GPU: read by its best meter, asked again later where it is lost, refuses, fails or stands still."""

import logging

import msgspec
import pynvml

from jouled.api import Clock
from jouled.model.device import Device
from jouled.model.errors import SourceError
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.nvml_errors import (
    NEEDS_NEW_HANDLE,
    SOURCE_GONE,
    UNSUPPORTED,
    device_error,
    source_error,
)
from jouled_collectors.power.nvml_meters import METERS, Handle, Meter, probe
from jouled_collectors.power.nvml_status import StatusReader

RETRY_NS = nanoseconds(30)
"""A lost GPU is asked again after so long; a meter that fails for so long is changed for another."""

REPROBE_NS = nanoseconds(3600)
"""What was not supported is tried again after so long: fields vanish and return (ROCm/device-metrics-exporter#315)."""

FROZEN_NS = nanoseconds(30)
"""A counter that did not move for so long stands still: it moves about every 100 ms, as a GPU always draws watts."""

_PAUSE_NS = nanoseconds(1)
_PAUSE_FACTOR = 10
"""After a passing failure a GPU is left alone for 1 s, or 10 times as long as the call took (a time-out takes long), so
that it does not slow the others."""

_logger = logging.getLogger(__name__)


class Gpu:
    """One GPU. `device` becomes another when the GPU is read by another method; `handle` is `None` while it is lost.

    error: why there is no reading now; it is told beside those of the other GPUs, which go on.
    """

    def __init__(self, device: Device, meter: Meter, status: StatusReader, handle: Handle) -> None:
        self.device = device
        self.status = status
        self.handle: Handle | None = handle
        self.error: SourceError | None = None
        self.failure: pynvml.NVMLError | None = None
        self.meter = meter
        self._ask_at_ns = 0
        self._choose_at_ns = 0
        self._failing_since_ns: int | None = None
        self._frozen: set[int] = set()
        self._last: tuple[int, int] | None = None

    def read(self, clock: Clock) -> EnergyReading | PowerReading | None:
        """Energy or power now; `None` where it does not answer. Raises `SourceError` where the source is gone."""
        begun_ns = clock.now_ns()
        if begun_ns < self._ask_at_ns:
            return None
        try:
            reading = self._read(clock)
        except pynvml.NVMLError as error:
            self._take_failure(error, begun_ns, clock.now_ns())
            return None
        self.error = self.failure = self._failing_since_ns = None
        return reading

    def gauge(self, clock: Clock) -> PowerReading | None:
        """Power beside an energy counter, which the core holds against it; `None` where none is told."""
        if not self.meter.counts_energy or self.handle is None or self.error is not None:
            return None
        t_ns = clock.now_ns()
        for meter in (each for each in METERS if each.kind is self.device.kind and not each.counts_energy):
            try:
                if not meter.fits(self.handle):
                    continue
                reading = meter.reading(self.device.name, t_ns, meter.read(self.handle))
            except pynvml.NVMLError:
                continue  # the counter's own trouble is told by `read`
            return reading if isinstance(reading, PowerReading) else None
        return None

    def _read(self, clock: Clock) -> EnergyReading | PowerReading:
        before_ns = clock.now_ns()
        if self.handle is None or before_ns >= self._choose_at_ns:
            self._choose(before_ns)
        try:
            value = self.meter.read(self.handle)
        except pynvml.NVMLError as error:
            if error.value not in UNSUPPORTED:
                raise
            self._choose(before_ns)
            value = self.meter.read(self.handle)
        after_ns = clock.now_ns()
        if self._stands_still(after_ns, value):
            self._frozen.add(value)
            self._choose(after_ns)
            value = self.meter.read(self.handle)
        return self.meter.reading(self.device.name, (before_ns + after_ns) // 2, value)

    def _choose(self, now_ns: int) -> None:
        """Take the best meter that answers now, of the same kind: a module is no better or worse meter of its GPU."""
        # Indices move up when a GPU has fallen off the bus; the UUID stays.
        if self.handle is None:
            self.handle = (
                pynvml.nvmlDeviceGetHandleByUUID(self.device.uuid)
                if self.device.uuid
                else pynvml.nvmlDeviceGetHandleByIndex(self.device.index)
            )
        self._choose_at_ns = now_ns + REPROBE_NS
        self._last = None
        meter = probe(self.handle, self.device.kind, self._frozen)
        if meter.method != self.meter.method:
            _logger.info("%s is read by %s instead of %s", self.device.name, meter.method, self.meter.method)
            self.device = msgspec.structs.replace(self.device, method=meter.method, quality=meter.quality)
        self.meter = meter

    def _stands_still(self, now_ns: int, value: int) -> bool:
        if not self.meter.counts_energy:
            return False
        if self._last is None or self._last[1] != value:
            self._last = (now_ns, value)
        return now_ns - self._last[0] >= FROZEN_NS

    def _take_failure(self, error: pynvml.NVMLError, begun_ns: int, now_ns: int) -> None:
        if error.value in SOURCE_GONE:
            raise source_error(error) from error
        self.failure = error
        self.error = device_error(self.device.name, error)
        if error.value in NEEDS_NEW_HANDLE:
            self.handle = None
            self._ask_at_ns = now_ns + RETRY_NS
            return
        self._ask_at_ns = now_ns + max(_PAUSE_NS, _PAUSE_FACTOR * (now_ns - begun_ns))
        if self._failing_since_ns is None:
            self._failing_since_ns = begun_ns
        elif now_ns - self._failing_since_ns >= RETRY_NS:
            self._choose_at_ns = now_ns
