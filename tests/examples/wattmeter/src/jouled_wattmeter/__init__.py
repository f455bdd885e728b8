"""A meter of the whole node that writes `WATTS` into a file: the smallest power source that is complete."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import PowerReading

INTERVAL_SECONDS = 1.0


class WattmeterSettings(PowerSettings, kw_only=True):
    """`[power.wattmeter]`."""

    path: Annotated[str, Meta(description="The file that the meter writes.")]


class WattmeterCollector:
    """Reads the file in a thread: a file does not hang."""

    name: ClassVar[str] = "wattmeter"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = WattmeterSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Raises `SourceError` where there is no such file, or nothing to be read in it."""
        path = Path(cast("WattmeterSettings", settings).path)
        watts_in(path)
        return WattmeterSource(path, clock, settings.interval_seconds or INTERVAL_SECONDS)


class WattmeterSource:
    """The opened meter."""

    def __init__(self, path: Path, clock: Clock, interval_seconds: float) -> None:
        self.devices: Sequence[Device] = (
            Device(name="wattmeter", kind=DeviceKind.NODE, source="wattmeter", method="wattmeter_file"),
        )
        self.interval_seconds = interval_seconds
        self._path = path
        self._clock = clock

    def read(self) -> list[Reading]:
        """The power now, watts."""
        before_ns = self._clock.now_ns()
        watts = watts_in(self._path)
        return [PowerReading("wattmeter", (before_ns + self._clock.now_ns()) // 2, watts)]

    def close(self) -> None:
        """Nothing is held."""


def watts_in(path: Path) -> float:
    """The value in the file. Raises `SourceError` for none."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        mend = "Start the meter, or name its file in power.wattmeter.path"
        raise SourceError(SourceState.ABSENT, "no_file", f"{path} does not exist", mend=mend) from None
    except PermissionError:
        raise SourceError(
            SourceState.DENIED, "permission", f"{path} may not be read", mend=f"chmod a+r {path}"
        ) from None
    except OSError as error:
        raise SourceError(SourceState.DOWN, "unreadable", f"{path} cannot be read: {error}") from error
    try:
        watts = float(text)
    except ValueError:
        watts = -1.0
    if not 0.0 <= watts < float("inf"):
        raise SourceError(SourceState.DOWN, "garbage", f"{path} holds no power but {text[:40]!r}")
    return watts
