"""What an engine's own meter says about the priors: the uplift of being busy, and the ratios between channels.

Energy above idle over windows of ten seconds and more is regressed on busy time and on each channel's expected work,
with the priors as a ridge (docs/attribution.md, learning). The uplift is weakly identifiable without the ratios being
free as well, so all are fitted together; whether the ratios are used is the operator's choice.
"""

from collections.abc import Collection, Sequence
from math import sqrt
from typing import NamedTuple

from jouled.core.attribution.cells import CELL_SECONDS

UPLIFT_PRIOR, UPLIFT_SPREAD = 0.5, 0.35
"""Uplift as a multiple of idle power (attribution.md section 3.4)."""
UPLIFT_MAX = 1.5
SCALE_SPREAD, ENERGY_SPREAD, RATIO_SPREAD = 2.0, 0.5, 0.25
"""Standard deviations of a channel's ratio to its prior: what is common to all (the meter's to tell), common to those
that read bytes or to those that compute, and its own (ADR 0009)."""
READS_BYTES = (True, False, False, False, True)
"""Step and KV cost energy per byte; prefill, attention and decode per FLOP."""
UPLIFT_SPREAD_GUESSED, UPLIFT_MIN_GUESSED = 0.6, -0.5
"""The same where idle power itself is a guess: what is fitted is then the sum of both."""
FACTOR_MIN, FACTOR_MAX = 0.25, 4.0
WINDOWS_MIN = 2
WINDOW_CELLS = 50
PREFILLS_PER_WINDOW = 20.0
FORGET = 0.99
"""Per window: half of the weight is gone after about twelve minutes."""
NOISE_MIN = 0.03
"""Relative error of a window's energy that the model leaves in any case: edges, the meter's phase."""
NOISE_MIN_BENT = 0.1
"""The same where the work is less surely what is expected, so that the fit would bend the uplift for it (ADR 0009): a
mixture of experts, whose steps read more weights the more tokens they carry."""
NOISE_UNTOLD = 10.0
"""Added to a window's error, in quadrature, per share of the engine's tokens of which no event told, for as long as the
window is remembered: the first minutes of an engine that tells of long answers only when they end would otherwise bend
the fit for an hour (ADR 0008)."""
SIZE = 6
"""Unknowns: uplift, and the five channels."""

Matrix = list[list[float]]


class Fitted(NamedTuple):
    """uplift: as a multiple of idle power; factors: by what each channel's prior is to be multiplied, 1 on average."""

    uplift: float
    factors: tuple[float, ...]


