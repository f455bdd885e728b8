"""Figure 2: a minute of a run, what the meter showed and what the channels expect of it."""

from collections.abc import Sequence
from itertools import pairwise
from unittest.mock import patch

from bench.oracle import cases
from bench.oracle.meter import Reading
from bench.oracle.scenario import Scenario, build
from bench.oracle.telling import at_ns
from bench.oracle.trial import estimate
from bench.plots.svg import INK, Axis, Drawing

from jouled.core.attribution.cell_rates import Split
from jouled.core.attribution.cells import CELL_SECONDS, cell_of
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.load import Row
from jouled.core.attribution.request import Request

CASE, SEED, REQUESTS = "bursty", 1, 1_000
SETTLED_SECONDS = 120.0
"""The uplift has been fitted by then."""
SECONDS = 60.0
CELLS = round(SECONDS / CELL_SECONDS)
LAYERS = {
    "idle power": "#d9d9d9",
    "uplift": "#b0b0b0",
    "step": "#9ecae1",
    "decode": "#3182bd",
    "KV reads": "#756bb1",
    "prefill": "#fdae6b",
    "attention": "#e6550d",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 400, 65, 885, 45, 350
TICK_WATTS, TICK_SECONDS = 100, 10

Watts = tuple[float, ...]
"""One cell's expectation by layer; the work of a channel in any unit."""


def draw(seed: int = SEED, requests: int = REQUESTS) -> str:
    """The minute around the end of the first burst after `SETTLED_SECONDS`."""
    scenario = build(next(case for case in cases.CASES if case.name == CASE), seed, requests)
    cells = _expected(scenario)
    begin = _begin(scenario)
    first = cell_of(at_ns(begin))
    shown = [cells.get(cell, (0.0,) * len(LAYERS)) for cell in range(first, first + CELLS)]
    (reads,) = scenario.meters.reads
    measured = [(s - begin, w) for s, w in _watts(reads) if begin <= s < begin + SECONDS]
    joules = sum(w * (later - s) for (s, w), (later, _) in pairwise([*measured, (SECONDS, 0.0)]))
    return _figure(_scaled(shown, joules), measured)


def _expected(scenario: Scenario) -> dict[int, Watts]:
    """Every closed cell's idle power and uplift in watts, and the work of its channels in joules of the priors."""
    cells: dict[int, Watts] = {}
    close = EngineBook.close
    idle_watts = scenario.physics.idle_watts * scenario.meters.gain

    def watched(book: EngineBook, cell: int, row: Row, split: Split) -> tuple[int, list[Request]]:
        beta = book.betas
        cells[cell] = (
            idle_watts,
            idle_watts * book.uplift * row.busy,
            beta.step * row.steps,
            beta.decode * row.decode,
            beta.kv * row.kv,
            beta.prefill * row.prefill,
            beta.attention * row.attention,
        )
        return close(book, cell, row, split)

    with patch.object(EngineBook, "close", watched):
        estimate(scenario)
    return cells


def _begin(scenario: Scenario) -> float:
    """Two thirds of the minute lie before the end of a burst."""
    served = sorted((one.start, one.last) for one in scenario.run.served)
    busy_until = 0.0
    for start, last in served:
        if start > busy_until + 1.0 and busy_until > SETTLED_SECONDS:
            break
        busy_until = max(busy_until, last)
    return round(busy_until - SECONDS * 2 / 3)


def _watts(reads: Sequence[Reading]) -> list[tuple[float, float]]:
    """Mean power from each read to the next, at the first of both."""
    return [(s, (more - less) / 1e6 / (later - s)) for (s, less), (later, more) in pairwise(reads)]


def _scaled(cells: Sequence[Watts], joules: float) -> list[Watts]:
    """All channels times one factor, so that the whole minute has the measured joules."""
    static = sum(idle + uplift for idle, uplift, *_ in cells) * CELL_SECONDS
    factor = (joules - static) / CELL_SECONDS / sum(sum(work) for _, _, *work in cells)
    return [(idle, uplift, *(factor * work for work in works)) for idle, uplift, *works in cells]


def _figure(cells: Sequence[Watts], measured: Sequence[tuple[float, float]]) -> str:
    figure = Drawing(WIDTH, HEIGHT)
    x = Axis(low=0.0, high=SECONDS, begin=LEFT, end=RIGHT)
    most = max(*(sum(cell) for cell in cells), *(watts for _, watts in measured))
    y = Axis(low=0.0, high=TICK_WATTS * (int(most / TICK_WATTS) + 1), begin=BOTTOM, end=TOP)
    xs = [x.at(index * CELL_SECONDS) for index in range(len(cells) + 1)]
    for count in range(len(LAYERS), 0, -1):
        figure.area(xs, [y.at(sum(cell[:count])) for cell in cells], BOTTOM, list(LAYERS.values())[count - 1])
    moments = [x.at(seconds) for seconds, _ in measured]
    figure.steps([*moments, x.end], [y.at(watts) for _, watts in measured], INK, width=0.8)
    for tick in range(0, int(y.high) + 1, TICK_WATTS):
        figure.text(LEFT - 8, y.at(tick) + 4, str(tick), anchor="end")
        figure.line((LEFT - 5, y.at(tick)), (LEFT, y.at(tick)), INK)
    for tick in range(0, int(SECONDS) + 1, TICK_SECONDS):
        figure.text(x.at(tick), BOTTOM + 18, str(tick), anchor="middle")
    figure.text((LEFT + RIGHT) / 2, BOTTOM + 38, "seconds", anchor="middle")
    figure.upright(18, (TOP + BOTTOM) / 2, "watts")
    for index, (name, color) in enumerate(LAYERS.items()):
        figure.swatch(LEFT + 98 * index, 24, color, name)
    figure.line((LEFT + 98 * len(LAYERS), 20), (LEFT + 98 * len(LAYERS) + 14, 20), INK)
    figure.text(LEFT + 98 * len(LAYERS) + 19, 24, "measured")
    return figure.done()
