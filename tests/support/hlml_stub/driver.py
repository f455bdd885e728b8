"""A child process with the Gaudi collector: answers one JSON line for each line it is asked."""

import sys
from typing import Any

import msgspec

from jouled.model.errors import SourceError
from jouled_collectors.power.gaudi import GaudiCollector, GaudiSettings


class StandingClock:
    """Stands until it is told to move."""

    def __init__(self) -> None:
        self.standing_ns = 1_000_000_000_000

    def now_ns(self) -> int:
        return self.standing_ns


def told(error: SourceError) -> dict[str, Any]:
    """An error as JSON takes it."""
    return {name: getattr(error, name) for name in ("state", "reason", "message", "mend", "fatal")}


def main() -> None:
    """Serve until standard input ends."""
    clock = StandingClock()
    source: Any = None
    for line in sys.stdin:
        command = msgspec.json.decode(line)
        answer: Any = None
        try:
            match command["do"]:
                case "open":
                    source = GaudiCollector().open(msgspec.convert(command["settings"], GaudiSettings), clock)
                    answer = source.devices
                case "read":
                    answer = source.read()
                case "parts":
                    answer = {name: error and told(error) for name, error in source.parts.items()}
                case "close":
                    source.close()
                case "advance":
                    clock.standing_ns += command["ns"]
        except SourceError as error:
            answer = {"error": told(error)}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
