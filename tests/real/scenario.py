"""One run beside a real engine: start all, send the load, wait for final receipts, look at the books.

Two daemons watch the engine. One is told by spans alone and passes them on; the other, which all checks look at, is
told twice: by these spans and by the plug-in in the engine.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from tests.real.engine import RealEngine, install_plugin
from tests.real.load import Ask, Sent, make_asks, send_all, send_several
from tests.support.live import LiveDaemon, Page, wait_for
from tests.support.tools import free_port

ENGINE_NAME = "real"
CONCURRENCY = 20
LONG_REQUESTS = 3
SEVERAL = 3
"""Answers to the one prompt that asks for more than one."""
LONG_SECONDS = 60.0
"""How long a long request would last at the warm-up's pace. Under the load the engine is 3 to 5 times slower and a step
costs more as the context grows (231 s were seen), so that it outlives the 60 s that it must.
"""

LONG_TOKENS = (6_000, 20_000)
FINAL_TIMEOUT_SECONDS = 420.0
"""Aborted requests hold their cells to the horizon of 120 s; the long ones can stretch it to 1.2 × their length."""

CONFIGURATION = """
[serve]
listen = "127.0.0.1:{port}"

[state]
directory = "{state}"

[power.estimate]

[[engines]]
name = "{name}"
type = "vllm"
url = "{url}"
devices = ["cpu_estimate"]
"""
FORWARD = """
[requests.otlp]
forward = "{url}/v1/traces"
"""


@dataclass
class Observed:
    """What was seen: by the clients, on the engine's page, in the daemon's receipts and books.

    packages: of the engine's environment, before and after the plug-in was installed. span_receipts: of the daemon that
    was told by spans alone; span_page: its last page.
    """

    packages: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))

    warm_up: list[Sent] = field(default_factory=list)
    steady: list[Sent] = field(default_factory=list)
    burst: list[Sent] = field(default_factory=list)
    long: list[Sent] = field(default_factory=list)
    several: Sent | None = None
    several_receipts: list[dict[str, Any]] = field(default_factory=list)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    late_leavers: dict[str, dict[str, Any]] = field(default_factory=dict)
    bare_receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    span_receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    span_page: Page = field(default_factory=lambda: Page(""))
    engine_pages: dict[str, Page] = field(default_factory=dict)
    daemon_pages: dict[str, Page] = field(default_factory=dict)
    snapshot: dict[str, Any] = field(default_factory=dict)

    @property
    def sent(self) -> list[Sent]:
        """Every request of the run."""
        return self.warm_up + self.steady + self.burst + self.long

    @property
    def finished(self) -> list[Sent]:
        """Those read to their end."""
        return [sent for sent in self.sent if not sent.aborted]

    @property
    def aborted(self) -> list[Sent]:
        """Those whose client hung up in time: where it reads slowly, the engine may have ended before it left."""
        return [sent for sent in self.sent if sent.aborted and sent.response_id not in self.late_leavers]

    @property
    def reported_tokens(self) -> int:
        """Generated tokens of requests that reached their end."""
        late: int = sum(receipt["generation_tokens"] for receipt in self.late_leavers.values())
        several = self.several.generation_tokens if self.several else 0
        return late + several + sum(sent.generation_tokens for sent in self.finished)

    def engine_delta(self, metric: str, start: str = "start", end: str = "end") -> int:
        """How far a counter of the engine's own page went between two looks."""
        return round(self.engine_pages[end].total(metric) - self.engine_pages[start].total(metric))


def observe(folder: Path, wheel: Path) -> Observed:
    """Run the whole scenario; logs and state of all processes stay in `folder`. `wheel`: jouled's."""
    observed = Observed(packages=install_plugin(wheel))
    port, spans_port = free_port(), free_port()
    traces_url = f"http://127.0.0.1:{spans_port}/v1/traces"
    engine = RealEngine(ENGINE_NAME, traces_url, folder / "both" / "vllm.sock", folder / "engine.log")
    daemon = _daemon(folder / "both", port, engine.url)
    by_spans = _daemon(folder / "spans", spans_port, engine.url, FORWARD.format(url=daemon.url))
    try:
        engine.start()
        daemon.start()
        by_spans.start()
        engine.wait_until_ready()
        _wait_until_met(daemon)
        _wait_until_met(by_spans)
        _look("start", observed, engine, daemon)
        asyncio.run(_send_load(observed, engine))
        _wait_for_final_receipts(observed, daemon)
        _wait_for_books(observed, daemon)
        _look_at_spans(observed, by_spans)
        observed.snapshot = daemon.json("/api/v1/snapshot")
        _look("end", observed, engine, daemon)
    finally:
        by_spans.stop()
        daemon.stop()
        engine.stop()
    return observed


def _daemon(state: Path, port: int, engine_url: str, more: str = "") -> LiveDaemon:
    state.mkdir()
    configuration = state.with_suffix(".toml")
    text = CONFIGURATION.format(port=port, state=state, name=ENGINE_NAME, url=engine_url)
    configuration.write_text(text + more, encoding="utf-8")
    jouled = Path(sys.executable).parent / "jouled"
    return LiveDaemon([jouled, "run", "--config", configuration], port, state.with_suffix(".log"), {})


