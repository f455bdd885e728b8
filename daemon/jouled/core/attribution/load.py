"""The work that known requests ask for, per channel and cell, by difference arrays.

A request adds entries only where its rates change (service start, first token, last token); sweeping the cells in
order sums them up. Rates are per second; X of a cell is the exact integral of the total rate over it. Integer counts
of what is active say when a running sum is exactly zero: floats leave residue behind that would draw energy.
"""

from collections.abc import Sequence
from math import fsum
from typing import NamedTuple

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS
from jouled.core.attribution.request import Request
from jouled.core.attribution.work import Work
from jouled.model.units import NANOSECONDS_PER_SECOND

REFRESH_CELLS = 6000
"""Running sums start over every ten minutes: what adding and taking away leaves behind would grow for as long as an
engine never pauses."""


class Cell:
    """Entries of one cell: `x*` add to its own integral, `d*` change the running rates from the next cell's start on.

    resident and decode rates are counts (1 per request); `edges` are busy intervals that begin or end inside the cell,
    as offsets in nanoseconds. `starting`, `turning`, `ending`: the requests whose service starts inside it, that get
    their first token there, and their last.
    """

    __slots__ = (
        "d_attention",
        "d_prefill",
        "d_resident",
        "edges",
        "ending",
        "n_decode",
        "n_leaving",
        "n_prefill",
        "starting",
        "turning",
        "x_attention",
        "x_decoders",
        "x_prefill",
        "x_resident",
    )

    def __init__(self) -> None:
        self.x_resident = self.x_prefill = self.x_attention = self.x_decoders = 0.0
        self.d_prefill = self.d_attention = 0.0
        self.d_resident = 0
        self.n_prefill = self.n_decode = self.n_leaving = 0
        self.edges: list[tuple[int, int]] = []
        self.starting: list[Request] = []
        self.turning: list[Request] = []
        self.ending: list[Request] = []


class Row:
    """What one cell asks for: integrals per channel, the busy fraction, and whether anybody is there at all.

    members: residents at its start; pace: step time per second; elapsed: step time at the cell's start. `steps`,
    `decode` and `kv` follow step time and are filled in for a whole range (`step_clock.py`, `decode.py`).
    `starting`, `turning`, `ending` as in a `Cell`.
    """

    __slots__ = (
        "active",
        "attention",
        "busy",
        "decode",
        "decoders",
        "elapsed",
        "ending",
        "generation_expected",
        "kv",
        "lost",
        "members",
        "pace",
        "prefill",
        "prompt_expected",
        "resident",
        "starting",
        "steps",
        "turning",
    )

    def __init__(self) -> None:
        self.resident = self.prefill = self.attention = self.decode = self.kv = self.decoders = 0.0
        self.busy = self.steps = self.generation_expected = self.prompt_expected = 0.0
        self.pace, self.elapsed = 1.0, 0.0
        self.members = 0
        self.active = False
        self.lost: Lost | None = None
        self.starting: Sequence[Request] = ()
        self.turning: Sequence[Request] = ()
        self.ending: Sequence[Request] = ()


class Lost(NamedTuple):
    """Work in one cell that no event told of, in the units of a row; its energy is `unreported`.

    prefilling: of `resident`, the seconds of prefill, where an engine's counters are all there is.
    """

    resident: float
    prefill: float
    attention: float
    decode: float
    kv: float
    prefilling: float = 0.0


