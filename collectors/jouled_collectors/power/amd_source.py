"""The opened AMD source: its GPUs, read one after the other; a silent one is left out and asked again."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds, seconds
from jouled_collectors.power.amd import AmdSettings
from jouled_collectors.power.amd_errors import SOURCE_GONE, AmdError, frozen, gpu_lost, source_error
from jouled_collectors.power.amd_find import Gpu, devices_of, find
from jouled_collectors.power.amd_library import Library, load
from jouled_collectors.power.amd_meters import GAUGES, METERS, Meter, is_frozen, sample
from jouled_collectors.power.amd_sockets import mode
from jouled_collectors.power.amd_values import Sample, text

DEFAULT_INTERVAL_SECONDS = 0.1
LARGEST_INTERVAL_SECONDS = 5.0
COST_SHARE = 0.05
"""Each read asks the GPU's firmware: it may take this share of the interval."""

COST_PROBES = 5
SILENT_NS = nanoseconds(5)
"""A reset takes seconds, and single readings fail as BUSY or RETRY: after so long a GPU counts as silent."""

STILL_NS = nanoseconds(10)
"""A counter that does not move for so long stands: at 1 W it would have moved by 650 000 ticks."""

LOOK_NS = nanoseconds(10)
RETRY_NS = nanoseconds(30)
BETTER_NS = nanoseconds(60)

_logger = logging.getLogger(__name__)


