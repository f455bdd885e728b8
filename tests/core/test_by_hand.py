"""The worked examples of docs/attribution.md."""

import pytest
from tests.core.scenario import request

from jouled.core.attribution.cell_rates import Split
from jouled.core.attribution.cells import CELL_NS, start_of
from jouled.core.attribution.census import Look
from jouled.core.attribution.decode import Decoding
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.learning import Learning
from jouled.core.attribution.load import Row
from jouled.core.attribution.request import Request
from jouled.core.attribution.step_clock import StepClock
from jouled.core.attribution.work import Work
from jouled.model.engine import Engine
from jouled.model.parameters import Parameters

CELL = 17_000_000_000
ONE_JOULE_PER_STEP = {"weight_bytes": 1 / 60e-12}
A_TENTH_PER_TOKEN = {"active_parameters": 0.1 / (2 * 0.45e-12), "parameters": 0.1 / (2 * 0.45e-12)}


def test_two_requests_in_one_cell():
    engine = Engine(
        name="e", layers=1, hidden_size=1, kv_bytes_per_token=1.0, **ONE_JOULE_PER_STEP, **A_TENTH_PER_TOKEN
    )
    book = EngineBook(engine, Parameters())
    book.begin(CELL)
    begin, end = CELL * CELL_NS, (CELL + 1) * CELL_NS
    requests = []
    for name, rate in (("first", 20), ("second", 30)):
        work = Work(begin - 1, begin, end, 0, 0, 0, 1 + rate // 10, begin)
        requests.append(Request(request(name, 0.0), work, ()))
        book._load.insert(requests[-1])
    [row] = book.sweep(CELL + 1, end)
    unexplained, finals = book.close(CELL, row, Split(energy=40_000_000, idle=0, static=10_000_000.0))
    assert unexplained == 0
    assert not finals, "their last token lies on the edge: the next cell reads them out"
    book.open_uj()
    assert [(r.resident + r.decode_total) / 1e6 for r in requests] == [
        pytest.approx(19.5),
        pytest.approx(20.5),
    ]


def test_tokens_follow_the_steps():
    """Nine steps in the first cell, one in the second, beside a prefill."""
    rows = [Row(), Row()]
    for row, steps in zip(rows, (9, 1), strict=True):
        row.pace = steps / 0.1
    begin, end = start_of(CELL), start_of(CELL + 2)
    member = Request(request("a", 0.0), Work(begin - 1, begin, end, 0, 100, 100, 11, begin), ())
    Decoding(CELL, rows).fill([member])
    assert [row.decode for row in rows] == [pytest.approx(9), pytest.approx(1)]
    assert [row.kv for row in rows] == [pytest.approx(940.5), pytest.approx(109.5)]


def test_where_a_prompts_step_was():
    """5 s between looks, 201 steps: a prompt was computed for one of them, in one step; the other 200 came evenly."""
    rows = [Row() for _ in range(50)]
    for row in rows:
        row.busy = 1.0
    begin, first = start_of(CELL + 10), start_of(CELL + 20)
    member = Request(request("a", 0.0), Work(begin, first, first, 600, 0, 600, 1, begin), ())
    assert StepClock().set(CELL, rows, [look_at(0, 0), look_at(50, 201)], [member])
    assert [rows[cell].steps for cell in (0, 15, 49)] == [pytest.approx(5.0), pytest.approx(0.1), pytest.approx(5.0)]


def look_at(cell: int, steps: int) -> Look:
    look = Look(start_of(CELL + cell), None, None)
    look.steps = steps
    return look


def test_the_uplift_comes_away_from_its_prior_as_windows_come_in():
    """Idle and uplift 100 W, half a joule per joule that the priors expect; windows of 5 s, full and half full."""
    learning, fitted = Learning(), []
    assert learning.fitted.uplift == 0.5
    for _ in range(10):
        for joules_expected in (1000.0, 500.0):
            work = [(joules_expected / 50, 0.0, 0.0, 0.0, 0.0)] * 50
            above_uj = [1e6 * (500.0 + 0.5 * joules_expected) / 50] * 50
            learning.observe([1.0] * 50, work, above_uj, 10e6, 0.0, ())
        fitted.append(learning.fitted.uplift)
    assert fitted == sorted(fitted)
    assert (fitted[0], fitted[-1]) == (pytest.approx(0.945, abs=0.002), pytest.approx(0.995, abs=0.002))
