"""The worked example of docs/attribution.md."""

import pytest
from tests.core.scenario import request

from jouled.core.attribution.cells import CELL_NS
from jouled.core.attribution.engine import EngineBook, Split
from jouled.core.attribution.load import Work
from jouled.core.attribution.priors import Betas
from jouled.core.attribution.request import Request
from jouled.model.engine import Engine
from jouled.model.parameters import Parameters

CELL = 17_000_000_000


def test_two_requests_in_one_cell():
    book = EngineBook(Engine(name="e"), Parameters())
    book.betas = Betas(step=1.0, prefill=0.0, attention=0.0, decode=0.1, kv=0.0, source="configuration")
    book.begin(CELL)
    begin, end = CELL * CELL_NS, (CELL + 1) * CELL_NS
    requests = []
    for name, rate in (("first", 20), ("second", 30)):
        work = Work(begin - 1, begin, end, 0, 0, 0, 1 + rate // 10, begin)
        requests.append(Request(request(name, 0.0), work, ()))
        book._load.insert(work, requests[-1])
    [row] = book.sweep(CELL + 1, end)
    unexplained, finals = book.close(CELL, row, Split(energy=40_000_000, idle=0, static=10_000_000.0))
    assert unexplained == 0
    assert not finals, "their last token lies on the edge: the next cell reads them out"
    book.open_uj()
    assert [(r.parts.resident + r.parts.decode_total) / 1e6 for r in requests] == [
        pytest.approx(19.5),
        pytest.approx(20.5),
    ]
