"""The run on a GPU, without one: its arithmetic, and all of it in virtual time over the stub library."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from bench.gpu_validation.judge import wmape
from bench.gpu_validation.load import Arrival, Scheduler, arrivals
from bench.gpu_validation.nvml import Counter, Poller
from bench.gpu_validation.plan import Plan, grid
from bench.gpu_validation.recording import lines
from bench.gpu_validation.records import Curve, Measured, Move, Point, Request, Step, Work, step_work
from bench.gpu_validation.sizes import MODELS, choose
from bench.gpu_validation.step_table import StepTable, fit
from bench.gpu_validation.truth import equal_split, shapley, work_between
from tests.bench.gpu_world import IDLE_WATTS, UNITS
from tests.support.nvml_stub import Controls, build
from tests.support.tools import REPOSITORY

SECOND = 1_000_000_000
TABLE = StepTable(100.0, Work(2.0, 0.1, 0.001, 0.01, 1e-6))


class Clockwork:
    """Clock and engine: a step takes 10 ms."""

    def __init__(self, slots: int = 2) -> None:
        self.slots, self.max_context = slots, 64
        self.t_ns = 5 * SECOND
        self.seen: list[tuple[list[tuple[int, int]], tuple[int, int] | None]] = []

    def now_ns(self) -> int:
        return self.t_ns

    def sleep(self, seconds: float) -> None:
        self.t_ns += round(seconds * 1e9)

    def step(self, decode: Sequence[tuple[int, int]], prompt: tuple[int, int] | None) -> None:
        self.seen.append((list(decode), prompt))
        self.t_ns += 10_000_000


def request(scheduled: float, first: float, last: float, prompt: int, output: int) -> Request:
    times = (round(t * SECOND) for t in (scheduled, scheduled, first, last))
    return Request(f"r{scheduled}", "short", *times, prompt, output)


# --- the step table -------------------------------------------------------------------------------------------------


def points_of(units: Work, watts: float) -> tuple[list[Point], Curve]:
    """Ten seconds of each point of a grid, and the counter over them."""
    points, moves, energy = [], [Move(0, 0)], 0.0
    for number, spec in enumerate(grid(32, 2048)):
        once = step_work([spec.context] * spec.batch, spec.prompt_tokens)
        work = Work(*(100 * amount for amount in once))
        points.append(Point(spec.label, number * 10 * SECOND, (number + 1) * 10 * SECOND, work))
        energy += watts * 10 + sum(unit * amount for unit, amount in zip(units, work, strict=True))
        moves.append(Move((number + 1) * 10 * SECOND, round(1000 * energy)))
    return points, Curve(moves)


def test_the_fit_finds_the_units_that_made_the_energy() -> None:
    points, curve = points_of(UNITS, IDLE_WATTS)
    table = fit(points, curve, IDLE_WATTS)
    assert table.unit_joules == pytest.approx(UNITS, rel=1e-3)
    assert table.worst_fit < 1e-4


def test_no_unit_is_negative_where_a_straight_fit_would_say_so() -> None:
    points, curve = points_of(UNITS._replace(context_tokens=-1e-6), IDLE_WATTS)
    table = fit(points, curve, IDLE_WATTS)
    assert min(table.unit_joules) == 0.0
    assert table.unit_joules.context_tokens == 0.0
    assert table.unit_joules.prompt_tokens == pytest.approx(UNITS.prompt_tokens, rel=0.1)


def test_a_grid_below_the_idle_power_is_an_error() -> None:
    points, curve = points_of(Work(0, 0, 0, 0, 0), IDLE_WATTS)
    with pytest.raises(ValueError, match="less than the idle power"):
        fit(points, curve, 2 * IDLE_WATTS)


def test_a_counter_that_stands_still_is_an_error() -> None:
    with pytest.raises(ValueError, match="moved 1 times"):
        Curve([Move(0, 5)])


def test_the_curve_is_linear_between_moves_and_constant_outside() -> None:
    curve = Curve([Move(10, 1000), Move(20, 3000)])
    assert curve.joules(10, 15) == 1.0
    assert curve.joules(0, 100) == 2.0


# --- the truth ------------------------------------------------------------------------------------------------------


def test_shares_of_two_steps_by_hand() -> None:
    requests = [request(0, 0.1, 0.2, prompt=50, output=2), request(0.1, 0.2, 0.2, prompt=30, output=1)]
    steps = [Step(0, SECOND // 10, (), 0), Step(SECOND // 10, SECOND // 5, (0,), 1)]
    first, second = shapley(TABLE, requests, steps)
    assert first.prefill == pytest.approx(2.0 + 0.01 * 50 + 1e-6 * 50 * 50 / 2)
    assert first.decode == pytest.approx(1.0 + 0.1 + 0.001 * 51)
    assert first.resident == pytest.approx(10 + 5)
    assert second.prefill == pytest.approx(1.0 + 0.01 * 30 + 1e-6 * 30 * 30 / 2)
    assert (second.decode, second.resident) == (0.0, pytest.approx(5.0))
    work = work_between(requests, steps, 0, SECOND)
    assert first.total + second.total == pytest.approx(TABLE.joules(0.2, work))


def test_work_is_counted_in_the_block_where_its_step_began() -> None:
    requests = [request(0, 0.1, 0.3, prompt=50, output=3)]
    steps = [Step(0, 10, (), 0), Step(10, 20, (0,), None), Step(20, 30, (0,), None)]
    assert work_between(requests, steps, 20, 30) == Work(1, 1, 52, 0, 0)


def test_the_yardstick_shares_power_equally() -> None:
    requests = [request(0, 0.5, 2, 1, 2), request(1, 1.5, 2, 1, 2)]
    assert equal_split(Curve([Move(0, 0), Move(2 * SECOND, 4000)]), requests) == pytest.approx([3.0, 1.0])


def test_wmape() -> None:
    assert wmape([2.0, 5.0], [1.0, 4.0]) == pytest.approx(0.4)


# --- the scheduler --------------------------------------------------------------------------------------------------


def test_slots_are_used_again_and_contexts_grow() -> None:
    engine = Clockwork(slots=2)
    scheduler = Scheduler(engine, engine)
    scheduler.serve([Arrival(0.0, "short", 10, 3), Arrival(0.0, "short", 20, 2), Arrival(0.0, "short", 30, 1)], "b")
    prompts = [prompt for _, prompt in engine.seen if prompt]
    assert [tokens for _, tokens in prompts] == [10, 20, 30]
    assert prompts[2][0] in {prompts[0][0], prompts[1][0]}
    decode = [dict(members) for members, _ in engine.seen]
    assert [members.get(prompts[0][0]) for members in decode[1:3]] == [11, 12]
    one, two, three = scheduler.requests
    assert (one.first_ns - 5 * SECOND, one.last_ns - one.first_ns) == (10_000_000, 20_000_000)
    assert two.scheduled_ns == one.first_ns
    assert three.first_ns == three.last_ns
    assert three.scheduled_ns >= min(one.last_ns, two.last_ns)


def test_steps_of_one_busy_stretch_join_and_idle_time_belongs_to_none() -> None:
    engine = Clockwork()
    scheduler = Scheduler(engine, engine)
    scheduler.serve([Arrival(0.0, "short", 10, 3), Arrival(1.0, "long", 10, 2)], "b")
    starts, ends = [s.start_ns for s in scheduler.steps], [s.end_ns for s in scheduler.steps]
    assert starts[1:3] == ends[:2]
    assert starts[3] == 6 * SECOND
    assert [request.generation_tokens for request in scheduler.requests] == [3, 2]


def test_arrivals_fit_a_slot_and_keep_their_rate() -> None:
    coming = list(arrivals(50.0, 40.0, 512, random.Random(3)))
    assert 1850 < len(coming) < 2150
    assert all(one.prompt_tokens + one.generation_tokens < 512 for one in coming)
    assert {one.kind for one in coming} == {"short", "long"}


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_default_budget_gives_each_point_six_seconds_and_stays_below_eight_minutes() -> None:
    plan = Plan(440.0)
    assert plan.point_seconds >= 6.0
    assert not plan.too_short
    assert Plan(200.0).too_short


def test_the_largest_model_that_fits_is_chosen() -> None:
    assert choose(140_000_000_000).name == "random-8B"
    assert choose(MODELS[0].memory_bytes - 1).name == "random-3B"
    assert [round(sizes.parameters / 1e9, 1) for sizes in MODELS] == [8.0, 3.6, 1.5]
    with pytest.raises(ValueError, match="nvidia-smi"):
        choose(1_000_000_000)


def test_a_dry_run_prints_the_plan_and_needs_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_validation", "--dry-run", "--seconds", "300"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "budget 300 s" in done.stdout
    assert "12 points" in done.stdout


# --- the counter ----------------------------------------------------------------------------------------------------


def test_only_moves_are_kept() -> None:
    clock = Clockwork()
    values = iter([5, 5, 6, 6, 6, 9])
    counter = Counter(lambda: next(values), clock)
    for _ in range(6):
        clock.sleep(0.02)
        counter.poll()
    assert [move.millijoules for move in counter.moves] == [5, 6, 9]
    assert counter.moves[1].t_ns - counter.moves[0].t_ns == 40_000_000


def test_a_poll_that_fails_in_the_thread_is_raised_when_it_ends() -> None:
    import pynvml

    asked = []

    def fail() -> int:
        asked.append(1)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    poller = Poller(Counter(fail, Clockwork()))
    with pytest.raises(pynvml.NVMLError), poller:
        poller._thread.join(timeout=10)
    assert len(asked) == 1


# --- all of it ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short run leaves, through the real binding over the stub, judged by the real `jouled replay`."""
    base = tmp_path_factory.mktemp("gpu")
    controls = Controls(base / "controls")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu_world", controls.folder, base / "out", "130"],
        cwd=REPOSITORY,
        env={**os.environ, **controls.environment(build(base / "library"))},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return base / "out"


