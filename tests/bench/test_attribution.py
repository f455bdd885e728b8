"""The judge: simple splits add up to the meter, verdicts are right, and a tiny run goes through the daemon's path."""

import json
import sys
from pathlib import Path

import pytest
from bench import attribution
from bench.oracle import cases, truth
from bench.oracle.baselines import SPLITS, Stay, equal_share, measured
from bench.oracle.cases import CASES, Bound
from bench.oracle.engine import Curve
from bench.oracle.report import rows_of, table, verdict, worst_of
from bench.oracle.scenario import build
from bench.oracle.score import conserved, judge, wmape
from bench.oracle.trial import estimate
from msgspec import structs

from jouled.app.runtime.recording.recording import Broken, read

BY_NAME = {case.name: case for case in CASES}
ENERGY = Curve([0.0, 10.0], [0.0, 1_000.0])


def stay(begin: float, end: float, prompt: int = 10, generation: int = 10) -> Stay:
    return Stay(begin, end, prompt, generation)


def test_residents_share_each_instant_equally() -> None:
    assert equal_share([stay(0.0, 4.0), stay(2.0, 4.0), stay(6.0, 8.0)], ENERGY) == pytest.approx([300.0, 100.0, 200.0])


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_hands_out_what_was_measured_while_somebody_was_there(name: str) -> None:
    stays = [stay(0.0, 4.0, 5, 1), stay(2.0, 4.0, 100, 7), stay(6.0, 8.0, 2, 90)]
    assert sum(SPLITS[name](stays, ENERGY)) == pytest.approx(600.0)


def test_the_meters_of_a_group_are_added_where_they_moved() -> None:
    first = [(0.0, 0), (1.0, 0), (2.0, 2_000_000)]
    second = [(0.5, 0), (2.0, 3_000_000)]
    together = measured([first, second])
    assert together.seconds == [0.0, 0.5, 1.0, 2.0]
    assert together.joules == pytest.approx([0.0, 0.5, 2.0, 5.0])


def test_wmape_weighs_by_the_truth() -> None:
    assert wmape([(90.0, 100.0), (2.0, 1.0)]) == pytest.approx(11 / 101)


def test_the_floor_judges_the_worst_seed_and_the_goal_the_median() -> None:
    bound = Bound(0.03, 0.015)
    assert verdict("wmape", 0.014, 0.031, bound)["met_floor"] is False
    assert verdict("wmape", 0.014, 0.031, bound)["met_goal"] is True
    assert verdict("against_equal_share", 7.0, 2.9, Bound(3.0, 6.0))["met_floor"] is False
    assert verdict("against_equal_share", 7.0, 3.1, Bound(3.0, 6.0))["met_goal"] is True
    assert verdict("rms", 1.3, 2.0, None)["met_goal"] is False
    assert worst_of("coverage", [0.9, 0.8]) == 0.8
    assert worst_of("bias", [0.1, -0.2]) == -0.2


def test_every_case_is_asked_for_coverage_and_conservation_and_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)
    for case in CASES:
        assert {"coverage", "conserved"} <= cases.asked(case).keys()
        assert not case.beside or case.beside in BY_NAME
    assert cases.KEPT_SEEDS.keys() <= BY_NAME.keys()


def test_a_tiny_run_is_judged_and_reported() -> None:
    case = BY_NAME["steady"]
    scenario = build(case, 1, 120)
    receipts, snapshot = estimate(scenario)
    measures = judge(scenario, receipts, snapshot)
    assert len(receipts) == measures["requests"] == 120
    assert measures["missing"] == measures["foreign"] == 0
    assert measures["conserved"] == 1.0
    assert 0 < measures["wmape"] < 0.2
    assert measures["wmape"] < measures["wmape_equal_share"]
    rows = list(rows_of(case, [1, 2], [measures, measures | {"wmape": 1.0}]))
    (row,) = [row for row in rows if row["name"] == "wmape"]
    assert (row["worst_seed"], row["met_floor"], row["requests"]) == (2, False, 240)
    assert "steady" in table([rows])


def test_receipts_that_miss_or_err_are_seen() -> None:
    scenario = build(BY_NAME["steady"], 1, 120)
    receipts, snapshot = estimate(scenario)
    good = judge(scenario, receipts, snapshot)
    doubled = {name: structs.replace(receipt, joules=2 * receipt.joules) for name, receipt in receipts.items()}
    assert judge(scenario, doubled, snapshot)["wmape"] > 0.8
    fewer = dict(list(receipts.items())[:100])
    assert judge(scenario, fewer, snapshot)["missing"] == 20
    assert judge(scenario, fewer, snapshot)["wmape"] > good["wmape"]
    wrong = structs.replace(snapshot.total, idle_uj=snapshot.total.idle_uj + 1)
    assert not conserved(scenario, structs.replace(snapshot, total=wrong))


def test_duplicates_and_permutations_pass_through() -> None:
    scenario = build(BY_NAME["shuffled_duplicates"], 1, 120)
    receipts, snapshot = estimate(scenario)
    assert judge(scenario, receipts, snapshot)["missing"] == 0
    assert conserved(scenario, snapshot)


def test_a_written_scenario_replays_and_has_its_truth_beside(tmp_path: Path) -> None:
    scenario = build(BY_NAME["unreported"], 3, 60)
    truth.write(scenario, tmp_path)
    lines = list(read(tmp_path / "unreported-3.jsonl"))
    assert not [line for line in lines if isinstance(line, Broken)]
    told = json.loads((tmp_path / "unreported-3.truth.json").read_text(encoding="utf-8"))
    assert len(told["requests"]) == 60
    owed = sum(r[part] for r in told["requests"] for part in ("prefill_uj", "decode_uj", "resident_uj"))
    assert owed + told["idle_uj"] == pytest.approx(scenario.run.curve.joules[-1] * 1e6, abs=200)


def test_the_command_prints_rows_and_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "arrivals.csv"
    rows = "".join(f"2023-11-16 18:17:{second:02d}.5000000,100,20\n" for second in range(30))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}", encoding="utf-8")
    arguments = ["attribution", "--cases", "steady", "--seeds", "1", "--requests", "30", "--jobs", "1", "--per-seed"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--trace", str(trace)])
    attribution.main()
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert {row["case"] for row in found} == {"steady", "trace_arrivals"}
    judged = next(row for row in found if row.get("name") == "wmape" and row["case"] == "steady")
    assert {"value", "unit", "floor", "goal", "met_floor", "met_goal", "seeds", "requests"} <= judged.keys()
    assert "trace_arrivals" in printed.err


def test_an_unknown_case_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["attribution", "--cases", "nonsense"])
    with pytest.raises(SystemExit, match="unknown case: nonsense"):
        attribution.main()
