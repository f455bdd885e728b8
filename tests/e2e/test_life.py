"""Start, stop, death and return of a real daemon."""

import json
import os
import re
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from tests.e2e.conftest import METER, QUICK, Launch, children_of, is_running, until_ended
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for

ENERGY = "jouled_device_energy_joules_total"


def until_metered(daemon: LiveDaemon, joules: float = 0.0) -> float:
    """Wait until the page shows more energy than this; the energy."""
    return wait_for(
        lambda: (value := daemon.page().values.get(f'{ENERGY}{{device="gpu0",kind="gpu"}}', 0.0)) > joules and value,
        PATIENCE_SECONDS,
        "no energy",
        0.05,
    )


def complaint(daemon: LiveDaemon) -> tuple[int, str]:
    """Exit code and words of a daemon that does not start."""
    assert daemon.process is not None
    return daemon.process.wait(PATIENCE_SECONDS), daemon.log_tail()


def jouled(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*map(str, QUICK), *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_sigterm_ends_in_order_and_leaves_no_child(launch: Launch, tmp_path: Path) -> None:
    daemon = launch()
    until_metered(daemon)
    [child] = children_of(daemon)
    assert is_running(child)
    assert daemon.stop() == 0
    assert not is_running(child)
    assert not (tmp_path / "state/api.sock").exists()
    assert "Traceback" not in daemon.log_tail(100)


def test_it_leaves_no_core_file_with_secrets(launch: Launch) -> None:
    daemon = launch()
    assert daemon.process is not None
    limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def test_counters_go_on_after_a_kill(launch: Launch) -> None:
    daemon = launch()
    until_metered(daemon, 300.0)
    before = daemon.page().counters()
    [child] = children_of(daemon)
    daemon.kill()
    assert until_ended(child), "the child outlived the daemon"
    again = launch()
    after = again.page().counters()
    own = re.compile("jouled_process_")
    backwards = {
        name: (value, after.get(name))
        for name, value in before.items()
        if not own.match(name) and after.get(name, 0.0) < value
    }
    assert not backwards
    until_metered(again, before[f'{ENERGY}{{device="gpu0",kind="gpu"}}'])


def test_books_add_up_after_a_kill(launch: Launch) -> None:
    daemon = launch()
    until_metered(daemon, 300.0)
    daemon.kill()
    again = launch()
    until_metered(again, 700.0)
    snapshot = again.json("/api/v1/snapshot")
    assert snapshot["balance_uj"] == 0
    page = again.page()
    owners = page.total("jouled_energy_joules_total", quality="measured")
    opened = page.total("jouled_open_energy_joules", quality="measured")
    assert owners + opened == pytest.approx(
        page.total("jouled_boundary_energy_joules_total", boundary="compute"), rel=1e-9
    )
    assert page.total("jouled_energy_joules_total", owner="downtime") > 0


def test_the_first_page_after_a_kill_has_the_books(launch: Launch) -> None:
    daemon = launch()
    until_metered(daemon, 300.0)
    before = daemon.page().total("jouled_boundary_energy_joules_total", boundary="compute")
    daemon.kill()
    assert launch().page().total("jouled_boundary_energy_joules_total", boundary="compute") >= before


def test_lost_store_starts_from_zero(launch: Launch, tmp_path: Path) -> None:
    daemon = launch()
    before = until_metered(daemon, 400.0)
    daemon.kill()
    for path in (tmp_path / "state").glob("jouled.sqlite3*"):
        path.unlink()
    again = launch()
    assert until_metered(again) < before
    assert "start from zero" in again.log_tail()


def test_second_daemon_on_the_same_state_or_port_says_so(launch: Launch, tmp_path: Path) -> None:
    daemon = launch()
    code, words = complaint(launch(METER, ready=False))
    assert code == 1
    assert "another jouled uses the state directory" in words
    elsewhere = ("--state", tmp_path / "other", "--listen", daemon.url.removeprefix("http://"))
    code, words = complaint(launch(METER, *elsewhere, ready=False))
    assert code == 1
    assert "is taken by another program" in words
    assert "--listen" in words
    assert "Traceback" not in words


def test_wrong_configuration_is_one_sentence(launch: Launch) -> None:
    code, words = complaint(launch('[serve]\nlissten = "127.0.0.1:1"\n', ready=False))
    assert code == 2
    assert "lissten" in words
    assert "`listen`" in words
    code, words = complaint(launch('[[engines]]\ntype = "vlm"\nurl = "http://127.0.0.1:1"\n', ready=False))
    assert code == 2
    assert "vllm" in words
    assert "Traceback" not in words


def test_required_source_that_is_absent_ends_the_start(launch: Launch, tmp_path: Path) -> None:
    code, words = complaint(launch(f'[power.rapl]\nstartup = "require"\nsysfs_root = "{tmp_path}"\n', ready=False))
    assert code == 2
    assert "rapl is required and does not work" in words
    assert "[power.rapl]" in words


def test_broken_meter_does_not_stop_the_start(launch: Launch) -> None:
    daemon = launch('[power.fake]\nbehaviour = "crash"\n')
    reports = wait_for(lambda: daemon.json("/api/v1/snapshot")["sources"], PATIENCE_SECONDS, "not told")
    assert (reports[0]["state"], reports[0]["reason"]) == ("down", "child_ended")


def test_release_lets_go_of_the_device(launch: Launch, tmp_path: Path, environment: dict[str, str]) -> None:
    daemon = launch()
    until_metered(daemon)
    [child] = children_of(daemon)
    done = jouled(environment, "release", "--for", "1s", "--state", tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "released for 1 s: fake\n"
    assert not is_running(child)
    assert daemon.json("/api/v1/snapshot")["sources"][0]["state"] in {"ok", "released"}
    wait_for(lambda: children_of(daemon), PATIENCE_SECONDS, "it did not come back")


def test_recording_without_serving(tmp_path: Path, environment: dict[str, str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text(METER)
    out = tmp_path / "node.jsonl"
    recorder = LiveDaemon([*QUICK, "record", out, "--config", config], 0, tmp_path / "record.log", environment)
    recorder.start()
    wait_for(lambda: out.exists() and out.read_text().count('"type":"energy"') >= 5, PATIENCE_SECONDS, "no reads")
    assert recorder.stop() == 0, recorder.log_tail()
    short = tmp_path / "short.jsonl"
    done = jouled(environment, "record", short, "--seconds", "1", "--config", config)
    assert done.returncode == 0, done.stderr
    assert '"header"' in short.read_text()


def test_what_was_read_last_is_committed_at_the_end(launch: Launch, tmp_path: Path) -> None:
    """Batches come just after the full second: late in one, half a second of readings is still with the child."""
    daemon = launch(METER, "--record", tmp_path / "out.jsonl")
    until_metered(daemon, 300.0)
    wait_for(lambda: time.time() % 1 > 0.6, PATIENCE_SECONDS, "no such moment", 0.01)
    stopped_ns = time.time_ns()
    assert daemon.stop() == 0
    last = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines() if '"energy"' in line][-1]
    assert stopped_ns - last["t_ns"] < 300_000_000, "the batch of the last second was dropped"
    with closing(sqlite3.connect(tmp_path / "state/jouled.sqlite3")) as store:
        [books] = store.execute("SELECT books FROM books").fetchone()
    raw = msgspec.msgpack.decode(books)["books"]["device_raw"]["gpu0"]
    assert raw[1] == pytest.approx(last["t_ns"], abs=1_000_000)