def results(folder: Path) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}


def test_replay_conserves_and_gives_every_request_its_receipt(folder: Path) -> None:
    rows = results(folder)
    for name in (
        "books: owners and open less measured",
        "measured less what the counter counted",
        "receipts less the books of requests",
        "requests without receipt, or the reverse",
    ):
        assert (rows[name]["value"], rows[name]["holds"]) == (0, True)
    receipts = [json.loads(line) for line in (folder / "receipts.jsonl").read_text().splitlines()]
    measured = Measured.read(folder / "measured.json.gz")
    assert {r["id"]: r["generation_tokens"] for r in receipts} == {r.id: r.generation_tokens for r in measured.requests}


def test_the_step_table_finds_the_world_and_foretells_the_load(folder: Path) -> None:
    rows, found = results(folder), json.loads((folder / "results.json").read_text())
    assert found["static_watts"] == pytest.approx(IDLE_WATTS, rel=0.005)
    assert found["joules_per"]["step"] == pytest.approx(UNITS.steps, rel=0.05)
    assert found["joules_per"]["prompt token"] == pytest.approx(UNITS.prompt_tokens, rel=0.05)
    blocks = [row for name, row in rows.items() if name.startswith("block")]
    assert len(blocks) == 4
    assert all(row["holds"] for row in blocks)


