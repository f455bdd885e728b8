"""What one engine's requests get of the host's energy: equal parts at each instant to whoever is resident.

Channels 0 and 1 both run at one per resident, so within a cell they split alike (attribution.md, special cases).
"""

from collections import deque
from collections.abc import Iterable

from jouled.core.attribution.by_request import ByRequest
from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, start_of
from jouled.core.attribution.load import Row
from jouled.core.attribution.request import IN_FLIGHT, Request
from jouled.model.units import NANOSECONDS_PER_SECOND

ABANDON_CELLS = 3600 * NANOSECONDS_PER_SECOND // CELL_NS
"""A request in flight that has not been heard of for longer is taken for lost."""


class HostShare:
    """One engine's part of the host, whole microjoules: cells granted and waiting for its rows, then held for claims.

    `_price` is the integral of microjoules per resident since the last `settle`; what a request has so far is its
    entry in `_open` plus the price. Both stay short, whatever the uptime.
    """

    def __init__(self) -> None:
        self.held_uj = 0
        self.waiting_uj = 0
        self._next: int | None = None
        self._waiting: deque[tuple[int, int]] = deque()
        self._price = 0.0
        self._open: dict[Request, float] = {}
        self._ended: dict[Request, float] = {}
        self._carried: ByRequest[tuple[float, int]] = ByRequest()

    def grant(self, cell: int, static_uj: int, dynamic_uj: int) -> None:
        """This engine's part of the next cell, until its row says who was there."""
        if self._next is None:
            self._next = cell
        self._waiting.append((static_uj, dynamic_uj))
        self.waiting_uj += static_uj + dynamic_uj

    def take(self, begin: int, rows: Iterable[Row]) -> tuple[int, int]:
        """Take closed cells; returns (idle, unattributed): what no resident can claim."""
        idle_uj = 0
        cell = begin
        for cell, row in enumerate(rows, start=begin):
            static_uj, dynamic_uj, passed_uj = self._granted(cell)
            idle_uj += passed_uj + self._take_cell(cell, row, static_uj, dynamic_uj)
        return idle_uj, self._settle(cell)

    def _granted(self, cell: int) -> tuple[int, int, int]:
        """(static, dynamic) of a cell, and all of the cells before it that no row spoke for."""
        passed_uj = 0
        while self._waiting and self._next is not None and self._next < cell:
            passed_uj += sum(self._pop())
        if self._waiting and self._next == cell:
            return *self._pop(), passed_uj
        return 0, 0, passed_uj

    def _pop(self) -> tuple[int, int]:
        static_uj, dynamic_uj = self._waiting.popleft()
        self.waiting_uj -= static_uj + dynamic_uj
        self._next = None if self._next is None else self._next + 1
        return static_uj, dynamic_uj

    def _take_cell(self, cell: int, row: Row, static_uj: int, dynamic_uj: int) -> int:
        residents = row.resident + (row.lost.resident if row.lost else 0.0)
        idle_uj, rate = static_uj + dynamic_uj, 0.0
        if row.active and residents > 0.0:
            idle_uj = int(static_uj * (1.0 - row.busy))
            given_uj = static_uj + dynamic_uj - idle_uj
            self.held_uj += given_uj
            rate = given_uj / residents
        self._read_out(cell, row, rate)
        self._price += rate * CELL_SECONDS
        return idle_uj

    def _read_out(self, cell: int, row: Row, rate: float) -> None:
        for request in row.starting:
            self._open[request] = -self._price_at(cell, request.work.begin_ns, rate)
        for request in row.ending:
            if request in self._open:
                share = self._open.pop(request) + self._price_at(cell, request.work.end_ns, rate)
                self._end(request, share, cell)

    def _price_at(self, cell: int, t_ns: int, rate: float) -> float:
        return self._price + rate * (t_ns - start_of(cell)) / NANOSECONDS_PER_SECOND

    def _end(self, request: Request, share: float, cell: int) -> None:
        """A request has ended; one that only stood in for a request in flight is carried over."""
        event = request.event
        before, _ = self._carried.take(event.id, event.arrival_ns) or (0.0, 0)
        if IN_FLIGHT in request.flags:
            self._carried.put(event.id, event.arrival_ns, (before + share, cell))
        else:
            self._ended[request] = before + share

    @property
    def owes(self) -> bool:
        """Whether any closed cell told of a request that has not claimed yet."""
        return bool(self._ended or self._open)

    def claim(self, request: Request) -> int | None:
        """A final request takes its whole microjoules, once; `None` where no closed cell told of it."""
        share = self._ended.pop(request, None)
        if share is None and request in self._open:
            share = self._open.pop(request) + self._price
        if share is None:
            return None
        whole_uj = min(max(int(share), 0), self.held_uj)
        self.held_uj -= whole_uj
        return whole_uj

    def _settle(self, cell: int) -> int:
        """What is held and nobody can claim any more: lost work, and what floors left over."""
        for key, arrival_ns, (_, last) in self._carried:
            if last < cell - ABANDON_CELLS:
                self._carried.take(key, arrival_ns)
        for request in self._open:
            self._open[request] += self._price
        self._price = 0.0
        carried = sum(share for _, _, (share, _) in self._carried)
        owed_uj = int(sum(self._open.values()) + sum(self._ended.values()) + carried) + 1
        remainder_uj = max(self.held_uj - owed_uj, 0) if owed_uj > 1 else self.held_uj
        self.held_uj -= remainder_uj
        return remainder_uj

    def skip(self) -> int:
        """Pass over all cells that wait; returns their energy."""
        skipped_uj, self.waiting_uj = self.waiting_uj, 0
        self._waiting.clear()
        self._next = None
        return skipped_uj

    def release(self) -> int:
        """At the end: give back what is held; claims get nothing from here on."""
        released_uj, self.held_uj = self.held_uj, 0
        return released_uj
