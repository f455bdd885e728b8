"""`make acceptance`: ten minutes of `jouled demo` held against the twin's truth, then 50 kills under a fast scrape.

Prints one JSON line for each check and ends with 0 if all passed. Logs and state stay in the folder it names.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.acceptance import checks
from tests.acceptance.scraper import Scraper
from tests.acceptance.truth import Books, Twin
from tests.support.live import LiveDaemon, Verdicts
from tests.support.tools import free_port

FIRST_MINUTE_NS = 60_000_000_000
COMMIT_NS = 1_000_000_000
LOOK_SECONDS = 5.0
SCRAPE_SECONDS = 1.0
KILL_SCRAPE_SECONDS = 0.2
UPTIME_SECONDS = (0.3, 4.0)
"""How long a daemon lives after its first page: from before its first commit to well after it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of demo before the kills (default %(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills (default %(default)s)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jouled-acceptance-"))
    sys.stderr.write(f"logs and state: {folder}\n")
    port = free_port()
    command: list[str | Path] = [
        Path(sys.executable).parent / "jouled",
        "demo",
        "--listen",
        f"127.0.0.1:{port}",
        "--state",
        folder / "state",
    ]
    daemon = LiveDaemon(command, port, folder / "daemon.log", {})
    verdicts = Verdicts()
    daemon.start()
    try:
        daemon.wait_until_ready()
        twin = Twin(folder / "state")
        try:
            watch(daemon, twin, verdicts, options.minutes * 60)
            if options.kills:
                kill(daemon, twin, verdicts, options.kills, random.Random(options.seed))
        finally:
            twin.stop()
    finally:
        daemon.stop()
    verdicts.passed("acceptance", not verdicts.failed, failed=list(verdicts.failed))
    return bool(verdicts.failed)


def watch(daemon: LiveDaemon, twin: Twin, verdicts: Verdicts, seconds: float) -> None:
    """Let the demo run and hold its books and receipts against the truth."""
    scraper = Scraper(daemon, SCRAPE_SECONDS)
    scraper.start()
    started_ns = time.time_ns()
    truths, snapshots = [twin.books()], [daemon.json("/api/v1/snapshot")]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(LOOK_SECONDS, max(deadline - time.monotonic(), 0.0)))
        daemon.raise_if_ended()
        truths.append(twin.books())
        snapshots.append(daemon.json("/api/v1/snapshot"))
    last = snapshots[-1]
    watermark_ns = min((engine["watermark_ns"] or 0 for engine in last["engines"]), default=0)
    at_watermark = min(truths, key=lambda books: abs(books.t_ns - watermark_ns))
    scraped = scraper.stop()
    checks.check_conservation(verdicts, scraped, snapshots)
    checks.check_counters(verdicts, scraped)
    checks.check_shares(verdicts, last, truths[0], at_watermark)
    checks.check_receipts(
        verdicts,
        all_receipts(daemon),
        twin.requests(),
        started_ns + FIRST_MINUTE_NS,
        watermark_ns - COMMIT_NS,
    )


def all_receipts(daemon: LiveDaemon) -> list[dict[str, Any]]:
    """Every receipt in the store, page by page."""
    found: list[dict[str, Any]] = []
    path = "/api/v1/requests?all=1"
    while path:
        page = daemon.json(path)
        found += page["requests"]
        path = page.get("next", "")
    return found


def kill(daemon: LiveDaemon, twin: Twin, verdicts: Verdicts, kills: int, dice: random.Random) -> None:
    """Kill and restart the daemon again and again while it is scraped every 200 ms."""
    scraper = Scraper(daemon, KILL_SCRAPE_SECONDS)
    start = twin.books()
    scraper.start()
    for _ in range(kills):
        scraper.wait_for_pages(1, timeout_seconds=60)
        time.sleep(dice.uniform(*UPTIME_SECONDS))
        daemon.kill()
        daemon.start()
    scraper.wait_for_pages(20, timeout_seconds=60)
    end: Books = twin.books()
    scraped = scraper.stop()
    checks.check_counters(verdicts, scraped)
    checks.check_increase(verdicts, scraped, start, end)
    checks.check_conservation(verdicts, scraped, [daemon.json("/api/v1/snapshot")])


if __name__ == "__main__":
    sys.exit(main())