class Load:
    """The running sums of one engine's known requests."""

    def __init__(self) -> None:
        self.cells: dict[int, Cell] = {}
        self.residents = 0
        self._prefills = self._decodes = 0
        self._prefill = self._attention = 0.0
        self._swept = 0

    def _cell(self, index: int) -> Cell:
        found = self.cells.get(index)
        if found is None:
            found = self.cells[index] = Cell()
        return found

    def insert(self, request: Request) -> None:
        """Add a request; the rows of its cells tell when it starts, gets its first token and ends."""
        work = request.work
        start_ns, first_ns, last_ns = work.begin_ns, work.turn_ns, work.end_ns
        starting = self._cell(start_ns // CELL_NS)
        turning = self._cell(first_ns // CELL_NS)
        ending = self._cell(last_ns // CELL_NS)
        start_offset, first_offset, last_offset = start_ns % CELL_NS, first_ns % CELL_NS, last_ns % CELL_NS
        starting.starting.append(request)
        turning.turning.append(request)
        ending.ending.append(request)
        _add_residency(starting, start_offset, ending, last_offset)
        if first_ns > start_ns and work.computed:
            _add_prefill(starting, start_offset, turning, first_offset, work)
        if last_ns > first_ns and work.decode_rate:
            turning.x_decoders += (CELL_NS - first_offset) / NANOSECONDS_PER_SECOND
            turning.n_decode += 1
            ending.x_decoders -= (CELL_NS - last_offset) / NANOSECONDS_PER_SECOND
            ending.n_decode -= 1

    def sweep(self, index: int) -> Row:
        """Sum up the next cell; cells are swept in order, each once."""
        self._swept += 1
        if self._swept % REFRESH_CELLS == 0:
            self._refresh()
        row = Row()
        delta = CELL_SECONDS
        row.members = self.residents
        row.resident = self.residents * delta
        row.prefill = self._prefill * delta
        row.attention = self._attention * delta
        row.decoders = self._decodes * delta
        row.busy, row.active = float(self.residents > 0), self.residents > 0
        cell = self.cells.pop(index, None)
        if cell is not None:
            row.starting, row.turning, row.ending = cell.starting, cell.turning, cell.ending
            self._sweep_entries(row, cell)
        return row

    def _refresh(self) -> None:
        """Take the running sums from the entries to come: what every request adds in all is zero."""
        if self._prefills:
            self._prefill = -fsum(cell.d_prefill for cell in self.cells.values())
            self._attention = -fsum(cell.d_attention for cell in self.cells.values())

    def _sweep_entries(self, row: Row, cell: Cell) -> None:
        touched_prefill = self._prefills or cell.n_prefill or cell.x_prefill
        touched_decode = self._decodes or cell.n_decode or cell.x_decoders
        row.busy = 1.0 if self.residents > cell.n_leaving else union_ns(cell.edges) / CELL_NS
        row.active = row.busy > 0.0
        row.resident = max(row.resident + cell.x_resident, 0.0)
        row.prefill = max(row.prefill + cell.x_prefill, 0.0) if touched_prefill else 0.0
        row.attention = max(row.attention + cell.x_attention, 0.0) if touched_prefill else 0.0
        row.decoders = max(row.decoders + cell.x_decoders, 0.0) if touched_decode else 0.0
        self.residents += cell.d_resident
        self._prefills += cell.n_prefill
        self._decodes += cell.n_decode
        self._prefill = self._prefill + cell.d_prefill if self._prefills else 0.0
        self._attention = self._attention + cell.d_attention if self._prefills else 0.0


def _add_residency(starting: Cell, begin: int, ending: Cell, end: int) -> None:
    """A request is there from offset `begin` of one cell to offset `end` of another, or of the same."""
    if starting is ending:
        starting.x_resident += (end - begin) / NANOSECONDS_PER_SECOND
        starting.edges.append((begin, end))
        return
    starting.x_resident += (CELL_NS - begin) / NANOSECONDS_PER_SECOND
    starting.d_resident += 1
    starting.edges.append((begin, CELL_NS))
    ending.x_resident -= (CELL_NS - end) / NANOSECONDS_PER_SECOND
    ending.d_resident -= 1
    ending.n_leaving += 1
    ending.edges.append((0, end))


def _add_prefill(starting: Cell, begin: int, turning: Cell, end: int, work: Work) -> None:
    """A request prefills from offset `begin` of one cell to offset `end` of another, or of the same."""
    prefill_rate, attention_rate = work.prefill_rate, work.attention_rate
    seconds = (CELL_NS - begin) / NANOSECONDS_PER_SECOND
    starting.x_prefill += prefill_rate * seconds
    starting.x_attention += attention_rate * seconds
    starting.d_prefill += prefill_rate
    starting.d_attention += attention_rate
    starting.n_prefill += 1
    seconds = (CELL_NS - end) / NANOSECONDS_PER_SECOND
    turning.x_prefill -= prefill_rate * seconds
    turning.x_attention -= attention_rate * seconds
    turning.d_prefill -= prefill_rate
    turning.d_attention -= attention_rate
    turning.n_prefill -= 1


def union_ns(intervals: list[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total = reach = 0
    for begin, end in sorted(intervals):
        if end > reach:
            total += end - max(begin, reach)
            reach = end
    return total
