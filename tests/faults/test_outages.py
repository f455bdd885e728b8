"""A database that is killed, hung or away for longer than anything waits in memory: all of it arrives, once."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from tests.e2e.conftest import Launch
from tests.e2e.engine_server import EngineServer
from tests.faults.conftest import (
    ENGINE,
    FINAL_SECONDS,
    Cable,
    Lives,
    Prometheus,
    Server,
    Victoria,
    configuration,
    influx,
)
from tests.faults.test_kills import expected, in_database
from tests.faults.traffic import Traffic
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for
from tests.support.tools import tool


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def killed(server: Server) -> None:
    server.kill()


def hung(server: Server) -> None:
    server.signal(signal.SIGSTOP)


def back(server: Server) -> None:
    assert server.process is not None
    if server.process.poll() is None:
        server.signal(signal.SIGCONT)
    else:
        server.start()


def failures(daemon: LiveDaemon) -> float:
    found = daemon.page().values
    return sum(value for series, value in found.items() if series.startswith("jouled_sink_failures_total{"))


@pytest.mark.parametrize("fault", [killed, hung])
def test_what_a_database_misses_arrives_when_it_is_back(
    launch: Launch,
    engine: tuple[EngineServer, str],
    victoria: Victoria,
    fault: Callable[[Victoria], None],
) -> None:
    page, url = engine
    lives = Lives(launch, configuration(url, influx(victoria)))
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=20.0)
    traffic.start()
    wait_for(
        lambda: lives.daemon.page().values.get('jouled_sink_up{sink="influx"}') == 1.0,
        PATIENCE_SECONDS,
        "nothing is sent",
    )
    fault(victoria)
    wait_for(lambda: failures(lives.daemon) > 0, PATIENCE_SECONDS, "the outage goes unnoticed")
    away_seconds = lives.kill_and_return()  # what waits is on disk, not in memory
    wait_for(
        lambda: lives.daemon.page().values.get('jouled_sink_up{sink="influx"}') == 0.0,
        PATIENCE_SECONDS,
        "it seems to be up",
    )
    traffic.stop()
    back(victoria)
    wait_for(lambda: in_database(victoria) == expected(traffic.kept), FINAL_SECONDS, "the database lacks receipts", 0.5)
    returned_ms = time.time() * 1000
    wait_for(
        lambda: moments(victoria) and moments(victoria)["timestamps"][-1] > returned_ms,
        PATIENCE_SECONDS,
        "no moments",
        0.5,
    )
    series = moments(victoria)
    steps = [later - before for before, later in pairwise(series["timestamps"])]
    assert max(steps) < max(4_000, 2_000 * away_seconds), "moments of the outage are missing"
    assert series["values"] == sorted(series["values"])
    dropped = [name for name in lives.daemon.page().values if name.startswith("jouled_spool_dropped_total")]
    assert dropped == []


def test_what_a_killed_database_had_acknowledged_and_forgets_is_sent_again(
    launch: Launch, engine: tuple[EngineServer, str], victoria: Victoria
) -> None:
    page, url = engine
    lives = Lives(launch, configuration(url, influx(victoria)))
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=100.0)
    traffic.start()
    wait_for(lambda: len(traffic.kept) > 300, PATIENCE_SECONDS, "nothing is taken")
    traffic.stop()
    accepted = 'jouled_sink_records_total{kind="receipts",result="accepted",sink="influx"}'
    everything = len(traffic.kept)
    wait_for(lambda: lives.daemon.page().values.get(accepted) == everything, FINAL_SECONDS, "not sent")
    victoria.kill()  # it writes to its disk every few seconds
    wait_for(lambda: failures(lives.daemon) > 0, PATIENCE_SECONDS, "the outage goes unnoticed")
    back(victoria)
    wait_for(lambda: in_database(victoria) == expected(traffic.kept), FINAL_SECONDS, "the database lacks receipts", 0.5)
    assert lives.daemon.page().values[accepted] == everything


@pytest.mark.parametrize("fault", [killed, hung])
def test_prometheus_gets_every_moment_of_its_outage(
    launch: Launch, engine: tuple[EngineServer, str], prometheus: Prometheus, fault: Callable[[Server], None]
) -> None:
    _, url = engine
    sink = f'[sinks.remote_write]\nurl = "{prometheus.url}/api/v1/write"\ntimeout_seconds = 2'
    lives = Lives(launch, configuration(url, sink))
    energy = 'jouled_device_energy_joules_total{device="gpu0"}'
    wait_for(lambda: len(prometheus.samples(energy)) > 2, PATIENCE_SECONDS, "nothing arrives")
    fault(prometheus)
    wait_for(lambda: failures(lives.daemon) > 1, PATIENCE_SECONDS, "the outage goes unnoticed")
    back(prometheus)
    returned = time.time()
    wait_for(lambda: prometheus.samples(energy)[-1][0] > returned + 3, PATIENCE_SECONDS, "no moments", 0.5)
    samples = prometheus.samples(energy)
    times = [at for at, _ in samples]
    assert max(later - before for before, later in pairwise(times)) < 3.0, "moments of the outage are missing"
    assert [value for _, value in samples] == sorted(value for _, value in samples)
    records = lives.daemon.page().total("jouled_sink_records_total", sink="remote_write", result="accepted")
    assert len(samples) >= records - 1


LINES: dict[str, tuple[Callable[[Cable], None], Callable[[Cable], None]]] = {
    "pulled": (Cable.pull, Cable.plug),
    "dropped": (lambda cable: cable.firewall("drop"), Cable.no_firewall),
    "refused": (lambda cable: cable.firewall("reject with tcp reset"), Cable.no_firewall),
    "thin": (lambda cable: cable.throttle(4), Cable.no_throttle),
}


@pytest.mark.parametrize("what", LINES)
def test_a_line_that_is_cut_and_mended(
    launch: Launch, engine: tuple[EngineServer, str], cable: Cable, victoria_far_away: Victoria, what: str
) -> None:
    page, url = engine
    cut, mend = LINES[what]
    lives = Lives(launch, configuration(url, influx(victoria_far_away)))
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=20.0)
    traffic.start()
    wait_for(
        lambda: lives.daemon.page().values.get('jouled_sink_up{sink="influx"}') == 1.0,
        PATIENCE_SECONDS,
        "nothing is sent",
    )
    cut(cable)
    wait_for(lambda: failures(lives.daemon) > 1, PATIENCE_SECONDS, "the cut goes unnoticed")
    mend(cable)
    traffic.stop()
    wait_for(
        lambda: in_database(victoria_far_away) == expected(traffic.kept),
        FINAL_SECONDS,
        "the database lacks receipts",
        0.5,
    )


def moments(victoria: Victoria) -> dict[str, list[float]]:
    """Time stamps and values of the device's energy; empty before the first."""
    found = victoria.series("jouled_device_energy_joules_total_value")
    return found[0] if found else {}


