"""Measures of many seeds as rows, and the rows as a table: the floor judges the worst seed, the goal the median one."""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from bench.oracle import cases
from bench.oracle.cases import Bound, Case
from bench.oracle.score import Measures
from bench.rows import Row

_COLUMNS = ("wmape", "wmape_prefill", "wmape_decode", "against_equal_share", "coverage", "rms", "conserved")


def rows_of(case: Case, seeds: Sequence[int], measured: Sequence[Measures]) -> Iterator[Row]:
    """One row for each measure of a case."""
    bounds = cases.asked(case)
    common = {"case": case.name, "seeds": len(seeds), "requests": int(sum(m["requests"] for m in measured))}
    for name in measured[0]:
        if name == "requests":
            continue
        values = [measures[name] for measures in measured]
        worst = worst_of(name, values)
        yield {
            "name": name,
            "value": short(statistics.median(values)),
            "worst": short(worst),
            "worst_seed": seeds[values.index(worst)],
            "unit": "1",
            **common,
            **verdict(name, statistics.median(values), worst, bounds.get(name)),
        }


def verdict(name: str, median: float, worst: float, bound: Bound | None) -> Row:
    """What was asked and whether it was met; `None` where nothing was asked."""
    if name == "rms":
        least, most = cases.RMS_GOAL
        return {"floor": None, "goal": [least, most], "met_floor": None, "met_goal": least <= median <= most}
    if bound is None:
        return {"floor": None, "goal": None, "met_floor": None, "met_goal": None}
    higher = name.startswith(cases.HIGHER_IS_BETTER)
    met_floor = worst >= bound.floor if higher else worst <= bound.floor
    met_goal = median >= bound.goal if higher else median <= bound.goal
    return {"floor": bound.floor, "goal": bound.goal, "met_floor": met_floor, "met_goal": met_goal}


def worst_of(name: str, values: Sequence[float]) -> float:
    """The lowest of what should be high, else the one farthest from zero."""
    return min(values) if name.startswith(cases.HIGHER_IS_BETTER) else max(values, key=abs)


def short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def table(found: Iterable[Sequence[Row]]) -> str:
    """Median / worst of the judged measures; `!` at a missed floor, `-` at a missed goal."""
    lines = [f"{'case':36}" + "".join(f"{name[:19]:>21}" for name in _COLUMNS)]
    for rows in found:
        by_name = {row["name"]: row for row in rows}
        lines.append(f"{rows[0]['case']:36}" + "".join(f"{_cell(by_name[name]):>21}" for name in _COLUMNS))
    judged = [row for rows in found for row in rows if row["goal"] is not None]
    floors = [row for row in judged if row["met_floor"] is not None]
    met = f"floors met: {sum(row['met_floor'] for row in floors)} of {len(floors)}"
    return "\n".join((*lines, f"{met}; goals met: {sum(row['met_goal'] for row in judged)} of {len(judged)}"))


def _cell(row: Row) -> str:
    mark = "!" if row["met_floor"] is False else "-" if row["met_goal"] is False else " "
    return f"{row['value']:.3f} / {row['worst']:.3f}{mark}"
