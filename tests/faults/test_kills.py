"""SIGKILL at random points: what the daemon has acknowledged comes out once, and no counter goes back.

`JOULED_KILLS` says how often (12 by default; `make faults` kills 200 times).
"""

import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from tests.e2e.conftest import Launch
from tests.e2e.engine_server import EngineServer
from tests.faults.conftest import ENGINE, FINAL_SECONDS, Lives, Victoria, configuration, influx
from tests.faults.traffic import Sent, Traffic
from tests.support.live import Page, wait_for

KILLS = int(os.environ.get("JOULED_KILLS", "12"))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.mark.timeout(600 + 30 * KILLS)
def test_nothing_is_lost_and_nothing_counts_twice(
    launch: Launch, engine: tuple[EngineServer, str], victoria: Victoria, tmp_path: Path
) -> None:
    page, url = engine
    out = tmp_path / "receipts.jsonl"
    lines = f'[sinks.jsonl]\npath = "{out}"\nstreams = ["receipts"]\nmax_mebibytes = 1024'
    lives = Lives(launch, configuration(url, influx(victoria), lines))
    traffic = Traffic(page, ENGINE, lambda: lives.url, per_second=10.0)
    traffic.start()
    dice = random.Random(7)
    seen: dict[str, float] = {}
    for _ in range(KILLS):
        time.sleep(dice.uniform(0.0, 2.5))
        seen = no_counter_went_back(seen, lives.daemon)
        lives.kill_and_return()
    traffic.stop()
    wait_for(lambda: len(ids_in(out)) >= len(traffic.kept), FINAL_SECONDS, "receipts are missing", 0.5)
    assert traffic.refused == []
    counted = ids_in(out)
    assert {name: count for name, count in counted.items() if count > 1} == {}
    assert set(counted) == set(traffic.kept)
    assert_told_truly(out, traffic.kept)
    wait_for(lambda: in_database(victoria) == expected(traffic.kept), FINAL_SECONDS, "the database lacks receipts", 0.5)
    final = lives.daemon.page()
    no_counter_went_back(seen, lives.daemon)
    assert final.total("jouled_requests_total", engine=ENGINE) == len(traffic.kept)
    assert_balanced(final)
    assert lives.daemon.json("/api/v1/snapshot")["balance_uj"] == 0


def no_counter_went_back(before: Mapping[str, float], daemon) -> dict[str, float]:
    """All counters of the page, none below what was seen; processes count for themselves."""
    now = {name: value for name, value in daemon.page().counters().items() if "process_" not in name}
    assert {name: (value, now.get(name)) for name, value in before.items() if now.get(name, 0.0) < value} == {}
    return now


def ids_in(path: Path) -> Counter[str]:
    if not path.exists():
        return Counter()
    return Counter(msgspec.json.decode(line)["id"] for line in path.read_bytes().splitlines())


def assert_told_truly(path: Path, kept: Mapping[str, Sent]) -> None:
    for line in path.read_bytes().splitlines():
        told = msgspec.json.decode(line)
        sent = kept[told["id"]]
        assert (told["prompt_tokens"], told["generation_tokens"]) == (sent.prompt_tokens, sent.generation_tokens)
        assert abs(told["last_token_ns"] - sent.last_token_ns) < 1_000_000
        assert told["joules"] >= 0.0


def in_database(victoria: Victoria) -> list[tuple[int, int]]:
    """Millisecond of the last token and generated tokens of every receipt."""
    found = victoria.series("jouled_request_generation_tokens")
    return sorted(
        (milliseconds, round(value))
        for series in found
        for milliseconds, value in zip(series["timestamps"], series["values"], strict=True)
    )


def expected(kept: Mapping[str, Sent]) -> list[tuple[int, int]]:
    return sorted((sent.last_token_ns // 1_000_000, sent.generation_tokens) for sent in kept.values())


def assert_balanced(page: Page) -> None:
    owners = page.total("jouled_energy_joules_total", quality="measured")
    opened = page.total("jouled_open_energy_joules", quality="measured")
    assert owners + opened == pytest.approx(page.total("jouled_boundary_energy_joules_total", boundary="compute"))
