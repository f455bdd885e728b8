"""A live daemon for checks that run for minutes: its process, its pages, and the verdicts passed on it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 100.0
"""Until a test gives up what takes a second or two: two cores that others keep busy may take twenty times as long.
It is less than the two minutes for which books wait where events do not explain an engine's page."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Page:
    """One /metrics page in the text format: every series as it stands there, with its value."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, float] = {}
        self.types: dict[str, str] = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ", 3)
                self.types[name] = kind
            elif line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                self.values[series] = float(value)

    def counters(self) -> dict[str, float]:
        """All series that may never decrease, histograms' too; `_created` time stamps are no counters."""
        return {series: value for series, value in self.values.items() if self._only_grows(series)}

    def _only_grows(self, series: str) -> bool:
        name = series.partition("{")[0]
        if self.types.get(name) == "counter":
            return True
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        return family != name and self.types.get(family) == "histogram"

    def total(self, name: str, **labels: str) -> float:
        """Sum over the series of this name that have these labels; no series at all is an error."""
        found = [value for series, value in self.values.items() if _matches(series, name, labels)]
        if not found:
            raise KeyError(f"{name}{labels} is not on the page")
        return sum(found)


def _matches(series: str, name: str, labels: Mapping[str, str]) -> bool:
    found, _, rest = series.partition("{")
    return found == name and labels.items() <= dict(_LABEL.findall(rest)).items()


class LiveDaemon:
    """A `jouled` process and its HTTP side on 127.0.0.1; its output goes to a log file."""

    def __init__(self, command: Sequence[str | Path], port: int, log: Path, environment: Mapping[str, str]) -> None:
        self.command = [str(word) for word in command]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.environment = {**os.environ, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and return at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )

    def get(self, path: str, timeout_seconds: float = PATIENCE_SECONDS) -> bytes:
        """The body of a 200 answer; `OSError` (of which `URLError` is one) for everything else."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_seconds) as answer:
            body: bytes = answer.read()
        return body

    def page(self, timeout_seconds: float = PATIENCE_SECONDS) -> Page:
        """The text page of /metrics."""
        return Page(self.get("/metrics", timeout_seconds).decode())

    def json(self, path: str) -> Any:
        """A JSON answer."""
        return json.loads(self.get(path))

    def receipt(self, request_id: str) -> dict[str, Any] | None:
        """The receipt of a request, `None` while the daemon knows of none."""
        try:
            found: dict[str, Any] = self.json(f"/api/v1/requests/{request_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return found

    def wait_until_ready(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until /readyz answers 200."""

        def ready() -> bool:
            self.raise_if_ended()
            try:
                self.get("/readyz")
            except OSError:
                return False
            return True

        wait_for(ready, timeout_seconds, f"{self.command} did not become ready; see {self.log}")

    def raise_if_ended(self) -> None:
        """Raise if the process is gone."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the daemon is not running; its last words:\n{self.log_tail()}")

    def log_tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL: no goodbye, no last commit."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_seconds: float = 20.0) -> int | None:
        """SIGTERM, and SIGKILL if that does not help; the exit code, `None` if it never ran."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


class Verdicts:
    """Checks with their figures, each printed as one JSON line when it is passed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def passed(self, check: str, good: bool, **figures: object) -> None:
        """Print one verdict."""
        line = json.dumps({"check": check, "verdict": "PASS" if good else "FAIL", **figures})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if not good:
            self.failed.append(check)


def wait_for(condition: Callable[[], T], timeout_seconds: float, message: str, every_seconds: float = 0.2) -> T:
    """Ask until the answer is true and return it; `TimeoutError` with the message when it never is."""
    deadline = time.monotonic() + timeout_seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(message)
        time.sleep(every_seconds)
    return answer
