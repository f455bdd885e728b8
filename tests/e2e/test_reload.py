"""SIGHUP: a good configuration takes effect, a bad one changes nothing; no counter ever goes back."""

import json
import signal
from pathlib import Path

from tests.e2e.conftest import METER, Launch
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, Page, wait_for

GOOD = "jouled_config_last_reload_successful"
SINCE = "jouled_config_last_reload_success_timestamp_seconds"


def reload(daemon: LiveDaemon, path: Path, toml: str) -> None:
    path.write_text(toml)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)


def until(daemon: LiveDaemon, holds, what: str) -> Page:
    def look() -> Page | None:
        try:
            page = daemon.page()
        except OSError:
            daemon.raise_if_ended()
            return None  # it is between two lives
        return page if holds(page) else None

    return wait_for(look, PATIENCE_SECONDS, what, 0.05)


def test_what_is_good_takes_effect_and_counters_go_on(launch: Launch, tmp_path: Path) -> None:
    daemon = launch()
    before = until(daemon, lambda page: page.values.get("jouled_page_series", 0) > 0, "no page")
    pid = daemon.process.pid
    reload(daemon, tmp_path / "config.toml", f'{METER}\n[cost]\ncurrency = "CHF"\nprice_per_kwh = 0.3\n')
    after = until(daemon, lambda page: page.values.get(SINCE, 0) > before.values[SINCE], "no reload")
    assert after.values[GOOD] == 1.0
    assert daemon.process.pid == pid
    grown = after.counters()
    assert not {name for name, value in before.counters().items() if grown.get(name, 0.0) < value}
    assert after.total("jouled_restarts_total") == 1.0
    assert daemon.stop() == 0


def test_what_is_bad_is_refused_and_the_old_one_stays(launch: Launch, tmp_path: Path) -> None:
    daemon = launch()
    until(daemon, lambda page: page.values.get(GOOD) == 1.0, "no page")
    for toml, why in (
        ("[serve\n", "no valid TOML"),
        (f"{METER}\n[cost]\nprise = 1\n", "price_per_kwh"),
        (f'{METER}\n[sinks.jsonl]\npath = "receipts.jsonl"\n', "does not begin with /"),
        (f"{METER}\n[sinks.nowhere]\n", "no sink is called `nowhere`"),
    ):
        reload(daemon, tmp_path / "config.toml", toml)
        wait_for(lambda why=why: why in daemon.log_tail(20), PATIENCE_SECONDS, f"{why} is not in the log", 0.05)
        until(daemon, lambda page: page.values.get(GOOD) == 0.0, "the refusal is not shown")
    reload(daemon, tmp_path / "config.toml", METER)
    until(daemon, lambda page: page.values.get(GOOD) == 1.0, "mended and not taken")
    assert daemon.stop() == 0


def test_a_second_reload_before_the_first_has_failed_ends_nothing(launch: Launch, tmp_path: Path) -> None:
    """The file reads well and the daemon does not start with it, twice in a row."""
    daemon = launch()
    until(daemon, lambda page: page.values.get(GOOD) == 1.0, "no page")
    bad = f'{METER}\n[serve]\nweb_config_file = "{tmp_path}/missing.yml"\n'
    reload(daemon, tmp_path / "config.toml", bad)
    reload(daemon, tmp_path / "config.toml", bad)
    wait_for(lambda: "missing.yml" in daemon.log_tail(20), PATIENCE_SECONDS, "nothing is refused", 0.05)
    until(daemon, lambda page: page.values.get(GOOD) == 0.0, "it does not come back")
    for _ in range(3):
        reload(daemon, tmp_path / "config.toml", bad)
    until(daemon, lambda page: page.values.get(GOOD) == 0.0, "it does not come back")
    daemon.raise_if_ended()
    assert daemon.stop() == 0


def test_a_reload_that_is_refused_takes_nothing_from_a_sink(launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sink = f'[sinks.old]\ntype = "jsonl"\npath = "{out}/points.jsonl"\nstreams = ["points"]\n'
    good = f"{METER}\n[spool]\ninterval_seconds = 1\n{sink}"
    daemon = launch(good)
    until(daemon, lambda page: page.values.get('jouled_sink_up{sink="old"}') == 0.0, "the sink works")
    reload(daemon, tmp_path / "config.toml", f'{METER}\n[serve]\nweb_config_file = "{tmp_path}/missing.yml"\n')
    until(daemon, lambda page: page.values.get(GOOD) == 0.0, "nothing is refused")
    out.mkdir()
    wait_for((out / "points.jsonl").exists, PATIENCE_SECONDS, "nothing arrives")
    numbers = [json.loads(line)["number"] for line in (out / "points.jsonl").read_text().splitlines()]
    assert numbers[0] == 1
    assert numbers == list(range(1, len(numbers) + 1))
    assert daemon.stop() == 0


def test_a_required_source_that_does_not_work_takes_no_effect(launch: Launch, tmp_path: Path) -> None:
    daemon = launch()
    until(daemon, lambda page: page.values.get(GOOD) == 1.0, "no page")
    reload(daemon, tmp_path / "config.toml", f'{METER}startup = "require"\nbehaviour = "crash"\n')
    wait_for(
        lambda: "is required and does not work" in daemon.log_tail(20), PATIENCE_SECONDS, "nothing is refused", 0.05
    )
    until(daemon, lambda page: page.values.get(GOOD) == 0.0, "it does not come back")
    daemon.raise_if_ended()
    assert daemon.stop() == 0
