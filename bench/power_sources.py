"""What power sources cost: a read of each, 48 outlets of a PDU, and the daemon of a node that has everything."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
from bench.daemon_cost import MEBIBYTE, WARM_UP_SECONDS
from bench.power_read import Answer, Question
from bench.rig import JOULED, process_tree
from bench.rows import Row, row
from msgspec import Struct
from msgspec.structs import replace
from tests.support.live import LiveDaemon, wait_for
from tests.support.tools import free_port

NODE = ("nvml", "rapl", "redfish", "snmp_pdu", "mqtt_meter")
"""The sources of a full node: 8 GPUs, 4 RAPL zones, a BMC, a PDU of 48 outlets, 2 plugs."""

LONGEST_PACE_SECONDS = 1.0
"""A source that is read less often is read so often here: its threads are not idle for longer, as they would be."""

LEAST_PACE_SECONDS = {"ipmi": 2.0}
"""A BMC is asked no more often."""

MEASURED_SECONDS = 12.0
MOST_READS = 200
CHUNKS = 3

OPENINGS, READS_OF_AN_OPENING = 3, 10
QUICK_SECONDS = 0.1
"""Of such an interval a PDU's part lets no more than 0.01 s pass before it asks; of 2 s up to 0.2 s."""

RUNS, RUN_SECONDS = 3, 60.0
SHORT_RUNS, SHORT_SECONDS = 2, 20.0
FAST_NVML_SECONDS = 0.02
"""Finds the moment at which an energy counter moves, at a price."""

SCRAPE_SECONDS = 15.0
START_SECONDS = 60.0
CHILD = "jouled.app.runtime.child"


class Meters(Struct):
    """A source of the world: the table of its settings, what finds it, and how many devices it has."""

    devices: int
    settings: dict[str, Any]
    environment: dict[str, str]


class Spent(Struct):
    """What a daemon used: CPU seconds a second, and MiB, each by process."""

    cpu: dict[str, float]
    rss: dict[str, float]
    pss: float
    load: float


World = dict[str, Meters]


def rows() -> Iterator[Row]:
    """Each source alone, then the PDU, then the daemon with all of them and with all but one."""
    with world() as meters:
        for source in meters:
            yield from _source(meters[source], source)
        yield from _outlets(meters["snmp_pdu"])
        yield from _node({source: meters[source] for source in NODE})


@contextmanager
def world() -> Iterator[World]:
    """All meters, each below its real client library, until left."""
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as folder:
        command = [sys.executable, "-m", "tests.bench.power_world", folder]
        with (
            Path(folder, "log").open("wb") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
        ):
            told = process.stdout.readline() if process.stdout else b""
            if not told:
                raise RuntimeError(f"the meters did not start:\n{Path(folder, 'log').read_text(errors='replace')}")
            yield msgspec.json.decode(told, type=World)
            process.communicate(timeout=30)


def ask(meters: Meters, source: str, *, reads: int, pace_seconds: float, **settings: float) -> Answer:
    """Read this source in a process of its own, with these settings beside those of its meters."""
    question = Question(source, {**meters.settings, **settings}, reads, pace_seconds)
    done = subprocess.run(
        [sys.executable, "-m", "bench.power_read"],
        input=msgspec.json.encode(question),
        stdout=subprocess.PIPE,
        env={**os.environ, **meters.environment},
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Answer)


def _source(meters: Meters, source: str) -> Iterator[Row]:
    """CPU and wall time of a read, and the share of a core of the reads and of what works between them."""
    interval_seconds = ask(meters, source, reads=1, pace_seconds=0.0).interval_seconds
    pace_seconds = max(min(interval_seconds, LONGEST_PACE_SECONDS), LEAST_PACE_SECONDS.get(source, 0.0))
    reads = min(MOST_READS, round(MEASURED_SECONDS / pace_seconds))
    answer = ask(meters, source, reads=reads, pace_seconds=pace_seconds)
    if answer.devices != meters.devices:
        raise RuntimeError(f"{source} told of {answer.devices} devices, not of {meters.devices}")
    about = {"devices": answer.devices, "interval_seconds": answer.interval_seconds, "pace_seconds": pace_seconds}
    cpu = [1e3 * cost.cpu_seconds for cost in answer.costs]
    wall = [1e3 * cost.wall_seconds for cost in answer.costs]
    yield row(f"{source}_read_cpu", cpu, "ms", p95=p95(cpu), **about)
    yield row(f"{source}_read_wall", wall, "ms", p95=p95(wall), **about)
    shares = [100 * share(answer, chunk) for chunk in range(CHUNKS)]
    between = round(100 * statistics.fmean(cost.between for cost in answer.costs), 3)
    yield row(f"{source}_core_share", shares, "% of a core", between_reads=between, **about)


def share(answer: Answer, chunk: int) -> float:
    """CPU seconds a second at the default interval, by every third of the reads from this one on."""
    costs = answer.costs[chunk::CHUNKS]
    reads = statistics.fmean(cost.cpu_seconds for cost in costs) / answer.interval_seconds
    return reads + statistics.fmean(cost.between for cost in costs)


def p95(values: Sequence[float]) -> float:
    """The value that 95 % of these do not exceed, in four digits."""
    return float(f"{sorted(values)[round(0.95 * (len(values) - 1))]:.4g}")