class AmdSource:
    """The GPUs of this node.

    parts: a GPU that is or was not read since the source is open, by name, and why; the others go on.
    """

    def __init__(self, clock: Clock, library: Library, gpus: Sequence[Gpu], sysfs: Path) -> None:
        self.devices: Sequence[Device] = tuple(devices_of(gpus))
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self.parts: Mapping[str, SourceError | None] = {gpu.device.name: gpu.error for gpu in gpus if gpu.error}
        self._clock = clock
        self._library = library
        self._gpus = gpus
        self._metered = [(gpu, gpu.meter) for gpu in gpus if gpu.meter is not None]
        self._bound = sysfs / "bus" / "pci" / "drivers" / "amdgpu"
        self._addresses = _addresses(self._bound)
        self._driver = driver_version(library, gpus)
        self._look_at_ns = clock.now_ns()
        self._better_at_ns = clock.now_ns() + BETTER_NS

    def read(self) -> list[Reading]:
        """Read every GPU that answers; about every 10 s also its status.

        Raises `SourceError` when none has answered for some seconds, and where opening anew is needed.
        """
        now_ns = self._clock.now_ns()
        readings: list[Reading] = [*self.read_meters()]
        if not readings:
            self._check_that_some_answer()
        if now_ns >= self._look_at_ns:
            self._look_at_ns = now_ns + LOOK_NS
            self._look_around()
            readings.extend(
                gpu.status.read(self._library, gpu.device.name, now_ns, self._driver)
                for gpu, _ in self._metered
                if gpu.silent_since_ns is None
            )
        if now_ns >= self._better_at_ns:
            self._better_at_ns = now_ns + BETTER_NS
            self._ask_for_better()
        return readings

    def read_meters(self) -> list[EnergyReading | PowerReading]:
        """Energy or power of every GPU that answers. Raises `SourceError` where opening anew is needed."""
        return [reading for gpu, meter in self._metered if (reading := self._read_meter(gpu, meter)) is not None]

    def close(self) -> None:
        """Let go of the driver."""
        self._library.close()

    def _read_meter(self, gpu: Gpu, meter: Meter) -> EnergyReading | PowerReading | None:
        before_ns = self._clock.now_ns()
        if before_ns < gpu.ask_at_ns:
            return None
        taken = self._take(gpu, meter)
        after_ns = self._clock.now_ns()
        if taken is None:
            self._is_silent(gpu, meter, after_ns)
            return None
        if gpu.error:
            self._tell(gpu, None)
        gpu.silent_since_ns, gpu.ask_at_ns = None, 0
        if meter.counts_energy:
            self._watch(gpu, taken, after_ns)
        return meter.reading(gpu.device.name, (before_ns + after_ns) // 2, taken)

    def _take(self, gpu: Gpu, meter: Meter) -> Sample | None:
        gpu.failure = None
        try:
            return meter.take(self._library, gpu.handle)
        except AmdError as error:
            gpu.failure = error
            if error.code in SOURCE_GONE:
                raise source_error(error, running=True) from error
            return None

    def _is_silent(self, gpu: Gpu, meter: Meter, now_ns: int) -> None:
        """Leave it out; after a while look what else it says, and ask rarely."""
        if gpu.silent_since_ns is None:
            gpu.silent_since_ns = now_ns
        if now_ns - gpu.silent_since_ns < SILENT_NS:
            return
        if self._answers_by_another(gpu, meter):
            raise SourceError(
                SourceState.DOWN,
                "reading_vanished",
                f"{gpu.device.name} no longer tells {meter.method}; it is opened again with what is left",
            )
        self._tell(gpu, gpu_lost(gpu.device.name, gpu.failure))
        gpu.ask_at_ns = now_ns + RETRY_NS

    def _tell(self, gpu: Gpu, error: SourceError | None) -> None:
        gpu.error = error
        self.parts = {**self.parts, gpu.device.name: error}

    def _answers_by_another(self, gpu: Gpu, meter: Meter) -> bool:
        return any(self._ask(other, gpu) for other in METERS if other is not meter)

    def _ask(self, meter: Meter, gpu: Gpu) -> Sample | None:
        """What a meter says that can be believed."""
        try:
            told = sample(meter, self._library, gpu.handle)
        except AmdError as error:
            raise source_error(error, running=True) from error
        refused = gpu.refused.get(meter.method)
        if refused is None or told is None:
            return told
        # Of a GPU that was frozen at the start the counter's time stamp tells that it lives again.
        revived = gpu.meter is None and refused.stamp_ns is not None and not is_frozen(refused, told)
        return told if revived else None

    def _watch(self, gpu: Gpu, taken: Sample, now_ns: int) -> None:
        """Raises `SourceError` for a counter that stands still while its GPU is on."""
        last = gpu.last
        if last is None or taken.amount != last.amount:
            gpu.last, gpu.moved_ns = taken, now_ns
            return
        if now_ns - gpu.moved_ns < STILL_NS:
            return
        if is_frozen(last, taken):
            raise frozen(gpu.device.name)
        gpu.moved_ns = now_ns
        if any(self._ask(gauge, gpu) for gauge in GAUGES):
            raise SourceError(
                SourceState.DOWN,
                "counter_stuck",
                f"The energy counter of {gpu.device.name} stands still while the GPU draws power; it is opened again",
            )

    def _check_that_some_answer(self) -> None:
        if all(gpu.error for gpu, _ in self._metered):
            names = ", ".join(gpu.device.name for gpu, _ in self._metered)
            raise gpu_lost(names, self._metered[0][0].failure)

    def _look_around(self) -> None:
        """Raises `SourceError` for what only a new list of GPUs, and so a new process, can take in."""
        addresses = _addresses(self._bound)
        come = addresses - self._addresses
        self._addresses = addresses
        if come:
            raise _changed("gpu_appeared", f"GPU {', '.join(sorted(come))} appeared")
        for gpu in self._gpus:
            now = mode(self._library, gpu.handle)
            if now and gpu.mode and now != gpu.mode:
                raise _changed("repartitioned", f"{gpu.device.name} went from {gpu.mode} to {now}")

    def _ask_for_better(self) -> None:
        for gpu in self._gpus:
            rank = METERS.index(gpu.meter) if gpu.meter is not None else len(METERS)
            for meter in METERS[:rank]:
                if self._ask(meter, gpu):
                    raise SourceError(
                        SourceState.DOWN,
                        "reading_returned",
                        f"{gpu.device.name} tells {meter.method} now; it is opened again with it",
                    )


def open_source(clock: Clock, settings: AmdSettings) -> AmdSource:
    """Open AMD SMI and its GPUs; it is shut down again where that fails. Raises `SourceError`."""
    library = load(settings.rocm_path)
    with contextlib.ExitStack() as undo:
        try:
            library.open()
            undo.callback(library.close)
            gpus = find(library, settings)
        except AmdError as error:
            raise source_error(error) from error
        source = AmdSource(clock, library, gpus, Path(settings.sysfs_root))
        source.interval_seconds = settings.interval_seconds or choose_interval_seconds(source.read_meters, clock)
        undo.pop_all()
    return source


def driver_version(library: Library, gpus: Sequence[Gpu]) -> str:
    """The kernel driver's version, empty where it is not told."""
    told = library.ask("amdsmi_get_gpu_driver_info", gpus[0].handle)
    return text(told.get("driver_version")) if isinstance(told, dict) else ""


def choose_interval_seconds(read: Callable[[], Any], clock: Clock) -> float:
    """100 ms, or as much more as keeps the cost of reading all GPUs at its share."""
    costs_ns = []
    for _ in range(COST_PROBES):
        before_ns = clock.now_ns()
        read()
        costs_ns.append(clock.now_ns() - before_ns)
    cost_seconds = seconds(sorted(costs_ns)[COST_PROBES // 2])
    return min(LARGEST_INTERVAL_SECONDS, max(DEFAULT_INTERVAL_SECONDS, cost_seconds / COST_SHARE))


def _changed(reason: str, message: str) -> SourceError:
    return SourceError(SourceState.DOWN, reason, f"{message}; the GPUs are listed anew", fatal=True)


def _addresses(bound: Path) -> frozenset[str]:
    """PCI addresses of the devices that the driver has; none where /sys is not to be seen."""
    try:
        return frozenset(path.name for path in bound.iterdir() if ":" in path.name and path.name[:1].isalnum())
    except OSError:
        return frozenset()
