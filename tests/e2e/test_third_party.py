"""A sink that another package brings by its entry point."""

from pathlib import Path

import pytest
from tests.e2e.conftest import METER, Launch
from tests.e2e.engine_server import engine_server
from tests.e2e.test_privacy import send, until_metered
from tests.e2e.test_whole_way import engine_table
from tests.support.live import PATIENCE_SECONDS, wait_for


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def test_it_gets_receipts_with_their_numbers(launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "printed"
    with engine_server() as (served, url):
        daemon = launch(METER + engine_table("tiny-0", url) + f'[sinks.printer]\npath = "{out}"\n')
        until_metered(daemon)
        for name in ("one", "two"):
            send(daemon, served, name, "red")
        wait_for(
            lambda: out.exists() and len(out.read_text().splitlines()) == 2, PATIENCE_SECONDS, "nothing is printed"
        )
        assert out.read_text() == "1 one\n2 two\n"
        assert daemon.stop() == 0
