"""What a real vLLM's clients feel of jouled: the gaps between tokens, with and without it.

Run as `python -m bench.vllm_itl [TRIPLES]` after scripts/setup_real_engine.sh; prints JSON lines after some ten
minutes. One vLLM on CPU and one daemon run throughout, under four clients that stream without pause. Blocks of a few
seconds alternate, three in random order make a triple: `nothing` (daemon stopped by SIGSTOP, plug-in off), `read`
(daemon running: it reads the page every 5 s), `told` (the plug-in sends as well). The plug-in is switched by a byte of
shared memory, so that all blocks meet the same processes. Ratios are of the same triple; the interval is Student's for
the mean of their logarithms. Clients, engine and daemon share the cores, and with whatever else runs: `load_average`.
"""

import asyncio
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from tests.real.engine import RealEngine
from tests.support.live import LiveDaemon
from tests.support.tools import REPOSITORY, free_port

TRIPLES = 24
BLOCK_SECONDS = 8.0
SETTLE_SECONDS = 0.5
MODEL = {
    "num_hidden_layers": 8,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
"""With the tests' own tiny model the gaps would be those of vLLM's HTTP server, whose one thread it fills."""

CLIENTS = 4
LEAST_GAPS = 200
"""In a block: of fewer there is no 99th percentile worth the name."""

TOKENS = 200
ARMS = ("nothing", "read", "told")
STUDENT_95 = 2.07
"""For 20 to 30 triples (2.09 to 2.04)."""

SWITCHED = """
import mmap, os
from jouled_collectors.requests.vllm_plugin import JouledStatLogger

with open(os.environ["BENCH_SWITCH"], "rb") as file:
    SWITCH = mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ)

class Switched(JouledStatLogger):
    def record(self, *stats, **more):
        if SWITCH[0]:
            super().record(*stats, **more)
"""
CONFIGURATION = """
[serve]
listen = "127.0.0.1:{port}"

[power.estimate]

[[engines]]
name = "real"
type = "vllm"
url = "{url}"
devices = ["cpu_estimate"]
"""

Gaps = dict[str, list[list[float]]]


class SwitchedEngine(RealEngine):
    """A vLLM whose plug-in can be switched while it runs."""

    def __init__(self, folder: Path, socket: Path) -> None:
        super().__init__("real", "", socket, folder / "engine.log")
        self._folder = folder
        self._switch = folder / "switch"
        self._switch.write_bytes(b"\0")
        (folder / "bench_switched.py").write_text(SWITCHED, encoding="utf-8")
        about = folder / "bench_switched-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-switched\nVersion: 0\n", encoding="utf-8")
        points = "[vllm.stat_logger_plugins]\nswitched = bench_switched:Switched\n"
        (about / "entry_points.txt").write_text(points, encoding="utf-8")

    def command(self) -> list[str | Path]:
        """A model of 75 million parameters without weights of its own: a step takes some 25 ms, as on a GPU."""
        return [*super().command(), "--load-format", "dummy", "--hf-overrides", json.dumps(MODEL)]

    def environment(self) -> dict[str, str]:
        """That of the tests, with this checkout's plug-in behind the switch."""
        path = f"{self._folder}:{REPOSITORY / 'collectors'}"
        more = {"PYTHONPATH": path, "VLLM_PLUGINS": "switched", "BENCH_SWITCH": str(self._switch)}
        return super().environment() | more

    def switch(self, *, on: bool) -> None:
        """Written in place: a file that is cut short under a mapping kills who reads there."""
        with self._switch.open("r+b") as file:
            file.write(b"\1" if on else b"\0")