def _outlets(meters: Meters) -> Iterator[Row]:
    """Seconds from the begin of a read until all outlets are there, as the daemon reads it and without the phase."""
    quick = {"interval_seconds": QUICK_SECONDS}
    for name, settings in (("snmp_48_outlets_wall_seconds", {}), ("snmp_48_outlets_asking_seconds", quick)):
        costs = [
            cost.wall_seconds
            for _ in range(OPENINGS)
            for cost in ask(meters, "snmp_pdu", reads=READS_OF_AN_OPENING, pace_seconds=0.5, **settings).costs
        ]
        yield row(name, costs, "s", p95=p95(costs), outlets=meters.devices, openings=OPENINGS)


def _node(meters: World) -> Iterator[Row]:
    full = [_run(meters, RUN_SECONDS) for _ in range(RUNS)]
    about: dict[str, object] = {"sources": list(meters), "devices": sum(each.devices for each in meters.values())}
    cpu = [100 * sum(run.cpu.values()) for run in full]
    by_process = {
        name: round(100 * statistics.median(run.cpu.get(name, 0.0) for run in full), 3) for name in full[0].cpu
    }
    loads = [run.load for run in full]
    yield row(
        "full_node_cpu", cpu, "% of a core", window_seconds=RUN_SECONDS, by_process=by_process, loads=loads, **about
    )
    rss = {name: round(value, 1) for name, value in full[-1].rss.items()}
    yield row("full_node_memory_rss", [sum(run.rss.values()) for run in full], "MiB (RSS)", by_process=rss, **about)
    yield row("full_node_memory_pss", [run.pss for run in full], "MiB (PSS)", **about)
    others = {f"without_{left_out}": _without(meters, left_out) for left_out in meters}
    others["nvml_50hz"] = {**meters, "nvml": _every(meters["nvml"], FAST_NVML_SECONDS)}
    for case, chosen in others.items():
        runs = [_run(chosen, SHORT_SECONDS) for _ in range(SHORT_RUNS)]
        used = [100 * sum(run.cpu.values()) for run in runs]
        less = round(statistics.median(cpu) - statistics.median(used), 3)
        about = {"window_seconds": SHORT_SECONDS, "less_than_full": less, "loads": [run.load for run in runs]}
        yield row(f"full_node_cpu_{case}", used, "% of a core", **about)


def _without(meters: World, left_out: str) -> World:
    return {source: each for source, each in meters.items() if source != left_out}


def _every(meters: Meters, seconds: float) -> Meters:
    return replace(meters, settings={**meters.settings, "interval_seconds": seconds})


def _run(meters: World, seconds: float) -> Spent:
    """What a fresh daemon on these meters uses in such a time, scraped every 15 s."""
    with _daemon(meters) as running, _scraped(running):
        time.sleep(WARM_UP_SECONDS)
        processes = process_tree(running)
        before, since = [_cpu_seconds(process) for process in processes], time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - since
        names = [_name(process) for process in processes]
        spent = [
            (_cpu_seconds(process) - at_first) / passed for process, at_first in zip(processes, before, strict=True)
        ]
        memory = [process.memory_full_info() for process in processes]
        running.raise_if_ended()
    rss = dict(zip(names, (each.rss / MEBIBYTE for each in memory), strict=True))
    pss = sum(each.pss for each in memory) / MEBIBYTE
    return Spent(dict(zip(names, spent, strict=True)), rss, pss, round(os.getloadavg()[0], 2))


@contextmanager
def _daemon(meters: World) -> Iterator[LiveDaemon]:
    """A daemon on these meters that shows all their devices, until left."""
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as temporary:
        folder, port = Path(temporary), free_port()
        config = folder / "config.toml"
        config.write_text(configuration(meters, port, folder / "state"), encoding="utf-8")
        environment = {name: value for each in meters.values() for name, value in each.environment.items()}
        running = LiveDaemon([JOULED, "run", "--config", config], port, folder / "daemon.log", environment)
        wanted = sum(each.devices for each in meters.values())

        def shows_all() -> bool:
            snapshot = running.json("/api/v1/snapshot")
            shown = [*snapshot["devices"], *snapshot["meters"]]
            return sum(device["last_reading_ns"] is not None for device in shown) >= wanted

        running.start()
        try:
            running.wait_until_ready()
            wait_for(shows_all, START_SECONDS, f"the daemon never showed {wanted} devices")
            yield running
        finally:
            running.stop()


def configuration(meters: World, port: int, state: Path) -> str:
    """The daemon's configuration, in TOML."""
    tables: dict[str, dict[str, Any]] = {"serve": {"listen": f"127.0.0.1:{port}"}, "state": {"directory": str(state)}}
    tables |= {f"power.{source}": each.settings for source, each in meters.items()}
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """Text, numbers and booleans are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


@contextmanager
def _scraped(running: LiveDaemon) -> Iterator[None]:
    """Its page is asked for every 15 s, until left."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(SCRAPE_SECONDS):
            running.get("/metrics")

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    spent: float = times.user + times.system
    return spent


def _name(process: psutil.Process) -> str:
    """`daemon`, or the source that a child process reads."""
    words: list[str] = process.cmdline()
    return words[-1] if CHILD in words else "daemon"
