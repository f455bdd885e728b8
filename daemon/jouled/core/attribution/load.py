"""The work that known requests ask for, per channel and cell, by difference arrays.

A request adds entries only where its rates change (service start, first token, last token); sweeping the cells in
order sums them up. Rates are per second; X of a cell is the exact integral of the total rate over it. Integer counts
of what is active say when a running sum is exactly zero: floats leave residue behind that would draw energy.
"""

from math import fsum
from typing import NamedTuple

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS
from jouled.model.units import NANOSECONDS_PER_MILLISECOND, NANOSECONDS_PER_SECOND

SHORTEST_DECODE_NS = NANOSECONDS_PER_MILLISECOND
"""No engine decodes faster; rates of shorter spans would only lose the sums' precision."""
REFRESH_CELLS = 6000
"""Running sums start over every ten minutes: what adding and taking away leaves behind would grow for as long as an
engine never pauses."""


class Work:
    """One request as the channels see it, times in core nanoseconds; start ≥ 1 ms before first token.

    `from_ns`: the request's cells before this were closed without it; its rates apply from here on, or from its start
    (`begin_ns`). `prefill_rate`: computed prompt tokens per second of prefill; `attention_rate`: query-key pairs per
    second of prefill, for a computed token attends the cached and, on average, half the rest; `decode_rate`: output
    tokens per second after the first, 0 where there are none or all came at once.
    """

    __slots__ = (
        "attention_rate",
        "begin_ns",
        "cached",
        "computed",
        "decode_rate",
        "first_ns",
        "from_ns",
        "generated",
        "last_ns",
        "prefill_rate",
        "prompt",
        "start_ns",
    )

    def __init__(
        self,
        start_ns: int,
        first_ns: int,
        last_ns: int,
        computed: int,
        cached: int,
        prompt: int,
        generated: int,
        from_ns: int,
    ) -> None:
        self.start_ns, self.first_ns, self.last_ns = start_ns, first_ns, last_ns
        self.computed, self.cached, self.prompt, self.generated = computed, cached, prompt, generated
        self.from_ns = from_ns
        self.begin_ns = max(from_ns, start_ns)
        self.prefill_rate = self.attention_rate = self.decode_rate = 0.0
        prefill_ns, decode_ns = first_ns - start_ns, last_ns - first_ns
        if computed and prefill_ns > 0:
            self.prefill_rate = computed * NANOSECONDS_PER_SECOND / prefill_ns
            self.attention_rate = computed * (cached + computed / 2) * NANOSECONDS_PER_SECOND / prefill_ns
        if generated > 1 and decode_ns >= SHORTEST_DECODE_NS:
            self.decode_rate = (generated - 1) * NANOSECONDS_PER_SECOND / decode_ns


class Cell:
    """Entries of one cell: `x*` add to its own integral, `d*` change the running rates from the next cell's start on.

    resident and decode rates are counts (1 per request); `edges` are busy intervals that begin or end inside the cell,
    as offsets in nanoseconds; `marks` are what to read out inside it.
    """

    __slots__ = (
        "d_attention",
        "d_prefill",
        "d_resident",
        "edges",
        "ending",
        "marks",
        "n_decode",
        "n_prefill",
        "x_attention",
        "x_decoders",
        "x_prefill",
        "x_resident",
    )

    def __init__(self) -> None:
        self.x_resident = self.x_prefill = self.x_attention = self.x_decoders = 0.0
        self.d_prefill = self.d_attention = 0.0
        self.d_resident = 0
        self.n_prefill = self.n_decode = 0
        self.ending = 0
        self.edges: list[tuple[int, int]] = []
        self.marks: list[tuple[int, object]] = []


class Row:
    """What one cell asks for: integrals per channel, the busy fraction, and whether anybody is there at all.

    members: residents at its start; pace: step time per second; elapsed: step time at the cell's start. `steps`,
    `decode` and `kv` follow step time and are filled in for a whole range (`step_clock.py`, `decode.py`).
    """

    __slots__ = (
        "active",
        "attention",
        "busy",
        "decode",
        "decoders",
        "elapsed",
        "generation_expected",
        "kv",
        "lost",
        "marks",
        "members",
        "pace",
        "prefill",
        "prompt_expected",
        "resident",
        "steps",
    )

    def __init__(self) -> None:
        self.resident = self.prefill = self.attention = self.decode = self.kv = self.decoders = 0.0
        self.busy = self.steps = self.generation_expected = self.prompt_expected = 0.0
        self.pace, self.elapsed = 1.0, 0.0
        self.members = 0
        self.active = False
        self.lost: Lost | None = None
        self.marks: list[tuple[int, object]] = []


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

    def cell(self, index: int) -> Cell:
        """The entries of a cell not swept yet."""
        found = self.cells.get(index)
        if found is None:
            found = self.cells[index] = Cell()
        return found

    def insert(self, work: Work, mark: object) -> None:
        """Add a request; `mark` is handed back at its start (0), first token (1) and last token (2)."""
        start_ns = work.begin_ns
        first_ns = max(work.first_ns, start_ns)
        last_ns = max(work.last_ns, first_ns)
        start_cell, start_offset = divmod(start_ns, CELL_NS)
        first_cell, first_offset = divmod(first_ns, CELL_NS)
        last_cell, last_offset = divmod(last_ns, CELL_NS)
        starting, turning, ending = self.cell(start_cell), self.cell(first_cell), self.cell(last_cell)
        starting.marks.append((0, mark))
        turning.marks.append((1, mark))
        ending.marks.append((2, mark))
        _add_residency(starting, start_offset, ending, last_offset)
        if first_ns > start_ns and work.computed:
            _add_prefill(starting, start_offset, work, 1)
            _add_prefill(turning, first_offset, work, -1)
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
            row.marks = cell.marks
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
        row.busy = 1.0 if self.residents > cell.ending else union_ns(cell.edges) / CELL_NS
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
    ending.ending += 1
    ending.edges.append((0, end))


def _add_prefill(cell: Cell, offset: int, work: Work, sign: int) -> None:
    """From an offset of a cell on, a request prefills (+1) or no longer does (−1)."""
    rest = sign * (CELL_NS - offset) / NANOSECONDS_PER_SECOND
    cell.x_prefill += work.prefill_rate * rest
    cell.x_attention += work.attention_rate * rest
    cell.d_prefill += sign * work.prefill_rate
    cell.d_attention += sign * work.attention_rate
    cell.n_prefill += sign


def union_ns(intervals: list[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total = reach = 0
    for begin, end in sorted(intervals):
        if end > reach:
            total += end - max(begin, reach)
            reach = end
    return total
