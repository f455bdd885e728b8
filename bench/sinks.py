"""What push sinks cost: through the spool to a real VictoriaMetrics, and of a daemon whose sink has little to do."""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.daemon_cost import cpu_share
from bench.rig import daemon, node, process_tree
from bench.rows import Row, row
from msgspec.structs import replace
from tests.support.live import wait_for
from tests.support.snapshots import NOW_NS, receipt, snapshot
from tests.support.tools import free_port, tool

from jouled.api import OpenSink, TakesPoints, TakesReceipts
from jouled.model.points import Kind
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.sinks.counts import SinkCounts
from jouled.outputs.sinks.influx import InfluxSettings, InfluxSink
from jouled.outputs.sinks.place import Place, Receiver
from jouled.outputs.sinks.runner import Record, Runner
from jouled.outputs.store import NO_PROGRESS, Behind, Outgoing, Store

MOMENTS, RECEIPTS, ROUNDS = 300, 20_000, 3
INTERVAL_NS = 10_000_000_000
WARM_UP_SECONDS = 10.0


def rows() -> Iterator[Row]:
    """Points and receipts a second from the spool to the database, and the CPU of a daemon with and without a sink."""
    with victoria() as url:
        results = [asyncio.run(_through_the_spool(url)) for _ in range(ROUNDS)]
        series = sum(len(family.values) for family in unpacked(1, packed(snapshot(), "0", 0)).families)
        about: dict[str, object] = {"series_of_a_moment": series, "sink": "influx v1, to VictoriaMetrics"}
        for kind, records, each in (("points", MOMENTS, series), ("receipts", RECEIPTS, 1)):
            spent = [result[kind] for result in results]
            sent = records * each
            yield row(f"{kind}_per_second_through_the_spool", [sent / wall for wall, _ in spent], "1/s", **about)
            yield row(f"{kind}_per_cpu_second_through_the_spool", [sent / cpu for _, cpu in spent], "1/s", **about)
        yield from _idle_sink(url)


async def _through_the_spool(url: str) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of this process for each stream, from the rows on disk to the last answer."""
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as folder:
        store = Store(Path(folder))
        store.subscribe([("influx", "points"), ("influx", "receipts")])
        shown = snapshot()
        moments = [
            (NOW_NS + k * INTERVAL_NS, packed(replace(shown, t_ns=NOW_NS + k * INTERVAL_NS), "0", 0))
            for k in range(MOMENTS)
        ]
        finals = [receipt(k) for k in range(RECEIPTS)]
        await store.commit(b"books", finals, NOW_NS, NO_PROGRESS, Outgoing(points=moments))
        sink = InfluxSink().open(InfluxSettings(url=url, api="v1", database="bench"), "bench")
        spent = {kind: await _carry(store, sink, kind) for kind in ("points", "receipts")}
        await sink.close()
        store.close()
    return spent


async def _carry(store: Store, sink: OpenSink, kind: Kind) -> tuple[float, float]:
    async def moments(after: int, most: int) -> Behind[Record]:
        return await store.points_after(after, most, unpacked)

    async def finals(after: int, most: int) -> Behind[Record]:
        return await store.receipts_after(after, most)

    if not (isinstance(sink, TakesPoints) and isinstance(sink, TakesReceipts)):
        raise TypeError("the sink takes one stream only")
    counts = SinkCounts()
    runner = Runner(
        "influx",
        kind,
        read=moments if kind == "points" else finals,
        send=sink.points if kind == "points" else sink.receipts,  # type: ignore[arg-type]
        most=sink.most[kind],
        timeout_seconds=30.0,
        place=Place(0, 0, 0.0),
        receiver=Receiver(),
        counts=counts,
        wall_ns=time.time_ns,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    await runner.drain()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    if counts.records[kind] != {"accepted": MOMENTS if kind == "points" else RECEIPTS}:
        raise RuntimeError(f"not all was taken: {counts.records}, {runner.trouble}")
    return spent


def _idle_sink(url: str) -> Iterator[Row]:
    """A daemon that sends its moments every 10 s and has no requests, against one without a sink, turn by turn."""
    lines = f'\n[sinks.influx]\nurl = "{url}"\napi = "v1"\ndatabase = "bench"\n'
    with node(interval_seconds=0.1) as plain, node(interval_seconds=0.1) as sending:
        sending.config.write_text(sending.config.read_text(encoding="utf-8") + lines, encoding="utf-8")
        with daemon(plain) as without, daemon(sending) as beside:
            time.sleep(WARM_UP_SECONDS)
            trees = [process_tree(running) for running in (without, beside)]
            shares = [[cpu_share(tree) for tree in trees] for _ in range(ROUNDS)]
            rss = [sum(process.memory_info().rss for process in tree) / (1 << 20) for tree in trees]
    yield row("cpu_without_a_sink", [100 * share for share, _ in shares], "% of a core")
    yield row("cpu_with_an_idle_sink", [100 * share for _, share in shares], "% of a core", interval_seconds=10)
    yield row("memory_of_an_idle_sink", [rss[1] - rss[0]], "MiB (RSS)", sink="influx v1")


@contextmanager
def victoria() -> Iterator[str]:
    """A VictoriaMetrics of its own; its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as folder:
        command = [str(tool("victoria-metrics")), f"-storageDataPath={folder}", f"-httpListenAddr=127.0.0.1:{port}"]
        command += ["-retentionPeriod=100y", "-loggerLevel=ERROR"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        try:
            wait_for(lambda: _answers(port), 20, "victoria-metrics did not start", 0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
