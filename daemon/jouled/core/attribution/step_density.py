"""How many steps an engine makes per second while a prefill runs, against the time in which none does.

A step that carries a chunk of a prompt takes several times as long, so decode does not advance evenly in time. The
ratio r of both rates follows from counted steps by least squares over the last minutes (attribution.md section 3.5);
cells then expect decode work by density instead of evenly.
"""

from collections.abc import Sequence

from jouled.core.attribution.load import Row

LOWEST, HIGHEST = 0.02, 1.0
INTERVALS_MIN = 8
FORGET = 0.992
"""Per look, every 5 s: half of the weight is gone after seven minutes."""


class StepDensity:
    """Least squares of counted steps on busy seconds without and with prefill."""

    def __init__(self) -> None:
        self._plain2 = self._both = self._prefill2 = self._plain_steps = self._prefill_steps = 0.0
        self._intervals = 0

    def observe(self, rows: Sequence[Row], steps: float) -> None:
        """Take what was counted between two looks."""
        if steps <= 0.0:
            return
        prefill = sum(row.prefilling for row in rows)
        plain = sum(row.busy for row in rows) - prefill
        self._plain2 = FORGET * self._plain2 + plain * plain
        self._both = FORGET * self._both + plain * prefill
        self._prefill2 = FORGET * self._prefill2 + prefill * prefill
        self._plain_steps = FORGET * self._plain_steps + plain * steps
        self._prefill_steps = FORGET * self._prefill_steps + prefill * steps
        self._intervals += 1

    @property
    def ratio(self) -> float:
        """Steps per second with a prefill over those without; 1 until enough was seen."""
        determinant = self._plain2 * self._prefill2 - self._both * self._both
        if self._intervals < INTERVALS_MIN or determinant <= 1e-9 * self._plain2 * self._prefill2:
            return 1.0
        plain = self._plain_steps * self._prefill2 - self._prefill_steps * self._both
        prefill = self._prefill_steps * self._plain2 - self._plain_steps * self._both
        return min(max(prefill / plain, LOWEST), HIGHEST) if plain > 0.0 else 1.0

    def weigh(self, rows: Sequence[Row]) -> None:
        """Give every row its density: r while a prefill runs, 1 without; the decode work of all rows stays the same."""
        ratio = self.ratio
        densities = [1.0 - (1.0 - ratio) * row.prefilling for row in rows]
        work = sum(row.decode for row in rows)
        weighed = sum(row.decode * density for row, density in zip(rows, densities, strict=True))
        if work <= 0.0 or weighed <= 0.0:
            return
        for row, density in zip(rows, densities, strict=True):
            row.density = density * work / weighed