def test_requests_are_close_to_the_truth_and_the_yardstick_is_not(folder: Path) -> None:
    rows = results(folder)
    assert rows["requests: wMAPE against Shapley by the step table"]["holds"]
    assert rows["requests: 1/B(t) is worse by"]["holds"]


def test_the_recording_is_in_order_and_ends_with_idle(folder: Path) -> None:
    recorded = [json.loads(line) for line in (folder / "recording.jsonl").read_text().splitlines()]
    assert [line["type"] for line in recorded[:4]] == ["header", "clock", "device", "engine"]
    times = [line.get("t_ns", line.get("last_token_ns")) for line in recorded[4:]]
    assert times == sorted(times)
    pages = [line for line in recorded if line["type"] == "engine_counters"]
    asked = [line for line in recorded if line["type"] == "request"]
    assert pages[-1]["requests_running"] == 0
    assert pages[-1]["generation_tokens"] == sum(line["generation_tokens"] for line in asked)
    assert pages[-1]["prompt_tokens"] == sum(line["prompt_tokens"] for line in asked)


def test_results_say_on_what_and_what_a_call_costs(folder: Path) -> None:
    text = (folder / "results.md").read_text()
    assert "| gpu | NVIDIA Stub 0 |" in text
    assert "| driver | 999.1 |" in text
    assert "a trial of the script, no validation" in text
    found = json.loads((folder / "results.json").read_text())
    calls = {cost["call"]: cost for cost in found["nvml_calls"]}
    assert calls["nvmlDeviceGetTotalEnergyConsumption"]["median_microseconds"] > 0
    assert calls["8 fields PERF_POLICY"]["error"] == "Not Supported"
    assert found["holds"] is None
    assert found["counter_move_milliseconds"] == pytest.approx(100, abs=21)


def test_what_was_measured_comes_back_from_its_file(folder: Path, tmp_path: Path) -> None:
    measured = Measured.read(folder / "measured.json.gz")
    measured.write(tmp_path / "again.json.gz")
    assert Measured.read(tmp_path / "again.json.gz") == measured
    recorded = (folder / "recording.jsonl").read_text().splitlines()
    idle_watts = json.loads(recorded[2])["idle_watts"]
    assert [json.loads(line) for line in recorded] == list(lines(measured, idle_watts))
