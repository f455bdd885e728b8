"""What a scrape of the page of an 8-GPU node costs the daemon, by format and by whether the snapshot is new.

Run as `python bench/scrape.py`; prints JSON lines. The server is a process of its own, asked over loopback with one
kept connection and gzip as Prometheus does; its CPU time is that of the whole process. The snapshot is the hand-made
one of the tests: 8 GPUs, 4 engines, 3 SLOs, 8 sources. `fresh` replaces it before each scrape, `kept` never.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import psutil
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.snapshots import snapshot

from jouled.api import HttpIngest, Received
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot
from jouled.outputs.serve import Door, build_app, start
from jouled.outputs.store import ReceiptQuery

SCRAPES = 200
WARM_UP = 20
FORMATS = {"openmetrics": "application/openmetrics-text;version=1.0.0", "text": "text/plain;version=0.0.4"}


def main() -> None:
    if len(sys.argv) > 1:
        asyncio.run(serve(fresh=sys.argv[1] == "fresh"))
        return
    for snapshots in ("fresh", "kept"):
        with subprocess.Popen([sys.executable, __file__, snapshots], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/metrics"
            try:
                for name, accept in FORMATS.items():
                    asyncio.run(measure(url, accept, psutil.Process(server.pid), format=name, snapshot=snapshots))
            finally:
                server.terminate()


async def serve(*, fresh: bool) -> None:
    shown = snapshot()

    def current() -> Snapshot:
        nonlocal shown
        if fresh:
            shown = replace(shown, sequence=shown.sequence + 1)
        return shown

    async def none_found(_: ReceiptQuery) -> list[Receipt]:
        return []

    async def nothing_taken(_: HttpIngest, received: Received) -> Received:
        return received

    async def nothing_released(_: float) -> dict[str, str]:
        return {}

    async def nothing_forgotten(_: str) -> int:
        return 0

    door = Door(
        snapshot=current,
        provisional=lambda _: None,
        receipts=none_found,
        ingests=(),
        accept=nothing_taken,
        forward=None,
        release=nothing_released,
        forget=nothing_forgotten,
        extra=dict,
        health=lambda: (True, "ok"),
        ready=lambda: (True, "ok"),
        token=None,
    )
    running = await start(build_app(door), listen="127.0.0.1:0", unix_socket=None)
    print(running.port, flush=True)
    await asyncio.Event().wait()


async def measure(url: str, accept: str, server: psutil.Process, **labels: str) -> None:
    async with aiohttp.ClientSession(headers={"Accept": accept, "Accept-Encoding": "gzip"}) as session:
        page = [await scrape(session, url) for _ in range(WARM_UP)][-1][1]
        before = cpu_seconds(server)
        latencies = [(await scrape(session, url))[0] for _ in range(SCRAPES)]
        cpu_ms = 1000 * (cpu_seconds(server) - before) / SCRAPES
    series = sum(not line.startswith("#") for line in page.splitlines())
    report("scrape_cpu", cpu_ms, series=series, page_bytes=len(page), **labels)
    report("scrape_p50", 1000 * statistics.median(latencies), series=series, page_bytes=len(page), **labels)


async def scrape(session: aiohttp.ClientSession, url: str) -> tuple[float, str]:
    start_seconds = time.perf_counter()
    async with session.get(url) as answer:
        text = await answer.text()
    return time.perf_counter() - start_seconds, text


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def report(name: str, milliseconds: float, **labels: object) -> None:
    print(json.dumps({"name": name, "value": round(milliseconds, 3), "unit": "ms", **labels, "floor": 15, "goal": 6}))


if __name__ == "__main__":
    main()
