"""Requests told of, until the cell of their service start is swept."""

from collections.abc import Iterator, Sequence

from jouled.core.attribution.roles import Served
from jouled.model.requests import RequestEvent


class Pending:
    """Requests by the cell in which they are to be placed.

    Those that were moved to a later cell wait apart: their turn was not yet when they first came up.
    """

    def __init__(self) -> None:
        self._by_cell: dict[int, list[Served]] = {}
        self._moved: dict[int, list[Served]] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Served]:
        return (part for by_cell in (self._by_cell, self._moved) for waiting in by_cell.values() for part in waiting)

    def add(self, cell: int, part: Served) -> None:
        """Let a request wait for a cell."""
        waiting = self._by_cell.get(cell)
        if waiting is None:
            self._by_cell[cell] = [part]
        else:
            waiting.append(part)

    def move(self, cell: int, part: Served) -> None:
        """Let a request whose turn was not yet wait for a later cell."""
        waiting = self._moved.get(cell)
        if waiting is None:
            self._moved[cell] = [part]
        else:
            waiting.append(part)

    def take(self, cell: int) -> Sequence[tuple[Served, bool]]:
        """Those of a cell, in the order in which requests are taken, and whether they were moved."""
        fresh, moved = self._by_cell.pop(cell, None), self._moved.pop(cell, None)
        if fresh is None and moved is None:
            return ()
        waiting = [(part, False) for part in fresh or ()] + [(part, True) for part in moved or ()]
        if len(waiting) > 1:
            waiting.sort(key=_order)
        return waiting

    def cells_before(self, cell: int) -> list[int]:
        """The cells before this one for which somebody waits, in order."""
        return sorted({key for by_cell in (self._by_cell, self._moved) for key in by_cell if key < cell})

    def before(self, cell: int) -> Iterator[Served]:
        """Those that wait for cells before this one."""
        for by_cell in (self._by_cell, self._moved):
            for key, waiting in by_cell.items():
                if key < cell:
                    yield from waiting

    def clear(self) -> None:
        """Nobody waits any more."""
        self._by_cell.clear()
        self._moved.clear()


def order_of(event: RequestEvent) -> tuple[str, str, int]:
    """The order in which requests are taken, whatever the order in which they came."""
    return event.engine, event.id, event.arrival_ns


def _order(waiting: tuple[Served, bool]) -> tuple[str, str, int]:
    event = waiting[0].event
    return event.engine, event.id, event.arrival_ns
