"""Requests told of, until the cell of their service start is swept."""

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from jouled.core.attribution.roles import Served
from jouled.model.requests import RequestEvent

_order = attrgetter("event.id", "event.arrival_ns", "event.generation_tokens", "event.answer")


class Pending:
    """Requests of one engine by the cell in which they are to be placed."""

    def __init__(self) -> None:
        self._by_cell: dict[int, list[Served]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_cell.values()))

    def __iter__(self) -> Iterator[Served]:
        return (part for waiting in self._by_cell.values() for part in waiting)

    def add(self, cell: int, part: Served) -> None:
        """Let a request wait for a cell."""
        waiting = self._by_cell.get(cell)
        if waiting is None:
            self._by_cell[cell] = [part]
        else:
            waiting.append(part)

    def take(self, cell: int) -> Sequence[Served]:
        """Those of a cell, in the order in which requests are taken."""
        waiting = self._by_cell.pop(cell, None)
        if waiting is None:
            return ()
        if len(waiting) > 1:
            waiting.sort(key=_order)
        return waiting

    def remove(self, event: RequestEvent, cell: int) -> Served | None:
        """Take out the part that an event told of, which waits for this cell; `None` if none does."""
        waiting = self._by_cell.get(cell, ())
        for index, part in enumerate(waiting):
            if part.event is event:
                del self._by_cell[cell][index]
                if not self._by_cell[cell]:
                    del self._by_cell[cell]
                return part
        return None

    def cell_of(self, event: RequestEvent, cells: Iterable[int]) -> int | None:
        """The cell for which the part of an event waits, sought in these; `None` if it waits for none of them."""
        waiting = ((cell, part) for cell in cells for part in self._by_cell.get(cell, ()))
        return next((cell for cell, part in waiting if part.event is event), None)

    def cells_before(self, cell: int) -> list[int]:
        """The cells before this one for which somebody waits, in order."""
        return sorted(key for key in self._by_cell if key < cell)

    def before(self, cell: int) -> Iterator[Served]:
        """Those that wait for cells before this one."""
        return (part for key, waiting in self._by_cell.items() if key < cell for part in waiting)

    def clear(self) -> None:
        """Nobody waits any more."""
        self._by_cell.clear()


def order_of(event: RequestEvent) -> tuple[str, str, int, int, int]:
    """The order in which requests are taken, whatever the order in which they came."""
    return event.engine, event.id, event.arrival_ns, event.generation_tokens, event.answer
