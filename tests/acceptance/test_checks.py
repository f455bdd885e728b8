"""The acceptance checks can fail: each is fed with books that are good, and with books that are not."""

import json
from typing import Any

import pytest
from tests.acceptance import checks
from tests.acceptance.scraper import Scraped
from tests.acceptance.truth import Books
from tests.support.live import Page, Verdicts

SECOND_NS = 1_000_000_000


def page(compute: float, decode: float, opened: float) -> Page:
    return Page(
        "# TYPE jouled_boundary_energy_joules_total counter\n"
        f'jouled_boundary_energy_joules_total{{boundary="compute"}} {compute}\n'
        "# TYPE jouled_energy_joules_total counter\n"
        f'jouled_energy_joules_total{{engine="a",model_name="m",owner="decode",quality="measured"}} {decode}\n'
        'jouled_energy_joules_total{engine="c",model_name="m",owner="decode",quality="estimated"} 7.0\n'
        "# TYPE jouled_open_energy_joules gauge\n"
        f'jouled_open_energy_joules{{quality="measured"}} {opened}\n'
        "# TYPE jouled_process_cpu_seconds_total counter\n"
        f"jouled_process_cpu_seconds_total {1000 - compute}\n"
    )


def scraped(*pages: Page) -> Scraped:
    seen = Scraped()
    for each in pages:
        seen.add(each)
    return seen


def group(**energy_uj: int) -> dict[str, Any]:
    book = {f"{name}_uj": energy_uj.get(name, 0) for name in ("measured", "open", *checks.OWNERS)}
    return {"devices": ["gpu0"], "engines": ["a"], "quality": "measured", **book}


def snapshot(book: dict[str, Any]) -> dict[str, Any]:
    return {"groups": [book], "total": book, "boundaries_uj": {"compute": book["measured_uj"]}}


def books(gpus_uj: int = 0, engines_uj: int = 0, aborted_uj: int = 0) -> Books:
    return Books(t_ns=0, gpus_uj=gpus_uj, engines_uj=engines_uj, aborted_uj=aborted_uj)


@pytest.mark.parametrize(("decode", "failed"), [(80.0, 0), (80.001, 1)])
def test_conservation_on_scrapes(decode: float, failed: int) -> None:
    verdicts = Verdicts()
    good = snapshot(group(measured=10, decode=8, open=2))
    checks.check_conservation(verdicts, scraped(page(100.0, decode, 20.0)), [good])
    assert len(verdicts.failed) == failed


def test_one_microjoule_too_many_in_a_snapshot() -> None:
    verdicts = Verdicts()
    checks.check_conservation(
        verdicts, scraped(page(100.0, 80.0, 20.0)), [snapshot(group(measured=10, decode=8, open=3))]
    )
    assert verdicts.failed == ["conservation to the microjoule in /api/v1/snapshot"]


@pytest.mark.parametrize(
    ("book", "failed"),
    [
        (group(measured=1000, decode=900, unreported=20, idle=70, unattributed=10), []),
        (group(measured=1000, decode=900, unreported=20, idle=69, unattributed=11), ["unattributed"]),
        (group(measured=1000, decode=900, unreported=31, idle=69), ["unreported"]),
        (group(measured=1000, decode=800, unreported=20, idle=150, downtime=30), []),
        (group(measured=1000, decode=800, unreported=20, idle=100, downtime=20), ["owned by requests"]),
        (group(measured=1000, decode=0, open=1000), ["unreported", "owned by requests"]),
    ],
)
def test_shares(book: dict[str, Any], failed: list[str]) -> None:
    verdicts = Verdicts()
    checks.check_shares(verdicts, snapshot(book), books(), books(engines_uj=100_000, aborted_uj=2_000))
    assert verdicts.failed == failed


def truth(microjoules: int, finished_ns: int) -> dict[str, Any]:
    return {"outcome": "completed", "uj": microjoules, "finished_ns": finished_ns}


@pytest.mark.parametrize(
    ("told", "failed"),
    [
        ({"x": 9.0, "y": 11.0}, []),
        ({"x": 8.9, "y": 11.0}, ["wMAPE of joules"]),
        ({"x": 10.0}, ["every finished request has a final receipt"]),
    ],
)
def test_receipts(told: dict[str, float], failed: list[str]) -> None:
    true = {
        "x": truth(10_000_000, 70 * SECOND_NS),
        "y": truth(10_000_000, 80 * SECOND_NS),
        "too early": truth(10_000_000, 59 * SECOND_NS),
        "too late": truth(10_000_000, 100 * SECOND_NS),
    }
    receipts = [{"id": name, "joules": joules, "provisional": False} for name, joules in told.items()]
    verdicts = Verdicts()
    checks.check_receipts(verdicts, receipts, true, 60 * SECOND_NS, 90 * SECOND_NS)
    assert verdicts.failed == failed


def test_a_counter_that_goes_back_is_told_and_raises_the_increase(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = Verdicts()
    seen = scraped(page(100.0, 80.0, 20.0), page(110.0, 90.0, 20.0), page(105.0, 85.0, 20.0))
    checks.check_counters(verdicts, seen)
    line = json.loads(capsys.readouterr().out)
    assert (line["verdict"], line["drops"]) == ("FAIL", 2)
    assert seen.increase_joules() == 10.0 + 105.0


@pytest.mark.parametrize(("end_uj", "failed"), [(10_090_000, 0), (10_200_000, 1)])
def test_increase(end_uj: int, failed: int) -> None:
    verdicts = Verdicts()
    seen = scraped(page(100.0, 80.0, 20.0), page(110.0, 90.0, 20.0))
    checks.check_increase(verdicts, seen, books(gpus_uj=0), books(gpus_uj=end_uj))
    assert len(verdicts.failed) == failed
