"""The child process of `tests.support.nvml_stub.child`: answers one JSON line for each line it is asked.

A process of its own, since the binding keeps the library that it loaded first for as long as its process lives.
"""

import sys
import time
from typing import Any

import msgspec

from jouled.model.errors import SourceError
from jouled_collectors.power.nvml import NvmlCollector, NvmlSettings


class DriverClock:
    """Stands until it is told to move, or follows the machine's."""

    def __init__(self) -> None:
        self.standing_ns: int | None = 1_000_000_000_000

    def now_ns(self) -> int:
        return time.monotonic_ns() if self.standing_ns is None else self.standing_ns


def told(error: SourceError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in ("state", "reason", "message", "mend", "fatal")}


def main() -> None:
    """Serve until standard input ends."""
    clock = DriverClock()
    source: Any = None
    for line in sys.stdin:
        command = msgspec.json.decode(line)
        answer: Any = None
        try:
            match command["do"]:
                case "open":
                    settings = msgspec.convert(command["settings"], NvmlSettings)
                    source = NvmlCollector().open(settings, clock)
                    answer = {"devices": source.devices, "interval_seconds": source.interval_seconds}
                case "read":
                    answer = source.read()
                case "devices":
                    answer = source.devices
                case "parts":
                    answer = {name: error and told(error) for name, error in source.parts.items()}
                case "close":
                    source.close()
                case "clock":
                    clock.standing_ns = command["now_ns"]
        except SourceError as error:
            answer = {"error": told(error)}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
