"""Power collectors that do what a test tells them to; importable in a child process too."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from jouled.api import Clock, Delivery, PowerSettings, Reading, SinkSettings
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.points import Kind, NumberedReceipt
from jouled.model.readings import EnergyReading


class ManualClock:
    """Moves when it is told to, and by a microsecond each time it is read."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self.ns = now_ns

    def now_ns(self) -> int:
        self.ns += 1_000
        return self.ns


class InstantStop(threading.Event):
    """Waiting moves the clock instead of taking time; set after a number of waits."""

    def __init__(self, clock: ManualClock, waits: int) -> None:
        super().__init__()
        self._clock = clock
        self._left = waits
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        self._clock.ns += round(timeout * 1e9)
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


class FakeSettings(PowerSettings, kw_only=True):
    behaviour: str = "steady"
    folder: str = ""


WATTS = 200


def hardware_microjoules(t_ns: int) -> int:
    """A counter that runs on whoever looks: 200 W since some day in the past."""
    return (t_ns - 1_600_000_000_000_000_000) * WATTS // 1000


class FakeSource:
    interval_seconds = 0.1

    def __init__(self, clock: Clock, on_read: Callable[[], None] = lambda: None) -> None:
        self.devices = [Device(name="gpu0", kind=DeviceKind.GPU, source="fake", max_watts=700.0)]
        self.closed = False
        self._clock = clock
        self._on_read = on_read

    def read(self) -> list[Reading]:
        self._on_read()
        t_ns = self._clock.now_ns()
        return [EnergyReading("gpu0", t_ns, hardware_microjoules(t_ns))]

    def close(self) -> None:
        self.closed = True


class PartedSource(FakeSource):
    parts: ClassVar[Mapping[str, SourceError | None]] = {"gpu0": None}


class FakeCollector:
    """Behaves as `behaviour` says, from the first read on."""

    name: ClassVar[str] = "fake"
    isolation: ClassVar[Literal["thread", "process"]] = "process"
    settings_type: ClassVar[type[PowerSettings]] = FakeSettings

    def open(self, settings: PowerSettings, clock: Clock) -> FakeSource:
        assert isinstance(settings, FakeSettings)
        if settings.behaviour == "fatal":
            raise SourceError(SourceState.DOWN, "driver_reloaded", "the driver is another one", fatal=True)
        if settings.behaviour == "parted":
            return PartedSource(clock)
        acts: dict[str, Callable[[], None]] = {
            "steady": lambda: None,
            "crash": lambda: os._exit(7),
            "hang": lambda: time.sleep(60),
        }
        return FakeSource(clock, acts[settings.behaviour])


class PrinterSettings(SinkSettings, kw_only=True):
    path: str


class PrinterSink:
    """A sink as a third party's package brings it: a line for each receipt."""

    name: ClassVar[str] = "printer"
    settings_type: ClassVar[type[SinkSettings]] = PrinterSettings

    def open(self, settings: SinkSettings, node: str) -> "OpenPrinter":
        assert isinstance(settings, PrinterSettings)
        return OpenPrinter(Path(settings.path))


class OpenPrinter:
    most: Mapping[Kind, int] = {"receipts": 100}

    def __init__(self, path: Path) -> None:
        self._path = path

    async def receipts(self, receipts: Sequence[NumberedReceipt]) -> Delivery:
        with self._path.open("a") as file:
            file.writelines(f"{each.number} {each.receipt.id}\n" for each in receipts)
        return Delivery(len(receipts))

    async def close(self) -> None:
        pass
