"""`jouled report` of a whole daemon: while it runs, and of what it left; and tokens that nobody told of."""

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import METER, Launch
from tests.e2e.engine_server import engine_server
from tests.e2e.test_life import jouled
from tests.e2e.test_privacy import final, send, until_metered
from tests.e2e.test_whole_way import engine_table
from tests.support.live import PATIENCE_SECONDS, wait_for


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def report(folder: Path, *arguments: str) -> dict[str, object]:
    answer = jouled({}, "report", "--state", folder, "--json", *arguments)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_a_report_of_a_daemon_that_runs_and_of_what_it_left(launch: Launch, tmp_path: Path) -> None:
    with engine_server() as (served, url):
        daemon = launch(METER + engine_table("tiny-0", url))
        until_metered(daemon)
        for number in range(3):
            send(daemon, served, f"chatcmpl-{number}", "red")
        receipts = [wait_for(final(daemon, str(number)), PATIENCE_SECONDS, "no receipt") for number in range(3)]
        served.generation += 70  # made for a client that went away
        lost = 'jouled_unreported_tokens_total{engine="tiny-0",kind="generation",model_name="tiny"} 70.0'
        wait_for(lambda: lost in daemon.get("/metrics").decode(), PATIENCE_SECONDS, "nobody counted the lost tokens")
        running = report(tmp_path / "state", "--by", "tenant")
        (row,) = running["rows"]
        assert (row["name"], row["requests"], row["generation_tokens"]) == ("red", 3, 15)
        assert row["joules"] == pytest.approx(sum(receipt["joules"] for receipt in receipts))
        assert running["unreported_tokens"]["generation"] == pytest.approx(70.0)
        daemon.stop()
    left = report(tmp_path / "state", "--by", "tenant")
    assert left["rows"] == running["rows"]
    assert left["unreported_tokens"]["generation"] == pytest.approx(70.0)
    assert left["owners_joules"]["idle"] > 0.0
