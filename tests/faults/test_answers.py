"""A database that answers, but not as one would wish: none of what was acknowledged is lost, none is there twice."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.e2e.conftest import Launch
from tests.e2e.engine_server import EngineServer
from tests.faults import proxy as proxies
from tests.faults.conftest import ENGINE, FINAL_SECONDS, Lives, Victoria, configuration, influx
from tests.faults.proxy import BROKEN, BUSY, Proxy
from tests.faults.test_kills import expected, in_database
from tests.faults.traffic import Traffic
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def proxy(victoria: Victoria) -> Iterator[Proxy]:
    made = Proxy(victoria.url)
    yield made
    made.close()


def failures(daemon: LiveDaemon, reason: str) -> float:
    return daemon.page().values.get(f'jouled_sink_failures_total{{reason="{reason}",sink="influx"}}', 0.0)


def all_is_there(victoria: Victoria, traffic: Traffic) -> Callable[[], bool]:
    return lambda: bool(traffic.kept) and in_database(victoria) == expected(traffic.kept)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (401, "unauthorized"),
        (BUSY, "throttled"),
        (BROKEN, "server_error"),
        (proxies.WRITTEN_BUT_500, "server_error"),
        (proxies.WRITTEN_BUT_CUT, "unreachable"),
        (proxies.CUT_IN_THE_BODY, "unreachable"),
    ],
)
def test_an_answer_that_is_no_success(
    launch: Launch,
    engine: tuple[EngineServer, str],
    victoria: Victoria,
    proxy: Proxy,
    behaviour: int | str,
    reason: str,
) -> None:
    page, url = engine
    lives = Lives(launch, configuration(url, influx(victoria).replace(victoria.url, proxy.url)))
    wait_for(lambda: proxy.asked.get(proxies.PASSES, 0) > 1, PATIENCE_SECONDS, "nothing is sent")
    proxy.behaviour = behaviour
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=50.0)
    traffic.start()
    wait_for(lambda: len(traffic.kept) > 100, PATIENCE_SECONDS, "nothing is taken")
    traffic.stop()
    wait_for(
        lambda: failures(lives.daemon, reason) >= 3 and proxy.asked[behaviour] >= 3,
        PATIENCE_SECONDS,
        "it goes unnoticed",
    )
    proxy.behaviour = proxies.PASSES
    wait_for(all_is_there(victoria, traffic), FINAL_SECONDS, "the database lacks receipts", 0.5)
    accepted = 'jouled_sink_records_total{kind="receipts",result="accepted",sink="influx"}'
    wait_for(
        lambda: lives.daemon.page().values.get(accepted) == len(traffic.kept), PATIENCE_SECONDS, "each is counted once"
    )
    records = [name for name in lives.daemon.page().values if name.startswith("jouled_sink_records_total")]
    assert not [name for name in records if "rejected" in name]


class Unwilling(Victoria):
    """A VictoriaMetrics that is started with further options, for a time."""

    options: Sequence[str] = ()

    def command(self) -> list[str]:
        return [*super().command(), *self.options]

    def restart(self, *options: str) -> None:
        """With these options, on the same data."""
        self.kill()
        self.options = options
        self.start()


@pytest.fixture
def unwilling(tmp_path: Path) -> Iterator[Unwilling]:
    folder = tmp_path / "victoria"
    folder.mkdir()
    server = Unwilling(folder)
    server.start()
    yield server
    server.kill()


PASSWORD = "open-sesame"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-httpAuth.username=jouled", f"-httpAuth.password={PASSWORD}"], "unauthorized"),
        (["-storage.minFreeDiskSpaceBytes=100000GB"], "server_error"),
    ],
)
def test_a_real_database_that_refuses_for_a_while(
    launch: Launch, engine: tuple[EngineServer, str], unwilling: Unwilling, options: list[str], reason: str
) -> None:
    page, url = engine
    lives = Lives(launch, configuration(url, influx(unwilling)))
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=50.0)
    traffic.start()
    unwilling.restart(*options)
    wait_for(lambda: failures(lives.daemon, reason) >= 2, PATIENCE_SECONDS, "it goes unnoticed")
    traffic.stop()
    unwilling.restart()
    wait_for(all_is_there(unwilling, traffic), FINAL_SECONDS, "the database lacks receipts", 0.5)
