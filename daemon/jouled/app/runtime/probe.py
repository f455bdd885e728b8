"""One look at a power source from a process of its own: `python -m jouled.app.runtime.probe NAME`.

Whatever the source does there (hang in a driver, crash, print), the one who asked gets an answer in time.
"""

import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
from msgspec import Struct

from jouled.api import HasParts, PowerCollector, PowerSettings, PowerSource, Reading
from jouled.app.runtime.clock import BootClock
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading

TIMEOUT_SECONDS = 10.0

WAIT_SECONDS = 6.0
NOT_YET = frozenset({"waiting", "starting"})
"""Reasons of parts of which nothing has been heard yet."""

_LOOK_SECONDS = 0.2
_KILL_SECONDS = 1.0


class Probe(Struct, frozen=True, kw_only=True):
    """What one look at a power source found.

    read_seconds: the time of one read; readings are of that read. processes: those that compute on each device. parts:
    those of its parts that do not work.
    """

    source: str
    state: SourceState
    reason: str = ""
    message: str = ""
    mend: str = ""
    devices: tuple[Device, ...] = ()
    read_seconds: float | None = None
    energies: tuple[EnergyReading, ...] = ()
    powers: tuple[PowerReading, ...] = ()
    processes: dict[str, tuple[int, ...]] = {}
    parts: tuple["Probe", ...] = ()


class _Question(Struct, frozen=True):
    collector: str
    settings: msgspec.Raw


def probe_all(
    collectors: Mapping[str, PowerCollector],
    settings: Mapping[str, PowerSettings],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Probe]:
    """Look at every source that has settings, all at once, and wait no longer than the time-out."""
    with ThreadPoolExecutor(max_workers=max(len(settings), 1)) as pool:
        return list(pool.map(lambda name: _ask(name, collectors[name], settings[name], timeout_seconds), settings))


def look(name: str, collector: PowerCollector, settings: PowerSettings) -> Probe:
    """Open the source, read it, close it; blocks for as long as the source does."""
    try:
        source = collector.open(settings, BootClock.equal_to_wall_now())
    except SourceError as error:
        return _failed(name, error)
    try:
        # The first one may only take a mark to count from; and what is told beside energy is told every ten seconds.
        before = list(source.read())
        before += _wait_for_parts(source, time.monotonic() + WAIT_SECONDS)
        begun = time.perf_counter()
        readings = source.read()
        read_seconds = time.perf_counter() - begun
    except SourceError as error:
        return _failed(name, error)
    finally:
        source.close()
    parts = source.parts if isinstance(source, HasParts) else {}
    broken = tuple(_failed(f"{name}/{part}", error) for part, error in parts.items() if error is not None)
    statuses = [reading for reading in (*before, *readings) if isinstance(reading, DeviceStatus)]
    return _found(name, tuple(source.devices), read_seconds, readings, statuses, broken)


def _wait_for_parts(source: PowerSource, until: float) -> list[Reading]:
    """A meter that tells by itself, or a BMC that is still being asked, gets some time for its first word."""
    told: list[Reading] = []
    while time.monotonic() < until and isinstance(source, HasParts):
        if not any(error is not None and error.reason in NOT_YET for error in source.parts.values()):
            break
        time.sleep(_LOOK_SECONDS)
        told += source.read()
    return told


def main() -> int:
    """Answer the question on standard input."""
    # The answer has the real standard output for itself: some vendor libraries print.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=_Question)
    module, _, attribute = question.collector.partition(":")
    collector: PowerCollector = getattr(importlib.import_module(module), attribute)()
    settings = msgspec.json.decode(question.settings, type=collector.settings_type)
    answer = look(collector.name, collector, settings)
    with os.fdopen(answer_fd, "wb") as out:
        out.write(msgspec.json.encode(answer))
    return 0


def _ask(name: str, collector: PowerCollector, settings: PowerSettings, timeout_seconds: float) -> Probe:
    kind = type(collector)
    question = _Question(f"{kind.__module__}:{kind.__qualname__}", msgspec.Raw(msgspec.json.encode(settings)))
    child = subprocess.Popen(
        [sys.executable, "-m", "jouled.app.runtime.probe", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        answer, complaint = child.communicate(msgspec.json.encode(question), timeout_seconds)
    except subprocess.TimeoutExpired:
        _abandon(child)
        return Probe(
            source=name,
            state=SourceState.DOWN,
            reason="timeout",
            message=f"it did not answer within {timeout_seconds:g} s",
            mend="Look into `dmesg` for its driver",
        )
    try:
        return msgspec.json.decode(answer, type=Probe)
    except msgspec.MsgspecError:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        return Probe(
            source=name,
            state=SourceState.DOWN,
            reason="crash",
            message=f"it ended with code {child.returncode}{': ' if last else ''}{last}",
        )


def _abandon(child: "subprocess.Popen[bytes]") -> None:
    # A process that hangs in the kernel outlives even this; it is not waited for.
    child.kill()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_KILL_SECONDS)


def _failed(name: str, error: SourceError) -> Probe:
    return Probe(source=name, state=error.state, reason=error.reason, message=error.message, mend=error.mend)


def _found(
    name: str,
    devices: tuple[Device, ...],
    read_seconds: float,
    readings: Sequence[Reading],
    statuses: Sequence[DeviceStatus],
    parts: tuple[Probe, ...],
) -> Probe:
    return Probe(
        source=name,
        state=SourceState.OK,
        devices=devices,
        read_seconds=read_seconds,
        energies=tuple(reading for reading in readings if isinstance(reading, EnergyReading)),
        powers=tuple(reading for reading in readings if isinstance(reading, PowerReading)),
        processes={status.device: status.processes for status in statuses},
        parts=parts,
    )


if __name__ == "__main__":
    sys.exit(main())
