"""The step table: joules of an engine step, affine in its work, fitted to the points of the grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.gpu_validation.records import NO_WORK, Curve, Point, Work

RIDGE = 1e-9
"""Keeps the normal equations solvable where a grid is too small for its unknowns; far below any measured effect."""


@dataclass(frozen=True)
class StepTable:
    """`joules = static_watts · seconds + Σ unit_joules · work`; `worst_fit`: largest relative error of a point."""

    static_watts: float
    unit_joules: Work
    worst_fit: float = 0.0

    def dynamic_joules(self, work: Work) -> float:
        """Energy of this work beyond the static power."""
        return sum(unit * amount for unit, amount in zip(self.unit_joules, work, strict=True))

    def joules(self, seconds: float, work: Work) -> float:
        """Energy of this work done in this time."""
        return self.static_watts * seconds + self.dynamic_joules(work)


def fit(points: Sequence[Point], curve: Curve, static_watts: float) -> StepTable:
    """Least squares of relative errors, no coefficient below zero (the most negative one is left out, again and again).

    Raises `ValueError` without points.
    """
    if not points:
        raise ValueError("no points of the grid to fit")
    measured = [curve.joules(point.start_ns, point.end_ns) for point in points]
    dynamic = [
        joules - static_watts * (point.end_ns - point.start_ns) / 1e9
        for joules, point in zip(measured, points, strict=True)
    ]
    weights = [1 / joules for joules in measured]
    used = list(range(len(NO_WORK)))
    while True:
        rows = [[point.work[c] * w for c in used] for point, w in zip(points, weights, strict=True)]
        found = least_squares(rows, [joules * w for joules, w in zip(dynamic, weights, strict=True)])
        if min(found) >= 0:
            break
        used.pop(found.index(min(found)))
        if not used:
            raise ValueError("every point of the grid used less than the idle power: the counter or the idle is wrong")
    units = dict(zip(used, found, strict=True))
    table = StepTable(static_watts, Work(*(units.get(c, 0.0) for c in range(len(NO_WORK)))))
    errors = [
        table.joules((p.end_ns - p.start_ns) / 1e9, p.work) / j - 1 for p, j in zip(points, measured, strict=True)
    ]
    return StepTable(static_watts, table.unit_joules, max(map(abs, errors)))


def least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The x that makes rows·x closest to the values; columns are scaled to their own size first."""
    columns = len(rows[0])
    scales = [max(abs(row[c]) for row in rows) or 1.0 for c in range(columns)]
    scaled = [[row[c] / scales[c] for c in range(columns)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) + RIDGE * (i == j) for j in range(columns)]
        + [sum(row[i] * value for row, value in zip(scaled, values, strict=True))]
        for i in range(columns)
    ]
    return [x / scale for x, scale in zip(_solve(matrix), scales, strict=True)]


def _solve(matrix: list[list[float]]) -> list[float]:
    """Gauss-Jordan elimination of an augmented matrix, with pivots."""
    size = len(matrix)
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(matrix[i][column]))
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        matrix[column] = [x / matrix[column][column] for x in matrix[column]]
        for i in range(size):
            if i != column:
                factor = matrix[i][column]
                matrix[i] = [x - factor * y for x, y in zip(matrix[i], matrix[column], strict=True)]
    return [row[-1] for row in matrix]
