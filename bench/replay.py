"""How many finished requests a second the core carries: through `jouled replay`, and without files and JSON."""

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.recordings import items, poisson, trace, write
from bench.rows import Row, row

from jouled.app.runtime.recording.recording import Entry, Item
from jouled.app.runtime.recording.replay import drive
from jouled.core.pipeline import Pipeline
from jouled.model.parameters import Parameters
from jouled.model.requests import RequestEvent

REQUESTS = 100_000
RATE = 100.0
ROUNDS = 3


def rows(trace_path: Path | None = None) -> Iterator[Row]:
    """Synthetic arrivals at 100 requests/s, one GPU read at 10 Hz; or the arrivals of a trace file."""
    recorded = items(trace(trace_path) if trace_path else poisson(REQUESTS, RATE))
    requests = sum(isinstance(item, RequestEvent) for item in recorded)
    about: dict[str, object] = {
        "requests": requests,
        "load": trace_path.name if trace_path else f"{RATE:.0f} requests/s",
    }
    core = [requests / core_cpu_seconds(recorded, requests) for _ in range(ROUNDS)]
    yield row("finished_requests_per_cpu_second_core_only", core, "1/s", **about)
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as folder:
        recording, receipts = Path(folder, "recording.jsonl"), Path(folder, "receipts.jsonl")
        write(recording, recorded)
        measured = [replay_seconds(recording, receipts, requests) for _ in range(ROUNDS)]
    about["includes"] = "start of the process, reading and decoding the file, writing receipts"
    yield row("replayed_requests_per_cpu_second", [requests / cpu for cpu, _, _ in measured], "1/s", **about)
    yield row("replayed_requests_per_second", [requests / wall for _, wall, _ in measured], "1/s", **about)
    yield row("replay_peak_memory", [mebibytes for _, _, mebibytes in measured], "MiB", **about)


def core_cpu_seconds(recorded: list[Item], requests: int) -> float:
    """Parsed event to final record: feeding, closing and reading out, energy readings and cells included."""
    entries = [Entry(number, item) for number, item in enumerate(recorded)]
    finals = 0

    def take(receipts: object) -> None:
        nonlocal finals
        finals += len(receipts)  # type: ignore[arg-type]

    def refused(number: int, reason: str) -> None:
        raise RuntimeError(f"item {number} was refused: {reason}")

    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        drive(entries, Pipeline(Parameters()), take, refused)
        spent = time.process_time() - started
    finally:
        gc.enable()
    if finals != requests:
        raise RuntimeError(f"{finals} final receipts of {requests} requests")
    return spent


def replay_seconds(recording: Path, receipts: Path, requests: int) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak MiB of `jouled replay`."""
    command = [str(Path(sys.executable).parent / "jouled"), "replay", str(recording), "--receipts", str(receipts)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    with receipts.open("rb") as lines:
        written = sum(1 for _ in lines)
    if process.returncode or written != requests:
        raise RuntimeError(f"{' '.join(command)}: code {process.returncode}, {written} receipts of {requests}")
    return usage.ru_utime + usage.ru_stime, wall_seconds, usage.ru_maxrss / 1024
