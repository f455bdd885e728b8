"""Engines that nobody tells requests of: the work of each cell from their counters alone, and joules by phase.

Cells, channels and prices are the same; who was served is not known, so nobody gets a receipt. Tokens counted between
two looks at the page are spread evenly over that time, residents are what the running gauge says.
"""

from collections.abc import Sequence
from itertools import pairwise

from jouled.core.attribution.cells import CELL_SECONDS, cell_of, start_of
from jouled.core.attribution.census import Census
from jouled.core.attribution.load import Lost, Row
from jouled.core.attribution.lost import LostWork
from jouled.core.attribution.request import Parts, Prefix
from jouled.model.units import nanoseconds

UNTOLD_NS = nanoseconds(3600.0)
"""Counters that move for so long without one request event belong to an engine whose events come no more."""
CHUNK_TOKENS = 2048
"""Prompt tokens per step while nothing decodes (attribution.md section 3.4)."""


class Silence:
    """Whether an engine's requests are told of: from the first event on, until counters move alone for an hour."""

    def __init__(self) -> None:
        self._ever_told = False
        self._moved_ns: int | None = None

    def told(self) -> None:
        """A request was told of."""
        self._ever_told, self._moved_ns = True, None

    def moved(self, t_ns: int) -> None:
        """The engine's token counters have moved."""
        self._moved_ns = t_ns if self._moved_ns is None else self._moved_ns

    def lasts(self, now_ns: int) -> bool:
        """Whether the counters are all there is."""
        if self._moved_ns is None:
            return False
        return not self._ever_told or now_ns - self._moved_ns > UNTOLD_NS


class CountedWork:
    """The work that counters tell of, and what closed cells gave it by phase, microjoules."""

    def __init__(self) -> None:
        self.parts = Parts()

    def fill(self, census: Census, begin: int, rows: Sequence[Row], lost: LostWork, tpot_seconds: float) -> None:
        """Set the work of a range that begins with cell `begin`, look by look."""
        end = begin + len(rows)
        looks = census.around(start_of(begin), start_of(end))
        edges = sorted({begin, *(cell_of(look.t_ns) for look in looks if begin < cell_of(look.t_ns) < end), end})
        for low, high in pairwise(edges):
            generated = lost.counted(census, "generation", low, high) or 0.0
            computed = lost.counted(census, "prompt", low, high) or 0.0
            seconds = (high - low) * CELL_SECONDS
            prefilling = computed / max(lost.mean_computed, 1.0) * lost.mean_prefill_seconds
            running = [look.running for look in census.around(start_of(low), start_of(high))]
            resident = max(_members(running, works=generated + computed > 0.0) * seconds, prefilling)
            if not any(running):
                resident = min(max(resident, generated * tpot_seconds + prefilling), seconds)
            if resident > 0.0:
                prefilling = resident if generated <= 0.0 else min(prefilling, resident)
                self._fill(rows[low - begin : high - begin], generated, computed, resident, prefilling, lost)

    @staticmethod
    def _fill(
        rows: Sequence[Row], generated: float, computed: float, resident: float, prefilling: float, lost: LostWork
    ) -> None:
        seconds = len(rows) * CELL_SECONDS
        count = len(rows)
        for row in rows:
            row.lost = Lost(
                resident=resident / count,
                prefill=computed / count,
                attention=computed / count * lost.mean_computed / 2,
                decode=generated / count,
                kv=generated / count * lost.mean_computed,
                prefilling=prefilling / count,
            )
            row.busy, row.active = min(resident / seconds, 1.0), True
            decode_steps = generated / max(resident / seconds, 1.0)
            row.steps = (decode_steps or computed / CHUNK_TOKENS) / count

    def book(self, work: Lost, rates: Prefix) -> None:
        """A cell with this work closes at these prices, microjoules per unit of work."""
        parts = self.parts
        parts.resident += rates.resident * work.resident
        parts.prefill_step += rates.step * work.prefilling
        parts.prefill += rates.prefill * work.prefill
        parts.attention += rates.attention * work.attention
        parts.decode_step += rates.step * (work.resident - work.prefilling)
        parts.decode += rates.decode * work.decode
        parts.kv += rates.kv * work.kv

    def take(self) -> tuple[int, int, int]:
        """Whole microjoules of prefill, decode and residency; each is handed out once."""
        parts = self.parts
        whole = int(parts.prefill_total), int(parts.decode_total), int(parts.resident)
        parts.prefill -= whole[0]
        parts.decode -= whole[1]
        parts.resident -= whole[2]
        return whole

    @property
    def open_uj(self) -> float:
        """What has not been handed out, microjoules."""
        return self.parts.total


def _members(running: Sequence[int | None], *, works: bool) -> float:
    """Requests running between two looks: their mean where work was done, one where the page does not tell."""
    told = [gauge for gauge in running if gauge is not None]
    if not told:
        return float(works)
    return sum(told) / len(told) if works else float(min(told))
