"""What a device draws while nobody is served, learned where nobody configured it (attribution.md section 3.4)."""

from bisect import insort
from collections import deque
from statistics import median

from jouled.core.attribution.cells import CELL_SECONDS
from jouled.model.device import Device
from jouled.model.units import MICROJOULES_PER_JOULE

IDLE_CELLS_MIN = 10
KEEP_CELLS = 600
SHARE_OF_LIMIT = 0.15
SHARE_OF_LOWEST_BUSY = 0.8
LOWEST_BUSY_QUANTILE = 0.02
LIMIT_OVER_HIGHEST = 1.25
"""A power limit that nobody told, over the highest power seen."""


class IdlePower:
    """The idle power of one device, in microjoules per cell.

    `source` says where it comes from: `configured`, `learned` (median of idle cells) or `estimated` (a share of the
    power limit, bounded by what the device draws when it draws least).
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        per_cell = CELL_SECONDS * MICROJOULES_PER_JOULE
        self._configured = None if device.idle_watts is None else device.idle_watts * per_cell
        self._limit = None if device.max_watts is None else device.max_watts * per_cell
        self.uplift_uj = None if device.uplift_watts is None else max(device.uplift_watts, 0.0) * per_cell
        self._idle: deque[int] = deque(maxlen=KEEP_CELLS)
        self._busy: deque[int] = deque(maxlen=KEEP_CELLS)
        self._busy_sorted: list[int] = []

    def observe(self, energy_uj: int, *, idle: bool) -> None:
        """Take one cell: `idle` if no request was within a cell of it."""
        if self._configured is not None:
            return
        if idle:
            self._idle.append(energy_uj)
            return
        if len(self._busy) == KEEP_CELLS:
            self._busy_sorted.remove(self._busy[0])
        self._busy.append(energy_uj)
        insort(self._busy_sorted, energy_uj)

    @property
    def source(self) -> str:
        """Where the figure comes from."""
        if self._configured is not None:
            return "configured"
        return "learned" if len(self._idle) >= IDLE_CELLS_MIN else "estimated"

    def per_cell_uj(self) -> float:
        """Idle energy of one cell, microjoules."""
        if self._configured is not None:
            return self._configured
        if len(self._idle) >= IDLE_CELLS_MIN:
            return float(median(self._idle))
        if not self._busy_sorted:
            return SHARE_OF_LIMIT * self._limit if self._limit else 0.0
        lowest = SHARE_OF_LOWEST_BUSY * self._busy_sorted[int(LOWEST_BUSY_QUANTILE * len(self._busy_sorted))]
        return min(SHARE_OF_LIMIT * (self._limit or LIMIT_OVER_HIGHEST * self._busy_sorted[-1]), lowest)
