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


class Work(NamedTuple):
    """One request as the channels see it, times in core nanoseconds; start ≥ 1 ms before first token.

    `from_ns`: the request's cells before this were closed without it; its rates apply from here on.
    """

    start_ns: int
    first_ns: int
    last_ns: int
    computed: int
    cached: int
    prompt: int
    generated: int
    from_ns: int

    @property
    def prefill_rate(self) -> float:
        """Computed prompt tokens per second of prefill."""
        return self.computed * NANOSECONDS_PER_SECOND / (self.first_ns - self.start_ns)

    @property
    def attention_rate(self) -> float:
        """Query-key pairs per second of prefill: a computed token attends the cached and, on average, half the rest."""
        pairs = self.computed * (self.cached + self.computed / 2)
        return pairs * NANOSECONDS_PER_SECOND / (self.first_ns - self.start_ns)

    @property
    def decode_rate(self) -> float:
        """Output tokens per second after the first; 0 where there are none, or all came at once."""
        if self.generated <= 1 or self.last_ns - self.first_ns < SHORTEST_DECODE_NS:
            return 0.0
        return (self.generated - 1) * NANOSECONDS_PER_SECOND / (self.last_ns - self.first_ns)


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
        "x_prefillers",
        "x_resident",
    )

    def __init__(self) -> None:
        self.x_resident = self.x_prefill = self.x_prefillers = self.x_attention = self.x_decoders = 0.0
        self.d_prefill = self.d_attention = 0.0
        self.d_resident = 0
        self.n_prefill = self.n_decode = 0
        self.ending = 0
        self.edges: list[tuple[int, int]] = []
        self.marks: list[tuple[int, object]] = []


class Row:
    """What one cell asks for: integrals per channel, the busy fraction, and whether anybody is there at all.

    prefilling: the part of the cell in which a prefill runs. pace: step time per second; elapsed: step time at the
    cell's start. `decode` and `kv` follow step time and are filled in for a whole range (`decode.py`).
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
        "pace",
        "prefill",
        "prefilling",
        "prompt_expected",
        "resident",
        "steps",
    )

    def __init__(self) -> None:
        self.resident = self.prefill = self.attention = self.decode = self.kv = self.decoders = 0.0
        self.busy = self.steps = self.generation_expected = self.prompt_expected = 0.0
        self.prefilling = 0.0
        self.pace, self.elapsed = 1.0, 0.0
        self.active = False
        self.lost: Lost | None = None
        self.marks: list[tuple[int, object]] = []


class Lost(NamedTuple):
    """Work in one cell that no event told of, in the units of a row; its energy is `unreported`."""

    resident: float
    prefill: float
    attention: float
    decode: float
    kv: float


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
        start_ns = max(work.start_ns, work.from_ns)
        first_ns = max(work.first_ns, start_ns)
        last_ns = max(work.last_ns, first_ns)
        self._insert_residency(start_ns, last_ns)
        if first_ns > start_ns and work.computed:
            self._insert_prefill(start_ns, first_ns, work.prefill_rate, work.attention_rate)
        if last_ns > first_ns and work.decode_rate:
            self._insert_decode(first_ns, last_ns)
        self.cell(start_ns // CELL_NS).marks.append((0, mark))
        self.cell(first_ns // CELL_NS).marks.append((1, mark))
        self.cell(last_ns // CELL_NS).marks.append((2, mark))

    def _insert_residency(self, start_ns: int, last_ns: int) -> None:
        first, last = start_ns // CELL_NS, last_ns // CELL_NS
        begin, end = start_ns % CELL_NS, last_ns % CELL_NS
        cell = self.cell(first)
        if first == last:
            cell.x_resident += (end - begin) / NANOSECONDS_PER_SECOND
            cell.edges.append((begin, end))
            return
        cell.x_resident += (CELL_NS - begin) / NANOSECONDS_PER_SECOND
        cell.d_resident += 1
        cell.edges.append((begin, CELL_NS))
        cell = self.cell(last)
        cell.x_resident -= (CELL_NS - end) / NANOSECONDS_PER_SECOND
        cell.d_resident -= 1
        cell.ending += 1
        cell.edges.append((0, end))

    def _insert_prefill(self, start_ns: int, first_ns: int, rate: float, attention_rate: float) -> None:
        rest = (CELL_NS - start_ns % CELL_NS) / NANOSECONDS_PER_SECOND
        cell = self.cell(start_ns // CELL_NS)
        cell.x_prefill += rate * rest
        cell.x_prefillers += rest
        cell.x_attention += attention_rate * rest
        cell.d_prefill += rate
        cell.d_attention += attention_rate
        cell.n_prefill += 1
        rest = (CELL_NS - first_ns % CELL_NS) / NANOSECONDS_PER_SECOND
        cell = self.cell(first_ns // CELL_NS)
        cell.x_prefill -= rate * rest
        cell.x_prefillers -= rest
        cell.x_attention -= attention_rate * rest
        cell.d_prefill -= rate
        cell.d_attention -= attention_rate
        cell.n_prefill -= 1

    def _insert_decode(self, first_ns: int, last_ns: int) -> None:
        cell = self.cell(first_ns // CELL_NS)
        cell.x_decoders += (CELL_NS - first_ns % CELL_NS) / NANOSECONDS_PER_SECOND
        cell.n_decode += 1
        cell = self.cell(last_ns // CELL_NS)
        cell.x_decoders -= (CELL_NS - last_ns % CELL_NS) / NANOSECONDS_PER_SECOND
        cell.n_decode -= 1

    def sweep(self, index: int) -> Row:
        """Sum up the next cell; cells are swept in order, each once."""
        self._swept += 1
        if self._swept % REFRESH_CELLS == 0:
            self._refresh()
        row = Row()
        delta = CELL_SECONDS
        row.resident = self.residents * delta
        row.prefill = self._prefill * delta
        row.attention = self._attention * delta
        row.decoders = self._decodes * delta
        row.prefilling = float(self._prefills > 0)
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
        row.prefilling = min((self._prefills * CELL_SECONDS + cell.x_prefillers) / CELL_SECONDS, 1.0)
        row.resident = max(row.resident + cell.x_resident, 0.0)
        row.prefill = max(row.prefill + cell.x_prefill, 0.0) if touched_prefill else 0.0
        row.attention = max(row.attention + cell.x_attention, 0.0) if touched_prefill else 0.0
        row.decoders = max(row.decoders + cell.x_decoders, 0.0) if touched_decode else 0.0
        self.residents += cell.d_resident
        self._prefills += cell.n_prefill
        self._decodes += cell.n_decode
        self._prefill = self._prefill + cell.d_prefill if self._prefills else 0.0
        self._attention = self._attention + cell.d_attention if self._prefills else 0.0


def union_ns(intervals: list[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total = reach = 0
    for begin, end in sorted(intervals):
        if end > reach:
            total += end - max(begin, reach)
            reach = end
    return total