def _wait_until_met(daemon: LiveDaemon) -> None:
    """Wait until the daemon has read the engine's page: tokens from before its first look are not in its counters."""
    daemon.wait_until_ready()
    for name in ("jouled_engine_info", "jouled_engine_tokens_total"):
        wait_for(partial(_shows_engine, daemon, name), 30, f"{name} of the engine never came")


def _shows_engine(daemon: LiveDaemon, name: str) -> bool:
    try:
        daemon.page().total(name, engine=ENGINE_NAME)
    except KeyError:
        return False
    return True


def _look(when: str, observed: Observed, engine: RealEngine, daemon: LiveDaemon) -> None:
    observed.engine_pages[when] = engine.page()
    observed.daemon_pages[when] = daemon.page()


def _look_at_spans(observed: Observed, by_spans: LiveDaemon) -> None:
    """The other daemon heard of the same requests at the same time: its receipts are final, too, or nearly."""

    def all_there() -> bool:
        for response_id in observed.receipts.keys() - observed.span_receipts.keys():
            receipt = by_spans.receipt(response_id)
            if receipt is not None and not receipt["provisional"]:
                observed.span_receipts[response_id] = receipt
        return observed.receipts.keys() == observed.span_receipts.keys()

    with suppress(TimeoutError):
        wait_for(all_there, 60, "no final receipt of a span", every_seconds=2.0)
    observed.span_page = by_spans.page()


async def _send_load(observed: Observed, engine: RealEngine) -> None:
    """Warm-up; then long requests all the while, first under a steady load, then under one whose clients hang up."""
    async with _session(engine.url) as session:
        observed.warm_up = await send_all(session, make_asks("warm", 6, seed=1), LONG_REQUESTS)
        long = asyncio.create_task(send_all(session, _long_asks(observed.warm_up), LONG_REQUESTS))
        observed.steady = await send_all(session, make_asks("steady", 200, seed=2), CONCURRENCY - LONG_REQUESTS)
        ask = Ask("several", prompt_words=100, max_tokens=60, ignore_eos=True)
        observed.several = await send_several(session, ask, SEVERAL)
        observed.engine_pages["burst_start"] = await asyncio.to_thread(engine.page)
        asks = make_asks("burst", 300, seed=3, abort_every=3)
        observed.burst = await send_all(session, asks, CONCURRENCY - LONG_REQUESTS)
        observed.engine_pages["burst_end"] = await asyncio.to_thread(engine.page)
        observed.long = await long


@asynccontextmanager
async def _session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    # Every request has a connection of its own: a server may close an idle one just when it would be used again.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        yield session


def _long_asks(warm_up: Iterable[Sent]) -> list[Ask]:
    """As many tokens as take `LONG_SECONDS` at the pace of the warm-up, which has the same concurrency."""
    pace = min(sent.seconds / max(sent.generation_tokens, 1) for sent in warm_up)
    lowest, highest = LONG_TOKENS
    tokens = min(max(round(LONG_SECONDS / pace), lowest), highest)
    return [
        Ask(f"long-{number}", prompt_words=50, max_tokens=tokens, ignore_eos=True) for number in range(LONG_REQUESTS)
    ]


def _wait_for_final_receipts(observed: Observed, daemon: LiveDaemon) -> None:
    """Ask for each finished request until its receipt is final, by both of its ids."""
    missing = {sent.response_id: sent for sent in observed.finished}

    def all_final() -> bool:
        for response_id in list(missing):
            receipt = daemon.receipt(response_id)
            if receipt is not None and not receipt["provisional"]:
                observed.receipts[response_id] = receipt
                del missing[response_id]
        return not missing

    # Without all of them the rest of the run is still worth seeing: the checks name those that are missing.
    with suppress(TimeoutError):
        wait_for(all_final, FINAL_TIMEOUT_SECONDS, "no final receipt", every_seconds=5.0)
    assert observed.several is not None
    observed.several_receipts = daemon.json(f"/api/v1/requests/{observed.several.response_id}?all=1")["requests"]
    for sent in observed.finished:
        if (bare := daemon.receipt(sent.ask.request_id)) is not None:
            observed.bare_receipts[sent.ask.request_id] = bare
    for sent in observed.aborted:
        if (receipt := daemon.receipt(sent.response_id)) is not None:
            observed.late_leavers[sent.response_id] = receipt


def _wait_for_books(observed: Observed, daemon: LiveDaemon) -> None:
    """Wait until the books are past the end of the load, so that unreported work has been booked."""
    last_ns = max((receipt["last_token_ns"] for receipt in observed.receipts.values()), default=0)

    def booked() -> bool:
        page = daemon.page()
        return page.total("jouled_books_watermark_timestamp_seconds", engine=ENGINE_NAME) * 1e9 > last_ns

    wait_for(booked, 200, "the books never passed the end of the load", every_seconds=2.0)
