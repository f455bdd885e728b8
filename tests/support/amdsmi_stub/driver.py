"""The child process of `tests.support.amdsmi_stub.child`: answers one JSON line for each line it is asked.

A process of its own, since the binding keeps the library that it loaded first for as long as its process lives.
"""

import sys
import time
from typing import Any

import msgspec

from jouled.model.errors import SourceError
from jouled_collectors.power import amd_meters
from jouled_collectors.power.amd import AmdCollector, AmdSettings

# The stub's counter is always up to date, and the tests open the source some two hundred times.
amd_meters.TRIAL_SECONDS = 0.05


class DriverClock:
    """Stands until it is told to move, or follows the machine's."""

    def __init__(self) -> None:
        self.standing_ns: int | None = 1_000_000_000_000

    def now_ns(self) -> int:
        return time.monotonic_ns() if self.standing_ns is None else self.standing_ns


def main() -> None:
    """Serve until standard input ends."""
    # Whatever the binding or the library prints on standard output would be read as an answer: it must print nothing.
    clock = DriverClock()
    source: Any = None
    for line in sys.stdin:
        command = msgspec.json.decode(line)
        answer: Any = None
        try:
            match command["do"]:
                case "open":
                    settings = msgspec.convert(command["settings"], AmdSettings)
                    source = AmdCollector().open(settings, clock)
                    answer = {"devices": source.devices, "interval_seconds": source.interval_seconds}
                case "read":
                    answer = source.read()
                case "parts":
                    answer = {name: error and told(error) for name, error in source.parts.items()}
                case "close":
                    source.close()
                case "clock":
                    clock.standing_ns = command["now_ns"]
                case "cost":
                    clock.standing_ns = None
                    answer = cost(source, command["reads"])
        except SourceError as error:
            answer = {"error": told(error)}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.flush()


def told(error: SourceError) -> dict[str, Any]:
    """An error as JSON takes it."""
    return {name: getattr(error, name) for name in ("state", "reason", "message", "mend", "fatal")}


def cost(source: Any, reads: int) -> dict[str, float]:
    """CPU and wall milliseconds of one read, over so many."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(reads):
        source.read()
    return {
        "cpu_ms": (time.process_time() - cpu) * 1e3 / reads,
        "wall_ms": (time.perf_counter() - wall) * 1e3 / reads,
    }


if __name__ == "__main__":
    main()
