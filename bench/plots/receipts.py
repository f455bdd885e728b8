"""Figure 3: every request of a run, its receipt against the truth, with two sigma either way."""

from collections.abc import Sequence
from math import ceil, floor, log10

from bench.oracle import cases
from bench.oracle.scenario import Scenario, build
from bench.oracle.telling import name_of
from bench.oracle.trial import estimate
from bench.plots.svg import INK, Axis, Drawing

from jouled.model.receipt import Receipt

CASE, SEED, REQUESTS = "short_answers", 1, 2_000
DOT, BAND = "#1f77b4", "#6baed6"
SIDE, LEFT, TOP = 560, 70, 30

Pair = tuple[float, float, float]
"""True joules as the meter's gain shows them, joules of the receipt, two sigma."""


def draw(seed: int = SEED, requests: int = REQUESTS) -> str:
    """All requests that were told of."""
    scenario = build(next(case for case in cases.CASES if case.name == CASE), seed, requests)
    receipts, _ = estimate(scenario)
    return _figure(_pairs(scenario, receipts))


def _pairs(scenario: Scenario, receipts: dict[str, Receipt]) -> list[Pair]:
    told = [number for number, job in enumerate(scenario.jobs) if job.told]
    pairs = [(scenario.run.served[number].joules, receipts[name_of(number)]) for number in told]
    return [(true * scenario.meters.gain, r.joules, 2 * (r.sigma_joules or 0.0)) for true, r in pairs]


def _figure(pairs: Sequence[Pair]) -> str:
    figure = Drawing(LEFT + SIDE + 20, TOP + SIDE + 50)
    low = 10.0 ** floor(log10(min(min(true, told) for true, told, _ in pairs)))
    high = 10.0 ** ceil(log10(max(max(true, told) for true, told, _ in pairs)))
    x = Axis(low=low, high=high, begin=LEFT, end=LEFT + SIDE, logarithmic=True)
    y = Axis(low=low, high=high, begin=TOP + SIDE, end=TOP, logarithmic=True)
    for tick in (10.0**power for power in range(round(log10(low)), round(log10(high)) + 1)):
        figure.line((x.at(tick), y.begin), (x.at(tick), y.end))
        figure.line((x.begin, y.at(tick)), (x.end, y.at(tick)))
        figure.text(x.at(tick), y.begin + 18, f"{tick:g}", anchor="middle")
        figure.text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", anchor="end")
    figure.bars(((x.at(a), y.at(max(b - s, low)), y.at(b + s)) for a, b, s in pairs), BAND, opacity=0.2)
    figure.dots(((x.at(true), y.at(told)) for true, told, _ in pairs), DOT, size=2.5, opacity=0.7)
    figure.line((x.begin, y.begin), (x.end, y.end), INK)
    within = sum(abs(true - told) <= s for true, told, s in pairs)
    words = f"{CASE.replace('_', ' ')}, seed {SEED}: {100 * within / len(pairs):.1f} % of {len(pairs)} within two sigma"
    figure.text(LEFT, 18, words)
    figure.text(LEFT + SIDE / 2, y.begin + 38, "true joules of a request", anchor="middle")
    figure.upright(18, TOP + SIDE / 2, "joules of its receipt, ± two sigma")
    return figure.done()
