"""How fast the daemon's own path is: finished requests a second on one core, and the core's share at given rates."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.oracle.cases import Bound
from bench.oracle.report import verdict, worst_of
from bench.recordings import items, poisson, write
from bench.replay import core_cpu_seconds, replay_seconds
from bench.rows import Row, row

REQUESTS = 100_000
RATES = (1_000.0, 10_000.0)
ROUNDS = 3
_ASKED = {
    "finished_requests_per_cpu_second": Bound(10_000.0, 50_000.0),
    "cpu_share_at_10000_requests_per_second": Bound(0.40, 0.20),
}


def rows() -> Iterator[Row]:
    """Parsed event to final receipt, JSON excluded; then `jouled replay` of the same, JSON included."""
    for rate in RATES:
        recorded = items(poisson(REQUESTS, rate))
        seconds = REQUESTS / rate
        about: dict[str, object] = {"case": "speed", "requests": REQUESTS, "load": f"{rate:.0f} requests/s"}
        spent = [core_cpu_seconds(recorded, REQUESTS) for _ in range(ROUNDS)]
        yield _judged("finished_requests_per_cpu_second", [REQUESTS / cpu for cpu in spent], "1/s", about)
        yield _judged(f"cpu_share_at_{rate:.0f}_requests_per_second", [cpu / seconds for cpu in spent], "cores", about)
        with tempfile.TemporaryDirectory(prefix="jouled-bench-") as folder:
            recording, receipts = Path(folder, "recording.jsonl"), Path(folder, "receipts.jsonl")
            write(recording, recorded)
            cpu, _, _ = replay_seconds(recording, receipts, REQUESTS)
        about["includes"] = "start of the process, reading and decoding the file, writing receipts"
        yield row("replayed_requests_per_cpu_second", [REQUESTS / cpu], "1/s", **about)
        yield row(f"replay_cpu_share_at_{rate:.0f}_requests_per_second", [cpu / seconds], "cores", **about)


def _judged(name: str, values: list[float], unit: str, about: dict[str, object]) -> Row:
    found = row(name, values, unit, **about)
    return {**found, **verdict(name, found["value"], worst_of(name, values), _ASKED.get(name))}
