"""What the running daemon costs: CPU and memory of its whole process tree, and its start."""

import time
from collections.abc import Iterator, Sequence

import psutil
from bench.rig import Rig
from bench.rows import Row, row

WINDOW_SECONDS = 20.0
WINDOWS = 3
WARM_UP_SECONDS = 10.0
WARM_UP_WITH_REQUESTS_SECONDS = 30.0
"""Cells with requests close 15 s behind now at the earliest; before that there is less to do."""

STARTS = 5
MEBIBYTE = 1 << 20


def cpu_and_memory() -> Iterator[Row]:
    """CPU at 10 Hz, at 100 Hz, at the daemon's own choice, and at 10 Hz beside two engines; memory in each case."""
    yield from _measured("10hz", Rig(interval_seconds=0.1))
    yield from _measured("10hz_2_engines_50_requests_per_second", Rig(interval_seconds=0.1, engines=True), engines=True)
    yield from _measured("100hz", Rig(interval_seconds=0.01))
    yield from _measured("default_intervals", Rig(interval_seconds=None))


def start() -> Iterator[Row]:
    """From the start of the process to its first reading of power, and to the first answer that shows it."""
    readings, answers = [], []
    for _ in range(STARTS):
        with Rig(interval_seconds=0.1) as rig:
            answers.append((time.time_ns() - rig.spawned_ns) / 1e9)
            readings.append((_first_reading_ns(rig) - rig.spawned_ns) / 1e9)
    yield row("start_to_first_sample", readings, "s")
    yield row("start_to_first_snapshot_with_all_devices", answers, "s")


def _measured(case: str, rig: Rig, *, engines: bool = False) -> Iterator[Row]:
    with rig:
        time.sleep(WARM_UP_WITH_REQUESTS_SECONDS if engines else WARM_UP_SECONDS)
        processes = rig.processes()
        shares = [_cpu_share(processes) for _ in range(WINDOWS)]
        pss = sum(process.memory_full_info().pss for process in processes) / MEBIBYTE
        rss = sum(process.memory_info().rss for process in processes) / MEBIBYTE
        about = {"processes": len(processes), "gpus": 8, "rapl_zones": 4}
        requests = rig.daemon.json("/api/v1/snapshot")["requests"].get("completed", 0)
    yield row(f"cpu_{case}", [100 * share for share in shares], "% of a core", window_seconds=WINDOW_SECONDS, **about)
    yield row(f"memory_pss_{case}", [pss], "MiB", rss_mib=round(rss, 1), requests_booked=requests, **about)


def _cpu_share(processes: Sequence[psutil.Process]) -> float:
    before, since = _cpu_seconds(processes), time.monotonic()
    time.sleep(WINDOW_SECONDS)
    return (_cpu_seconds(processes) - before) / (time.monotonic() - since)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(spent.user + spent.system for spent in times)


def _first_reading_ns(rig: Rig) -> int:
    """When the first reading was taken, Unix nanoseconds: the last one less the time that readings cover so far."""
    page, snapshot = rig.daemon.page(), rig.daemon.json("/api/v1/snapshot")
    while page.total("jouled_source_covered_seconds_total", source="nvml") != (again := rig.daemon.page()).total(
        "jouled_source_covered_seconds_total", source="nvml"
    ):
        page, snapshot = again, rig.daemon.json("/api/v1/snapshot")
    gpu = next(device for device in snapshot["devices"] if device["kind"] == "gpu")
    covered = page.total("jouled_source_covered_seconds_total", source="nvml")
    first: int = gpu["last_reading_ns"] - round(covered * 1e9)
    return first
