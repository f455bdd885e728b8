"""A node's raw readings as JSON lines: what `jouled record` writes and `jouled replay` reads (docs/recording.md).

Times in a file are Unix time; what is read and written here are the core's inputs in core time. The first `clock`
line ties the two; later ones tell of steps of the wall clock.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import Struct

from jouled import __version__
from jouled.app.runtime.recording.files import Damage, LineFile, RecordingError, lines
from jouled.app.runtime.recording.lines import (
    ClockLine,
    CountersLine,
    DeviceLine,
    EnergyLine,
    EngineLine,
    Header,
    ItemLine,
    PowerLine,
    RequestLine,
    RequestStartLine,
    SourceLine,
)
from jouled.app.runtime.wall_clock import WallClock
from jouled.model.device import Device
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import ClockStep, DeviceStatus, EnergyReading, PowerReading, SourceReport
from jouled.model.requests import RequestEvent, RequestStart

VERSION = 1

Item = (
    Device
    | Engine
    | EnergyReading
    | PowerReading
    | DeviceStatus
    | EngineSample
    | RequestEvent
    | RequestStart
    | SourceReport
    | ClockStep
)  # fmt: skip
"""What the core takes."""


class Entry(Struct, frozen=True, gc=False):
    """A good line: its number and what it says, in core time."""

    number: int
    item: Item


class Broken(Struct, frozen=True):
    """A line that cannot be used: a short reason for the count, a sentence for the reader."""

    number: int
    reason: str
    message: str


class Unknown(Struct, frozen=True):
    """A line of a type that this version does not know."""

    number: int
    type: str


class Heading(Struct, frozen=True):
    """The header."""

    number: int
    header: Header


Line = Entry | Broken | Unknown | Heading

_LineType = Header | ClockLine | ItemLine
_DECODER = msgspec.json.Decoder(_LineType)
_ENCODER = msgspec.json.Encoder()


class _Type(Struct):
    type: str


_TYPE_DECODER = msgspec.json.Decoder(_Type)
_TYPES = {line.__struct_config__.tag for line in get_args(_LineType)}
_LINES: Mapping[type, Any] = {
    Device: DeviceLine,
    Engine: EngineLine,
    EnergyReading: EnergyLine,
    PowerReading: PowerLine,
    EngineSample: CountersLine,
    RequestEvent: RequestLine,
    RequestStart: RequestStartLine,
    SourceReport: SourceLine,
}


def read(path: Path) -> Iterator[Line]:
    """Every line of a recording but blank ones, in order; a bad line is told and does not end the reading.

    Raises `RecordingError` if the file as a whole cannot be read.
    """
    reader = _Reader(path)
    for number, line in lines(path):
        if isinstance(line, Damage):
            yield Broken(number, line.reason, line.message)
        elif line and not line.isspace():
            yield reader.line(number, line)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._clock = WallClock()
        self._boot_offset_ns: int | None = None
        self._boot_ns = 0

    def line(self, number: int, text: bytes) -> Line:
        try:
            line = _DECODER.decode(text)
            if isinstance(line, Header):
                return Heading(number, self._supported(line))
            if isinstance(line, ClockLine):
                return Entry(number, self._clock_step(line))
            return Entry(number, line.item(self._clock))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _unknown_or_broken(number, text, error)
        except ValueError as error:
            return Broken(number, "invalid", str(error))

    def _supported(self, header: Header) -> Header:
        if header.version != VERSION:
            raise RecordingError(
                f"{self._path} is a recording of version {header.version}, and this jouled reads version {VERSION}",
                mend="Replay it with the jouled that wrote it",
            )
        return header

    def _clock_step(self, line: ClockLine) -> ClockStep:
        shift = self._clock.wall_minus_core_ns
        # The first line ties boot time to wall time. Boot time that goes back is another boot, tied anew.
        if self._boot_offset_ns is None or line.boot_ns < self._boot_ns:
            self._boot_offset_ns = line.t_ns - line.boot_ns - shift
        self._boot_ns = line.boot_ns
        core_ns = line.boot_ns + self._boot_offset_ns
        self._clock.step(core_ns, line.t_ns - core_ns)
        return ClockStep(core_ns, line.t_ns - core_ns)


def _unknown_or_broken(number: int, text: bytes, error: Exception) -> Unknown | Broken:
    # The decoder stops at the first thing it cannot use: look at the whole line before saying what is wrong with it.
    try:
        kind = _TYPE_DECODER.decode(text).type
    except msgspec.ValidationError:
        return Broken(number, "invalid", str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Broken(number, "malformed", "no JSON object")
    return Broken(number, "invalid", str(error)) if kind in _TYPES else Unknown(number, kind)


class LineEncoder:
    """Turns what the core is fed with into lines, secrets left out. `boot_offset_ns`: core time minus boot time."""

    def __init__(self, boot_offset_ns: int) -> None:
        self.boot_offset_ns = boot_offset_ns
        self._clock = WallClock()

    @property
    def wall_minus_core_ns(self) -> int:
        """Wall time less core time, after the steps told so far."""
        return self._clock.wall_minus_core_ns

    @staticmethod
    def header(node: str, started_ns: int) -> bytes:
        """The first line; `started_ns` is Unix time."""
        return _line(Header(version=VERSION, node=node, started_ns=started_ns, jouled_version=__version__))

    def line(self, item: Item) -> bytes:
        """The line of an item, with its end; none for a `DeviceStatus`, which has no line in the format."""
        if isinstance(item, ClockStep):
            self._clock.step(item.t_ns, item.wall_minus_core_ns)
            unix_ns = item.t_ns + item.wall_minus_core_ns
            return _line(ClockLine(t_ns=unix_ns, boot_ns=item.t_ns - self.boot_offset_ns))
        if isinstance(item, DeviceStatus):
            return b""
        return _line(_LINES[type(item)].of(item, self._clock))


def _line(line: Struct) -> bytes:
    return _ENCODER.encode(line) + b"\n"


class Writer:
    """Writes a recording. `boot_offset_ns`: core time minus boot time.

    The file begins with a header and the clock at `started_ns`.
    """

    def __init__(self, path: Path, *, node: str, started_ns: int, boot_offset_ns: int) -> None:
        self._file = LineFile(path)
        self._encoder = LineEncoder(boot_offset_ns)
        self._file.write(self._encoder.header(node, started_ns))
        self.write(ClockStep(started_ns, 0))

    def write(self, item: Item) -> None:
        """Add what the core was fed with, in core time."""
        self._file.write(self._encoder.line(item))

    def flush(self) -> None:
        """Hand everything so far to the system."""
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
