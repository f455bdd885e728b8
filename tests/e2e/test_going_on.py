"""Requests and energy that are open when the daemon is killed find their owners in the next one."""

import json
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from tests.e2e.conftest import FINAL_SECONDS, METER, Launch, until_covered
from tests.e2e.engine_server import EngineServer, engine_server
from tests.e2e.test_whole_way import engine_table
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for


def tell(daemon: LiveDaemon, name: str, begun_ns: int, ended_ns: int) -> None:
    """Post the event of a request that has ended."""
    seconds = (ended_ns - begun_ns) / 1e9
    event = {
        "id": name, "engine": "tiny-0", "arrival_ns": begun_ns, "scheduled_ns": begun_ns, "ttft_seconds": 0.1,
        "e2e_seconds": seconds, "prompt_tokens": 5, "generation_tokens": 50,
    }  # fmt: skip
    body = json.dumps(event).encode()
    request = urllib.request.Request(daemon.url + "/api/v1/requests", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()


def until_read(daemon: LiveDaemon) -> None:
    wait_for(
        lambda: "jouled_device_power_watts{" in daemon.get("/metrics").decode(), PATIENCE_SECONDS, "nothing is read"
    )


def until_committed(daemon: LiveDaemon) -> None:
    """Wait until a commit holds what was told so far."""
    sequence = daemon.json("/api/v1/snapshot")["sequence"]
    wait_for(
        lambda: daemon.json("/api/v1/snapshot")["sequence"] >= sequence + 2,
        PATIENCE_SECONDS,
        "nothing is committed",
        0.05,
    )


def until_final(daemon: LiveDaemon, name: str) -> dict[str, object]:
    return wait_for(
        lambda: (found := daemon.receipt(name)) and not found["provisional"] and found,
        FINAL_SECONDS,
        f"{name} is not final",
    )


def killed_with_open_requests(launch: Launch, engine: EngineServer, url: str) -> tuple[int, int]:
    """A daemon that is killed while one request has just ended and one runs; when the two began."""
    daemon = launch(METER + engine_table("tiny-0", url))
    until_read(daemon)
    engine.until_looked_at()
    begun_ns = time.time_ns()
    engine.running = 2
    wait_for(lambda: time.time_ns() > begun_ns + 2_000_000_000, PATIENCE_SECONDS, "time stands still", 0.05)
    engine.until_looked_at()
    ended_ns = time.time_ns()
    engine.running = 1
    tell(daemon, "ended-before", begun_ns, ended_ns)  # answered when it is kept, up to a second later
    until_committed(daemon)
    daemon.kill()
    return begun_ns, time.time_ns()


@pytest.mark.parametrize("kills", [1, 3])
def test_requests_in_flight_over_a_kill_get_their_receipts(launch: Launch, kills: int) -> None:
    with engine_server() as (engine, url):
        begun_ns, killed_ns = killed_with_open_requests(launch, engine, url)
        for _ in range(kills - 1):
            again = launch(METER + engine_table("tiny-0", url))
            until_read(again)
            again.kill()
        again = launch(METER + engine_table("tiny-0", url))
        until_read(again)
        until_covered(again, engine, 1.0)
        engine.until_looked_at()
        ended_ns = time.time_ns()
        engine.running = 0
        tell(again, "across", begun_ns, ended_ns)
        before, across = until_final(again, "ended-before"), until_final(again, "across")
        assert before["validity"] == "ok"
        assert "interrupted" in str(across["validity"])
        assert "truncated" not in str(across["validity"])
        assert float(str(across["joules"])) > float(str(before["joules"])) > 100
        page = again.page()
        assert page.total("jouled_requests_total", outcome="completed", engine="tiny-0") == 2
        assert page.values.get('jouled_energy_joules_total{engine="tiny-0",owner="unattributed"}', 0.0) < 0.001
        owners = {owner: page.total("jouled_energy_joules_total", owner=owner) for owner in ("downtime", "resident")}
        assert owners["downtime"] > 0
        unattributed = [v for k, v in page.values.items() if 'owner="unattributed"' in k]
        assert sum(unattributed) < 0.001
        assert page.total("jouled_restarts_total", result="resumed") == kills
        assert again.json("/api/v1/snapshot")["balance_uj"] == 0
        assert killed_ns > begun_ns


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("UPDATE checkpoint SET state = x'00'", "missing, damaged"),
        ("DELETE FROM journal WHERE sequence = (SELECT min(sequence) FROM journal)", "missing, damaged"),
        ("INSERT INTO bad_ends VALUES ({now}, 'failed'), ({now}, 'failed')", "twice in ten minutes"),
    ],
)
def test_without_its_state_the_books_go_on_and_it_is_said(launch: Launch, tmp_path: Path, harm: str, said: str) -> None:
    with engine_server() as (engine, url):
        killed_with_open_requests(launch, engine, url)
        with closing(sqlite3.connect(tmp_path / "state/jouled.sqlite3")) as store, store:
            store.execute(harm.format(now=time.time_ns()))
        again = launch(METER + engine_table("tiny-0", url))
        until_read(again)
        assert said in again.log_tail()
        page = again.page()
        assert page.total("jouled_restarts_total", result="books_only") == 1
        assert page.total("jouled_energy_joules_total", owner="unattributed") > 100
        assert again.json("/api/v1/snapshot")["balance_uj"] == 0
