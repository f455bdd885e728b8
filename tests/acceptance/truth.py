"""What the twin knows: the energy of its devices and of every request, in microjoules."""

import json
import os
import signal
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Books:
    """The twin's sums up to one moment of its clock."""

    t_ns: int
    gpus_uj: int
    engines_uj: int
    aborted_uj: int


class Twin:
    """The twin that a demo with this state directory has started."""

    def __init__(self, state: Path) -> None:
        [record] = state.rglob("twin.json")
        said = json.loads(record.read_bytes())
        self.url: str = said["url"]
        self.pid: int = said["pid"]

    def books(self) -> Books:
        """Sums up to now."""
        return _books(self._ask("/truth?limit=1"))

    def requests(self) -> dict[str, dict[str, Any]]:
        """Every request that has ended, aborted ones included, by id."""
        found: dict[str, dict[str, Any]] = {}
        since_ns, more = 0, True
        while more:
            page = self._ask(f"/truth?since_ns={since_ns}")
            found |= page["requests"]
            since_ns, more = page["next_since_ns"], page["more"]
        return found

    def stop(self) -> None:
        """End it: it would linger for half an hour."""
        os.kill(self.pid, signal.SIGTERM)

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)


def _books(truth: dict[str, Any]) -> Books:
    devices, engines = truth["devices"].values(), truth["engines"].values()
    return Books(
        t_ns=truth["t_ns"],
        gpus_uj=sum(device["uj"] for device in devices if device["kind"] == "gpu"),
        engines_uj=sum(engine["measured_uj"] for engine in engines),
        aborted_uj=sum(engine["aborted_uj"] for engine in engines),
    )
