"""`jouled demo`: the twin, the daemon on it, and the grading on the page."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import QUICK, until_ended
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for
from tests.support.tools import free_port


@pytest.fixture
def demo(tmp_path: Path, environment: dict[str, str]) -> Iterator[LiveDaemon]:
    state, port = tmp_path / "demo", free_port()
    command = [*QUICK, "demo", "--state", state, "--listen", f"127.0.0.1:{port}"]
    daemon = LiveDaemon(command, port, tmp_path / "demo.log", environment)
    daemon.start()
    yield daemon
    daemon.stop(5)
    stop = [sys.executable, "-m", "jouled_collectors.twin", "stop", "--state", str(state / "twin")]
    subprocess.run(stop, check=True, capture_output=True, timeout=PATIENCE_SECONDS)


def test_demo_meters_the_twin_and_leaves_it_running(demo: LiveDaemon, tmp_path: Path) -> None:
    demo.wait_until_ready()
    graded = wait_for(
        lambda: demo.json("/api/v1/snapshot")["extra"].get("graded"), PATIENCE_SECONDS, "nothing is graded"
    )
    assert "graded_requests" in graded
    snapshot = demo.json("/api/v1/snapshot")
    assert {engine["name"] for engine in snapshot["engines"]} == {"llama-70b", "llama-8b"}
    assert len([device for device in snapshot["devices"] if device["kind"] == "gpu"]) == 8
    wait_for(
        lambda: all(engine["requests_running"] for engine in demo.json("/api/v1/snapshot")["engines"]),
        PATIENCE_SECONDS,
        "no load",
    )
    assert demo.json("/api/v1/snapshot")["balance_uj"] == 0
    assert demo.process is not None
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(PATIENCE_SECONDS) == 0
    assert "The twin runs on" in demo.log_tail()
    assert f"jouled demo --stop --state {tmp_path / 'demo'}" in demo.log_tail()
    twin = json.loads((tmp_path / "demo/twin/twin.json").read_text())
    with urllib.request.urlopen(f"{twin['url']}/healthz", timeout=PATIENCE_SECONDS) as answer:
        assert json.load(answer)["spans_url"] == f"{demo.url}/v1/traces"
    stop = [*map(str, QUICK), "demo", "--stop", "--state", str(tmp_path / "demo")]
    for words in ("stopped\n", "no twin runs\n"):
        done = subprocess.run(stop, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
        assert done.stdout == words
    assert until_ended(twin["pid"])
