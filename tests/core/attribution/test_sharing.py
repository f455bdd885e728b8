"""Equal shares at every instant of a cell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.scenario import START, request

from jouled.core.attribution.cell_rates import Split
from jouled.core.attribution.cells import CELL_NS, cell_of, start_of
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.sharing import SharedTime
from jouled.model.engine import Engine
from jouled.model.parameters import Parameters

CELL = cell_of(START)
BEGIN, END = start_of(CELL), start_of(CELL + 1)
moments = st.integers(BEGIN, END)


def test_a_cell_is_parted_among_those_who_are_there_at_each_instant():
    """One is there for the first 60 ms, another from 20 ms on: 20 + 40/2 and 40/2 + 40 ms."""
    shared = SharedTime(BEGIN, 0, [(BEGIN + 20_000_000, 1), (BEGIN + 60_000_000, -1), (BEGIN, 1)])
    assert shared.at(BEGIN + 60_000_000) - shared.at(BEGIN) == pytest.approx(0.04)
    assert shared.at(END) - shared.at(BEGIN + 20_000_000) == pytest.approx(0.06)
    assert shared.busy_seconds == pytest.approx(0.1)


def test_time_stands_still_while_nobody_is_there():
    shared = SharedTime(BEGIN, 1, [(BEGIN + 30_000_000, -1), (BEGIN + 90_000_000, 1)])
    assert shared.at(BEGIN + 30_000_000) == shared.at(BEGIN + 90_000_000) == pytest.approx(0.03)
    assert shared.busy_seconds == pytest.approx(0.04)


@given(st.lists(st.tuples(moments, moments), max_size=8), st.integers(0, 5))
def test_shares_add_up_to_the_busy_time(stays, always):
    stays = [(min(stay), max(stay)) for stay in stays]
    changes = [change for begin, end in stays for change in ((begin, 1), (end, -1))]
    shared = SharedTime(BEGIN, always, changes)
    shares = always * shared.at(END) + sum(shared.at(end) - shared.at(begin) for begin, end in stays)
    assert shares == pytest.approx(shared.busy_seconds)
    assert shared.busy_seconds <= CELL_NS / 1e9 + 1e-12


def test_a_short_request_pays_for_its_own_instants_only():
    """10 J of static energy in a cell: alone for half of it costs half, with three others an eighth each."""
    book = EngineBook(Engine(name="e", type="vllm", model="8B", devices=("gpu0",)), Parameters())
    book.begin(CELL)
    for number in range(5):
        arrival = 0.0 if number == 0 else 0.05
        book.ended(request(str(number), arrival, prefill=0.01, decode=0.04, prompt=10, generated=2))
    row = book.sweep(CELL + 1, END)[0]
    _, finals = book.close(CELL, row, Split(10_000_000, 0, 10_000_000.0))
    finals += book.close(CELL + 1, book.sweep(CELL + 2, END)[0], Split(0, 0, 0.0))[1]
    shares = {final.event.id: final.resident for final in finals}
    assert shares == {
        "0": pytest.approx(5e6, rel=1e-3),
        **{str(n): pytest.approx(1.25e6, rel=1e-3) for n in range(1, 5)},
    }