class Learning:
    """Least squares with forgetting; `fitted` begins as the priors have it.

    mixture: of experts. idle_guessed: idle power, in which uplift is told, is no figure of this device.
    """

    def __init__(self, *, mixture: bool = False, idle_guessed: bool = False) -> None:
        self._mixture = mixture
        self.idle_guessed = idle_guessed
        self._window = [0.0] * (SIZE + 1)
        self._cells = 0
        self._windows = 0
        self._weight = 0.0
        self._moments: Matrix = [[0.0] * (SIZE + 1) for _ in range(SIZE + 1)]
        self.fitted = Fitted(UPLIFT_PRIOR, (1.0,) * (SIZE - 1))

    def observe(
        self,
        busy: Sequence[float],
        expected: Sequence[Sequence[float]],
        above_idle_uj: Sequence[float],
        idle_uj: float,
        prefill_seconds: float,
        looks: Collection[int],
        *,
        told: float = 1.0,
    ) -> None:
        """Take a range of cells: busy fraction, expected work by channel, energy above idle; and fit anew.

        idle_uj: idle energy of a cell; prefill_seconds: a usual prefill, of which a window must hold many. Windows end
        where the page was looked at (`looks`: cells of the range before which that was), for there steps are exact.
        told: the share of the engine's tokens of which events told; what is missing would bend the uplift as well.
        """
        weight = NOISE_MIN**2 / (NOISE_MIN**2 + (NOISE_UNTOLD * (1.0 - told)) ** 2)
        cells_min = max(WINDOW_CELLS, round(PREFILLS_PER_WINDOW * prefill_seconds / CELL_SECONDS))
        window = self._window
        taken = 0
        for cell, (fraction, work, energy_uj) in enumerate(zip(busy, expected, above_idle_uj, strict=True), start=1):
            window[0] += fraction * idle_uj
            for channel, share in enumerate(work, start=1):
                window[channel] += share
            window[SIZE] += energy_uj
            self._cells += fraction > 0.0
            if self._cells >= cells_min and (cell in looks or not looks):
                taken += self._take(window, weight)
                window = self._window = [0.0] * (SIZE + 1)
                self._cells = 0
        if taken and self._windows >= WINDOWS_MIN:
            self.fitted = self._fit(NOISE_MIN_BENT if self._mixture else NOISE_MIN)

    def _take(self, window: Sequence[float], weight: float) -> bool:
        """Add one window, relative to its energy so that all of one weight count the same."""
        energy_uj = window[SIZE]
        if energy_uj <= 0.0 or sum(window[1:SIZE]) <= 0.0:
            return False
        row = [value / energy_uj for value in window]
        for i, left in enumerate(row):
            moments = self._moments[i]
            for j, right in enumerate(row):
                moments[j] = FORGET * moments[j] + weight * left * right
        self._weight = FORGET * self._weight + weight
        self._windows += 1
        return True

    def _fit(self, noise_min: float) -> Fitted:
        scale = self._scale()
        estimate = [UPLIFT_PRIOR, *([scale] * (SIZE - 1))]
        noise = 5 * noise_min
        for _ in range(3):
            estimate = self._ridge(scale, noise)
            noise = max(noise_min, sqrt(self._residual(estimate) / self._weight))
        clipped = [min(max(value / scale, FACTOR_MIN), FACTOR_MAX) for value in estimate[1:]]
        uplift = min(max(estimate[0], UPLIFT_MIN_GUESSED if self.idle_guessed else 0.0), UPLIFT_MAX)
        return Fitted(uplift, tuple(clipped))

    def _scale(self) -> float:
        """Joules measured per joule expected, with the uplift as the prior has it."""
        moments = self._moments
        squares = sum(sum(moments[i][1:SIZE]) for i in range(1, SIZE))
        product = sum(moments[SIZE][1:SIZE]) - UPLIFT_PRIOR * sum(moments[0][1:SIZE])
        total = sum(moments[SIZE][1:SIZE])
        return max(product, 0.05 * total) / squares

    def _ridge(self, scale: float, noise: float) -> list[float]:
        """Posterior mean under ratios around a common, nearly free scale."""
        spread = UPLIFT_SPREAD_GUESSED if self.idle_guessed else UPLIFT_SPREAD
        matrix = [[self._moments[i][j] / noise**2 for j in range(SIZE)] for i in range(SIZE)]
        vector = [self._moments[i][SIZE] / noise**2 for i in range(SIZE)]
        matrix[0][0] += spread**-2
        vector[0] += UPLIFT_PRIOR * spread**-2
        for i, row in enumerate(_PRECISION, start=1):
            for j, value in enumerate(row, start=1):
                matrix[i][j] += value / scale**2
            vector[i] += sum(row) / scale
        return solve(matrix, vector)

    def _residual(self, estimate: Sequence[float]) -> float:
        """Sum of squared relative errors of the windows under an estimate."""
        signed = [*estimate, -1.0]
        return max(sum(a * b * self._moments[i][j] for i, a in enumerate(signed) for j, b in enumerate(signed)), 0.0)


def _precision() -> Matrix:
    """Inverse of the priors' covariance of the five ratios, each 1 on average."""
    covariance = [
        [
            SCALE_SPREAD**2 + ENERGY_SPREAD**2 * (mine == other) + RATIO_SPREAD**2 * (i == j)
            for j, other in enumerate(READS_BYTES)
        ]
        for i, mine in enumerate(READS_BYTES)
    ]
    return [solve(covariance, [float(i == j) for j in range(SIZE - 1)]) for i in range(SIZE - 1)]


def solve(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    """Solution of a small symmetric positive definite system, by elimination."""
    size = len(vector)
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            rows[below] = [b - factor * p for b, p in zip(rows[below], rows[pivot], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        solution[i] = (rows[i][size] - sum(rows[i][j] * solution[j] for j in range(i + 1, size))) / rows[i][i]
    return solution


_PRECISION = _precision()
