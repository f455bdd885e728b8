"""What one read of an engine's page costs, for each captured page: `python -m bench pages`.

A page is read as the poller does it: every 5 s for counters and gauges, and every 15 s for the histograms that SLOs
need as well. The request itself is not in it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.rows import Row, row

from jouled.api import EngineCollector, LatencyCollector
from jouled.app.runtime.plugins import load_plugins
from jouled.model.engine import Latency

PAGES = Path(__file__).parents[1] / "tests" / "fixtures" / "engines"
ROUNDS = 7
READS = 200
LATENCIES: frozenset[Latency] = frozenset({"ttft", "tpot", "e2el"})


def rows() -> Iterator[Row]:
    """CPU time a read, one row for each page and each collector that finds something on it."""
    collectors = load_plugins().engines
    for file in sorted(PAGES.glob("*.prom")):
        body = file.read_bytes()
        for name, collector in sorted(collectors.items()):
            if _finds_something(collector, body):
                yield from _of_one(file.stem, name, collector, body)


def _of_one(page: str, name: str, collector: EngineCollector, body: bytes) -> Iterator[Row]:
    about = {"page": page, "collector": name, "page_bytes": len(body), "reads": READS}
    yield row("engine_page_read_cpu", _milliseconds(lambda: collector.page(body)), "ms", **about)
    if isinstance(collector, LatencyCollector):
        costs = _milliseconds(lambda: collector.latencies(body, LATENCIES))
        yield row("engine_page_latencies_cpu", costs, "ms", **about)


def _finds_something(collector: EngineCollector, body: bytes) -> bool:
    try:
        page = collector.page(body)
    except ValueError:
        return False
    counters = (page.prompt_tokens, page.generation_tokens, page.requests_running, page.requests_waiting)
    return any(counter is not None for counter in counters)


def _milliseconds(read: Callable[[], object]) -> list[float]:
    """CPU milliseconds a call, of some rounds."""
    costs = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(READS):
            read()
        costs.append((time.process_time() - begun) / READS * 1e3)
    return costs
