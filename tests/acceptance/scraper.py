"""Scrapes a daemon at a fixed pace, as Prometheus does, and keeps what the checks need of each page."""

import threading
import time
from dataclasses import dataclass, field

from tests.support.live import LiveDaemon, Page

MEASURED = 'quality="measured"'
COMPUTE = 'jouled_boundary_energy_joules_total{boundary="compute"}'


@dataclass(frozen=True)
class Drop:
    """A counter that went back, which none may."""

    series: str
    before: float
    after: float


@dataclass
class Scraped:
    """What all pages so far showed. Energies are joules."""

    pages: int = 0
    misses: int = 0
    drops: list[Drop] = field(default_factory=list)
    worst_imbalance: float = 0.0
    compute_joules: list[float] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)

    def add(self, page: Page) -> None:
        """Hold a page against all before it."""
        self.pages += 1
        for series, value in page.counters().items():
            if not series.startswith("jouled_") or series.startswith("jouled_process_"):
                continue  # what is told of the process begins anew with each process
            before = self.counters.get(series, 0.0)
            if value < before:
                self.drops.append(Drop(series, before, value))
            self.counters[series] = value
        if (compute := page.values.get(COMPUTE)) is not None:
            self.compute_joules.append(compute)
            self.worst_imbalance = max(self.worst_imbalance, abs(_owned_joules(page) - compute) / max(compute, 1e-6))

    def increase_joules(self) -> float:
        """PromQL's increase() of the compute boundary over all pages, without its extrapolation to the range's ends."""
        pairs = zip(self.compute_joules, self.compute_joules[1:], strict=False)
        return sum(after - before if after >= before else after for before, after in pairs)


def _owned_joules(page: Page) -> float:
    """Owners plus open, measured: what must equal the compute boundary."""
    owners = [v for s, v in page.values.items() if s.startswith("jouled_energy_joules_total{") and MEASURED in s]
    return sum(owners) + page.values.get(f"jouled_open_energy_joules{{{MEASURED}}}", 0.0)


class Scraper:
    """A thread that scrapes on an absolute schedule until told to stop; a daemon that is away is a miss."""

    def __init__(self, daemon: LiveDaemon, every_seconds: float) -> None:
        self.scraped = Scraped()
        self.every_seconds = every_seconds
        self._daemon = daemon
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> Scraped:
        """End, and what was seen."""
        self._stop.set()
        self._thread.join()
        return self.scraped

    def wait_for_pages(self, number: int, timeout_seconds: float) -> None:
        """Wait until so many more pages were scraped."""
        until = self.scraped.pages + number
        deadline = time.monotonic() + timeout_seconds
        while self.scraped.pages < until:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no page within {timeout_seconds} s; the daemon says:\n{self._daemon.log_tail()}")
            time.sleep(self.every_seconds / 4)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0.0)):
            try:
                self.scraped.add(self._daemon.page(timeout_seconds=5.0))
            except OSError:
                self.scraped.misses += 1
            due = max(due + self.every_seconds, time.monotonic())
