"""What is kept of single requests: under other names, not at all, or no longer."""

import json
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.e2e.conftest import METER, Launch
from tests.e2e.engine_server import EngineServer, engine_server
from tests.e2e.test_life import jouled
from tests.e2e.test_whole_way import engine_table
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def engine():
    with engine_server() as (served, url):
        yield served, url


def send(daemon: LiveDaemon, served: EngineServer, request_id: str, tenant: str) -> None:
    """A request that has just ended, too short for any look at the page; answered once it is kept."""
    end_ns = time.time_ns()
    served.prompt, served.generation = served.prompt + 10, served.generation + 5
    event = {
        "id": request_id, "engine": "tiny-0", "arrival_ns": end_ns - 80_000_000, "ttft_seconds": 0.03,
        "e2e_seconds": 0.08, "prompt_tokens": 10, "generation_tokens": 5, "tenant": tenant, "trace_id": TRACE,
        "span_id": request_id.encode().hex()[-16:].rjust(16, "0"),
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(daemon.url + "/api/v1/requests", json.dumps(event).encode(), headers)
    urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()


def until_metered(daemon: LiveDaemon) -> None:
    began = time.monotonic()
    for series in ("jouled_engine_info{", "jouled_device_power_watts{"):
        wait_for(lambda series=series: series in daemon.get("/metrics").decode(), PATIENCE_SECONDS, f"no {series}")
    wait_for(lambda: time.monotonic() - began > 1.5, PATIENCE_SECONDS, "time stands still")


def holds(daemon: LiveDaemon, folder: Path, text: str) -> list[str]:
    """Files of the state and pages of the daemon in which a text stands."""
    files = [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    pages = ["/metrics", "/api/v1/snapshot", "/api/v1/requests?all=1"]
    return files + [page for page in pages if text.encode() in daemon.get(page)]


def final(daemon: LiveDaemon, request_id: str) -> Callable[[], dict[str, object] | None]:
    return lambda: (found := daemon.receipt(request_id)) and not found["provisional"] and found


def test_ids_stand_nowhere_and_receipts_are_found_by_them(launch: Launch, engine, tmp_path: Path) -> None:
    served, url = engine
    daemon = launch(METER + engine_table("tiny-0", url) + "[privacy]\nhash_ids = true\n")
    until_metered(daemon)
    send(daemon, served, "chatcmpl-alice-7", "red")
    receipt = wait_for(final(daemon, "alice-7"), PATIENCE_SECONDS, "no receipt")
    assert receipt["id"] != "chatcmpl-alice-7"
    assert daemon.receipt("chatcmpl-alice-7") == receipt
    assert holds(daemon, tmp_path / "state", "alice-7") == []
    assert holds(daemon, tmp_path / "state", TRACE) == []
    assert daemon.stop() == 0


def test_without_receipts_only_sums_remain(launch: Launch, engine, tmp_path: Path) -> None:
    served, url = engine
    daemon = launch(METER + engine_table("tiny-0", url) + "[privacy]\nreceipts = false\n")
    until_metered(daemon)
    send(daemon, served, "alice", "red")
    wait_for(lambda: "jouled_requests_total{" in daemon.get("/metrics").decode(), PATIENCE_SECONDS, "it is not counted")
    assert daemon.receipt("alice") is None
    assert daemon.json("/api/v1/requests")["requests"] == []
    assert "alice" not in daemon.get("/api/v1/snapshot").decode()
    assert daemon.page().total("jouled_attributed_energy_joules_total", component="compute") > 0
    assert daemon.stop() == 0


def test_receipts_of_before_go_when_they_are_switched_off(launch: Launch, engine, tmp_path: Path) -> None:
    served, url = engine
    toml = METER + engine_table("tiny-0", url)
    daemon = launch(toml)
    until_metered(daemon)
    send(daemon, served, "alice", "red")
    wait_for(final(daemon, "alice"), PATIENCE_SECONDS, "no receipt")
    (tmp_path / "config.toml").write_text(toml + "[privacy]\nreceipts = false\n")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "is in effect" in daemon.log_tail(30), PATIENCE_SECONDS, "no reload")
    wait_for(lambda: stored(tmp_path / "state") == 0, PATIENCE_SECONDS, "they are still there")
    assert daemon.receipt("alice") is None
    assert daemon.page().total("jouled_requests_total", engine="tiny-0") == 1
    assert daemon.stop() == 0


def stored(state: Path) -> int:
    """Receipts in the store."""
    with closing(sqlite3.connect(f"file:{state}/jouled.sqlite3?mode=ro", uri=True)) as store:
        count: int = store.execute("SELECT count(*) FROM receipts").fetchone()[0]
    return count


def test_a_tenant_is_forgotten_while_the_daemon_runs_and_while_it_does_not(
    launch: Launch, engine, tmp_path: Path, environment: dict[str, str]
) -> None:
    served, url = engine
    daemon = launch(METER + engine_table("tiny-0", url))
    until_metered(daemon)
    for name, tenant in (("one", "acme-corporation"), ("two", "globex"), ("three", "acme-corporation")):
        send(daemon, served, name, tenant)
        wait_for(final(daemon, name), PATIENCE_SECONDS, "no receipt")

    def forget(tenant: str) -> subprocess.CompletedProcess[str]:
        return jouled(environment, "forget", "--tenant", tenant, "--state", tmp_path / "state")

    told = forget("acme-corporation")
    assert (told.returncode, told.stdout) == (
        0,
        "2 receipts of tenant 'acme-corporation' are removed; sums that they are in stay\n",
    )
    assert daemon.receipt("one") is None
    wait_for(lambda: holds(daemon, tmp_path / "state", "acme-corporation") == [], PATIENCE_SECONDS, "something is left")
    assert daemon.page().total("jouled_requests_total", engine="tiny-0") == 3
    assert daemon.stop() == 0
    assert forget("globex").stdout.startswith("1 receipts")
    assert forget("globex").stdout.startswith("0 receipts")
