"""SIGHUP: a good configuration takes effect, a bad one changes nothing; no counter ever goes back."""

import signal
from pathlib import Path

from tests.e2e.conftest import METER, Launch
from tests.support.live import LiveDaemon, Page, wait_for

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
            return None  # it is between two lives
        return page if holds(page) else None

    return wait_for(look, 20, what, 0.05)


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
        wait_for(lambda why=why: why in daemon.log_tail(20), 20, f"{why} is not in the log", 0.05)
        until(daemon, lambda page: page.values.get(GOOD) == 0.0, "the refusal is not shown")
    reload(daemon, tmp_path / "config.toml", METER)
    until(daemon, lambda page: page.values.get(GOOD) == 1.0, "mended and not taken")
    assert daemon.stop() == 0
