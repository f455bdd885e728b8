"""Requests told of, until the cell of their service start is swept."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jouled.core.attribution.roles import Served
from jouled.model.requests import RequestEvent


class Told(NamedTuple):
    """A request that ended, and what the engine served of it; `moved`: its turn was not yet when it first came up."""

    event: RequestEvent
    part: Served
    moved: bool = False


class Pending:
    """Requests by the cell in which they are to be placed."""

    def __init__(self) -> None:
        self._by_cell: dict[int, list[Told]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_cell.values()))

    def __iter__(self) -> Iterator[Told]:
        return (told for waiting in self._by_cell.values() for told in waiting)

    def add(self, cell: int, told: Told) -> None:
        """Let a request wait for a cell."""
        waiting = self._by_cell.get(cell)
        if waiting is None:
            self._by_cell[cell] = [told]
        else:
            waiting.append(told)

    def take(self, cell: int) -> Sequence[Told]:
        """Those of a cell, in the order in which requests are taken."""
        waiting = self._by_cell.pop(cell, None)
        if waiting is None:
            return ()
        if len(waiting) > 1:
            waiting.sort(key=_order)
        return waiting

    def cells_before(self, cell: int) -> list[int]:
        """The cells before this one for which somebody waits, in order."""
        return sorted(key for key in self._by_cell if key < cell)

    def before(self, cell: int) -> Iterator[Told]:
        """Those that wait for cells before this one."""
        return (told for key, waiting in self._by_cell.items() if key < cell for told in waiting)

    def clear(self) -> None:
        """Nobody waits any more."""
        self._by_cell.clear()


def order_of(event: RequestEvent) -> tuple[str, str, int]:
    """The order in which requests are taken, whatever the order in which they came."""
    return event.engine, event.id, event.arrival_ns


def _order(told: Told) -> tuple[str, str, int]:
    return order_of(told.event)
