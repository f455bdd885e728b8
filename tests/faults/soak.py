"""`python -m tests.faults.soak [--minutes 60]`: requests all the time, two sinks that come and go.

Prints one JSON line a check. A VictoriaMetrics is hung or killed for half of every two minutes, the file of the other
sink cannot be written for as long. Memory and open files are watched; in the end every request that the daemon
acknowledged is in both, once.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from tests.e2e.engine_server import engine_server
from tests.faults.conftest import ENGINE, QUICK, Victoria, configuration, influx
from tests.faults.test_kills import expected, ids_in, in_database
from tests.faults.test_outages import back, hung, killed
from tests.faults.traffic import Traffic
from tests.support.live import LiveDaemon, Verdicts, wait_for
from tests.support.tools import REPOSITORY, free_port

PER_SECOND = 200.0
FLAP_SECONDS = 60.0
SAMPLE_SECONDS = 5.0
DROPPED = ("jouled_spool_dropped_total", "jouled_receipts_dropped_total")
UNUSUAL_EVENTS = ("jouled_rejected_events_total", "jouled_late_events_total")
MEBIBYTE = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--per-second", type=float, default=PER_SECOND)
    parser.add_argument("--flap-seconds", type=float, default=FLAP_SECONDS)
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "*"
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory(prefix="jouled-soak-") as temporary, engine_server() as (engine, url):
        folder = Path(temporary)
        victoria = Victoria(folder)
        victoria.start()
        out = folder / "out" / "receipts.jsonl"
        out.parent.mkdir()
        lines = f'[sinks.jsonl]\npath = "{out}"\nstreams = ["receipts"]\nmax_mebibytes = 4096'
        with daemon(folder, configuration(url, influx(victoria), lines)) as running:
            traffic = Traffic(engine, ENGINE, lambda: running.url, per_second=options.per_second)
            traffic.start()
            samples = list(
                watched(running, flapping(victoria, out.parent, options.minutes * 60.0, options.flap_seconds))
            )
            traffic.stop(120.0)
            judge(verdicts, running, traffic, victoria, out, samples)
        victoria.kill()
    return 1 if verdicts.failed else 0


@contextmanager
def daemon(folder: Path, toml: str) -> Iterator[LiveDaemon]:
    """A daemon with the synthetic meter."""
    package = folder / "packages" / "fakepower-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fakepower\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[jouled.power]\nfake = tests.app.runtime.fakes:FakeCollector\n")
    (folder / "config.toml").write_text(toml)
    port = free_port()
    command = [*QUICK, "run", "--config", folder / "config.toml", "--state", folder / "state", "--no-discovery"]
    path = f"{package.parent}:{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"
    environment = {"PYTHONPATH": path, "RUNTIME_DIRECTORY": ""}
    running = LiveDaemon([*command, "--listen", f"127.0.0.1:{port}"], port, folder / "daemon.log", environment)
    running.start()
    try:
        running.wait_until_ready(30)
        yield running
    finally:
        running.stop()


def flapping(victoria: Victoria, folder: Path, seconds: float, flap_seconds: float) -> Iterator[None]:
    """Time passes in samples; sinks go and come back meanwhile."""
    ends = time.monotonic() + seconds
    faults = [hung, killed]
    round_ends, is_down, number = time.monotonic() + flap_seconds, False, 0
    while time.monotonic() < ends:
        time.sleep(SAMPLE_SECONDS)
        if time.monotonic() > round_ends:
            round_ends, is_down = time.monotonic() + flap_seconds, not is_down
            if is_down:
                faults[number % 2](victoria)
                folder.rename(folder.with_name("away"))
                number += 1
            else:
                back(victoria)
                folder.with_name("away").rename(folder)
        yield
    if is_down:
        back(victoria)
        folder.with_name("away").rename(folder)


def watched(running: LiveDaemon, passing: Iterator[None]) -> Iterator[tuple[float, float, int]]:
    """Seconds, MiB of the daemon and its children, and open files, at each sample."""
    assert running.process is not None
    root, began = psutil.Process(running.process.pid), time.monotonic()
    for _ in passing:
        processes = [root, *root.children(recursive=True)]
        memory = sum(process.memory_info().rss for process in processes) / MEBIBYTE
        yield time.monotonic() - began, memory, sum(process.num_fds() for process in processes)


def judge(
    verdicts: Verdicts,
    running: LiveDaemon,
    traffic: Traffic,
    victoria: Victoria,
    out: Path,
    samples: list[tuple[float, float, int]],
) -> None:
    kept = traffic.kept
    refused = [series for series in running.page().values.items() if series[0].startswith(UNUSUAL_EVENTS)]
    verdicts.passed("no event was refused", not traffic.refused, answers=traffic.refused[:3], counted=dict(refused))
    with suppress(TimeoutError):
        wait_for(lambda: len(ids_in(out)) >= len(kept), 240, "", 1.0)
    counted = ids_in(out)
    once = set(counted) == set(kept) and max(counted.values()) == 1
    lost = sorted(set(kept) - set(counted))
    figures = {"requests": len(kept), "lines": sum(counted.values()), "missing": len(lost)}
    verdicts.passed("file: every acknowledged request once", once, **figures, first=lost[:3], last=lost[-3:])
    with suppress(TimeoutError):
        wait_for(lambda: len(in_database(victoria)) >= len(kept), 120, "", 2.0)
    missing = Counter(expected(kept)) - Counter(in_database(victoria))
    twice = Counter(in_database(victoria)) - Counter(expected(kept))
    figures = {"requests": len(kept), "missing": missing.total(), "twice": twice.total()}
    verdicts.passed("database: every acknowledged request once", not missing and not twice, **figures)
    # Ids are remembered against repeats for half an hour: until then memory grows with them.
    settled = samples[round(0.55 * len(samples)) :]
    seconds, memory, files = zip(*settled, strict=True)
    slope = statistics.linear_regression(seconds, memory).slope * 3600.0
    rise = {"mib_per_hour": round(slope, 2), "mib_median": round(statistics.median(memory), 1)}
    verdicts.passed("memory is flat", slope < 5.0, **rise, mib_max=round(max(memory), 1))
    spread = {"median": statistics.median(files), "max": max(files), "last": files[-1]}
    verdicts.passed("open files are flat", files[-1] <= statistics.median(files) + 5, **spread)
    page = running.page().values
    dropped = {name: value for name, value in page.items() if name.startswith(DROPPED)}
    verdicts.passed("nothing was dropped", not dropped, **dropped)
    failures = {name: value for name, value in page.items() if name.startswith("jouled_sink_failures_total")}
    verdicts.passed("the sinks did fail", sum(failures.values()) > 0, failures=sum(failures.values()))
    verdicts.passed("the books balance", running.json("/api/v1/snapshot")["balance_uj"] == 0)
    spent = psutil.Process(running.process.pid).cpu_times() if running.process else None
    share = (spent.user + spent.system) / samples[-1][0] if spent else 0.0
    sys.stdout.write(json.dumps({"name": "cpu_of_the_daemon", "value": round(share, 3), "unit": "cores"}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
