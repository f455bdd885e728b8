"""Figure 1: the error of every case and seed, by the method and by simple splits, and what was asked."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

from bench.oracle import cases
from bench.oracle.cases import Case
from bench.oracle.score import Measures
from bench.oracle.trial import measure
from bench.plots.svg import INK, Axis, Drawing

SEEDS, REQUESTS = range(1, 6), 2_000
METHODS = {
    "wmape": ("channels (jouled)", "#1f77b4"),
    "wmape_equal_share": ("1/B(t)", "#ff7f0e"),
    "wmape_time": ("resident time", "#8c6bb1"),
    "wmape_total_tokens": ("total tokens", "#999999"),
}
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
WIDTH, LEFT, TOP, ROW = 900, 270, 60, 24


def draw(seeds: Sequence[int] = SEEDS, requests: int = REQUESTS) -> str:
    """All cases of which an error is asked."""
    chosen = [case for case in cases.CASES if case.wmape]
    pairs = list(product(chosen, seeds))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        measured = pool.map(measure, *zip(*pairs, strict=True), [requests] * len(pairs))
        found: dict[str, list[Measures]] = {case.name: [] for case in chosen}
        for (case, _), measures in zip(pairs, measured, strict=True):
            found[case.name].append(measures)
    return _figure(chosen, found)


def _figure(chosen: Sequence[Case], found: Mapping[str, Sequence[Measures]]) -> str:
    bottom = TOP + ROW * len(chosen)
    figure = Drawing(WIDTH, bottom + 50)
    axis = Axis(low=TICKS[0], high=TICKS[-1], begin=LEFT, end=WIDTH - 25, logarithmic=True)
    for tick in TICKS:
        figure.line((axis.at(tick), TOP), (axis.at(tick), bottom))
        figure.text(axis.at(tick), bottom + 18, f"{100 * tick:g} %", anchor="middle")
    figure.text((LEFT + WIDTH) / 2, bottom + 38, "wMAPE of joules per request, logarithmic", anchor="middle")
    for position, (name, color) in enumerate(METHODS.values()):
        figure.swatch(LEFT + 135 * position, 20, color, name)
    figure.line((LEFT, 33), (LEFT, 45), INK, width=2)
    figure.text(LEFT + 8, 44, "floor, asked of the worst seed")
    figure.line((LEFT + 270, 33), (LEFT + 270, 45), INK, dashes="2 2")
    figure.text(LEFT + 278, 44, "goal, asked of the median")
    for position, case in enumerate(chosen):
        _row(figure, axis, TOP + ROW * (position + 0.5), case, found[case.name])
    return figure.done()


def _row(figure: Drawing, axis: Axis, y: float, case: Case, seeds: Sequence[Measures]) -> None:
    figure.text(LEFT - 12, y + 4, case.name.replace("_", " "), anchor="end")
    figure.line((LEFT, y), (axis.end, y))
    if case.wmape:
        floor, goal = axis.at(case.wmape.floor), axis.at(case.wmape.goal)
        figure.line((floor, y - 9), (floor, y + 9), INK, width=2)
        figure.line((goal, y - 9), (goal, y + 9), INK, dashes="2 2")
    for name, (_, color) in reversed(METHODS.items()):
        figure.dots([(axis.at(measures[name]), y) for measures in seeds], color, opacity=0.7)
