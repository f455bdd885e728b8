"""What the running daemon costs: CPU and memory of its whole process tree, and its start."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from bench.rig import GPUS, JOULED, RAPL_ZONES, REQUESTS_PER_SECOND, Node, daemon, node, process_tree
from bench.rows import Row, row
from tests.support.live import LiveDaemon, wait_for

from jouled.app.runtime.recording.recording import Entry, read
from jouled.model.readings import EnergyReading

WINDOW_SECONDS = 20.0
WINDOWS = 3
WARM_UP_SECONDS = 10.0
BOOKING_TIMEOUT_SECONDS = 240.0
"""Requests are booked when their cells close; before that there is less to do than in the long run."""

STARTS = 5
RECORD_SECONDS = 3
MEBIBYTE = 1 << 20


def cpu_and_memory() -> Iterator[Row]:
    """CPU at 10 Hz, at 100 Hz, at the daemon's own choice, and at 10 Hz beside two engines; memory in each case."""
    yield from _cost("10hz", interval_seconds=0.1)
    yield from _cost("10hz_engines", interval_seconds=0.1, engines=True)
    yield from _cost("100hz", interval_seconds=0.01)
    yield from _cost("default_intervals", interval_seconds=None)


def start() -> Iterator[Row]:
    """From the start of the process to its first reading of power, and to the one by which every device was read."""
    first, whole = [], []
    for _ in range(STARTS):
        with node(interval_seconds=0.1) as on:
            spawned_ns = time.time_ns()
            read_ns = _first_readings_ns(on)
        first.append((min(read_ns.values()) - spawned_ns) / 1e9)
        whole.append((max(read_ns.values()) - spawned_ns) / 1e9)
    yield row("start_to_first_sample", first, "s")
    yield row("start_to_first_sample_of_every_device", whole, "s", gpus=GPUS, rapl_zones=RAPL_ZONES)


def _first_readings_ns(on: Node) -> dict[str, int]:
    """When `jouled record`, which is the daemon with a recorder, first read each device; Unix nanoseconds."""
    out = Path(on.folder, "recording.jsonl")
    command = [str(JOULED), "record", str(out), "--seconds", str(RECORD_SECONDS), "--config", str(on.config)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, **on.environment})
    found: dict[str, int] = {}
    for line in read(out):
        if isinstance(line, Entry) and isinstance(line.item, EnergyReading):
            found.setdefault(line.item.device, line.item.t_ns)
    if len(found) != GPUS + RAPL_ZONES:
        raise RuntimeError(f"{len(found)} devices were read: {sorted(found)}")
    return found


def _cost(case: str, *, interval_seconds: float | None, engines: bool = False) -> Iterator[Row]:
    about: dict[str, object] = {"gpus": GPUS, "rapl_zones": RAPL_ZONES}
    with node(interval_seconds=interval_seconds, engines=engines) as on, daemon(on) as running:
        time.sleep(WARM_UP_SECONDS)
        if engines:
            about |= {"engines": 2, "requests_per_second": REQUESTS_PER_SECOND}
            wait_for(lambda: _booked(running) > 0, BOOKING_TIMEOUT_SECONDS, "no request was ever booked")
        processes = process_tree(running)
        booked_before = _booked(running)
        shares = [cpu_share(processes) for _ in range(WINDOWS)]
        pss = sum(process.memory_full_info().pss for process in processes) / MEBIBYTE
        rss = sum(process.memory_info().rss for process in processes) / MEBIBYTE
        about |= {"processes": len(processes), "requests_booked": _booked(running) - booked_before}
    yield row(f"cpu_{case}", [100 * share for share in shares], "% of a core", window_seconds=WINDOW_SECONDS, **about)
    yield row(f"memory_{case}", [pss], "MiB (PSS)", rss_mib=round(rss, 1), **about)


def _booked(running: LiveDaemon) -> int:
    completed: int = running.json("/api/v1/snapshot")["requests"].get("completed", 0)
    return completed


def cpu_share(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds a second of these processes over the next window."""
    before, since = _cpu_seconds(processes), time.monotonic()
    time.sleep(WINDOW_SECONDS)
    return (_cpu_seconds(processes) - before) / (time.monotonic() - since)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(spent.user + spent.system for spent in times)