class SmallDisk:
    """A file system of 48 MiB over a folder, which a daemon has in a mount namespace of its own: it goes with it.

    inside: what stands in front of the daemon's command.
    """

    def __init__(self, folder: Path) -> None:
        mount = 'mount -t tmpfs -o size=48m none "$0" && exec "$@"'
        self.inside = [tool("unshare"), "--mount", "sh", "-c", mount, folder]
        self._folder = folder

    def seen_by(self, pid: int) -> Path:
        """The folder as that process sees it."""
        return Path(f"/proc/{pid}/root{self._folder}")


@pytest.fixture
def small_disk(tmp_path: Path) -> SmallDisk:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    folder = tmp_path / "state"
    folder.mkdir()
    return SmallDisk(folder)


def fill(path: Path) -> None:
    """Take all that is left of the file system."""
    with path.open("wb", buffering=0) as file:
        for size in (1024 * 1024, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_stops_nothing_and_passes_without_a_restart(
    small_disk: SmallDisk, launch: Launch, engine: tuple[EngineServer, str], victoria: Victoria
) -> None:
    page, url = engine
    lives = Lives(partial(launch, inside=small_disk.inside), configuration(url, influx(victoria)))
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=20.0)
    traffic.start()
    wait_for(lambda: len(traffic.kept) > 20, PATIENCE_SECONDS, "nothing is taken")
    filler = small_disk.seen_by(lives.daemon.process.pid) / "filler"
    fill(filler)
    wait_for(lambda: lives.daemon.page().values.get("jouled_store_failing") == 1.0, PATIENCE_SECONDS, "nobody notices")
    at_the_time = len(traffic.kept)
    pid = lives.daemon.process.pid
    time.sleep(3)
    assert len(traffic.kept) <= at_the_time + 20, "what cannot be kept is not acknowledged"
    filler.unlink()
    wait_for(
        lambda: lives.daemon.page().values.get("jouled_store_failing") == 0.0, PATIENCE_SECONDS, "it does not recover"
    )
    wait_for(lambda: len(traffic.kept) > at_the_time + 40, PATIENCE_SECONDS, "nothing is taken any more")
    traffic.stop()
    assert lives.daemon.process.pid == pid
    wait_for(lambda: in_database(victoria) == expected(traffic.kept), FINAL_SECONDS, "the database lacks receipts", 0.5)
    assert lives.daemon.json("/api/v1/snapshot")["balance_uj"] == 0