def main() -> None:
    triples = int(sys.argv[1]) if len(sys.argv) > 1 else TRIPLES
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as name:
        folder = Path(name)
        port, state = free_port(), folder / "state"
        state.mkdir()
        engine = SwitchedEngine(folder, state / "vllm.sock")
        (folder / "config.toml").write_text(CONFIGURATION.format(port=port, url=engine.url), encoding="utf-8")
        daemon = LiveDaemon(
            [Path(sys.executable).parent / "jouled", "run", "--config", folder / "config.toml", "--state", state],
            port,
            folder / "daemon.log",
            {},
        )
        engine.start()
        daemon.start()
        try:
            engine.wait_until_ready()
            daemon.wait_until_ready()
            report(asyncio.run(measure(engine, daemon, triples)))
        finally:
            signal_to(daemon, signal.SIGCONT)
            daemon.stop()
            engine.stop()


async def measure(engine: SwitchedEngine, daemon: LiveDaemon, triples: int) -> Gaps:
    """The gaps between tokens in seconds, of each block."""
    gaps: Gaps = {arm: [] for arm in ARMS}
    dice = random.Random(1)
    async with clients(engine.url) as seen:
        await asyncio.sleep(2 * BLOCK_SECONDS)  # warm up
        for _ in range(triples):
            for arm in dice.sample(ARMS, len(ARMS)):
                signal_to(daemon, signal.SIGSTOP if arm == "nothing" else signal.SIGCONT)
                engine.switch(on=arm == "told")
                await asyncio.sleep(SETTLE_SECONDS)
                seen.clear()
                await asyncio.sleep(BLOCK_SECONDS)
                gaps[arm].append(list(seen))
                if len(seen) < LEAST_GAPS:
                    raise RuntimeError(f"{len(seen)} gaps in a block: see {engine.log}")
    return gaps


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[list[float]]:
    """Clients at work; the gaps that they see."""
    seen: list[float] = []
    # Every request has a connection of its own: a server may close an idle one just when it would be used again.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        working = [asyncio.create_task(stream(session, number, seen)) for number in range(CLIENTS)]
        try:
            yield seen
        finally:
            for task in working:
                task.cancel()
            failed = [each for each in await asyncio.gather(*working, return_exceptions=True) if is_failure(each)]
            if failed:
                raise RuntimeError(f"a client failed: {failed[0]!r}")


def is_failure(ended: object) -> bool:
    return not isinstance(ended, asyncio.CancelledError)


async def stream(session: aiohttp.ClientSession, number: int, seen: list[float]) -> None:
    body = {"model": "tiny", "prompt": f"client {number} ", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    while True:
        last = None
        async with session.post("/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        seen.append(now - last)
                    last = now


def signal_to(daemon: LiveDaemon, what: signal.Signals) -> None:
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.send_signal(what)


def report(gaps: Gaps) -> None:
    for arm, blocks in gaps.items():
        for name, of in (("itl_p99", p99), ("itl_mean", statistics.fmean)):
            values = [1_000 * of(block) for block in blocks]
            row(name, statistics.median(values), "ms", arm=arm, min=min(values), max=max(values), blocks=len(values))
    for what, with_it, without in (("read", "read", "nothing"), ("plugin", "told", "read")):
        for name, of in (("itl_p99", p99), ("itl_mean", statistics.fmean)):
            pairs = zip(gaps[with_it], gaps[without], strict=True)
            logs = [math.log(of(block) / of(other)) for block, other in pairs]
            middle = statistics.fmean(logs)
            half = STUDENT_95 * statistics.stdev(logs) / math.sqrt(len(logs))
            bounds = {"ci95_low": math.exp(middle - half), "ci95_high": math.exp(middle + half)}
            row(f"{name}_ratio", math.exp(middle), "1", by=what, **bounds, pairs=len(logs))


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def row(name: str, value: float, unit: str, **about: float | str) -> None:
    rounded: Mapping[str, object] = {
        key: float(f"{each:.4g}") if isinstance(each, float) else each
        for key, each in {"value": value, **about}.items()
    }
    load = round(os.getloadavg()[0], 2)
    print(json.dumps({"name": name, **rounded, "unit": unit, "load_average": load}), flush=True)


if __name__ == "__main__":
    main()
