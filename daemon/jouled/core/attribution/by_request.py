"""Things kept by request: the same id and an arrival within a second (attribution.md section 4).

Gateways retry under one id, and who tells of a start may stamp it a little otherwise than who tells of the end.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from jouled.model.units import NANOSECONDS_PER_SECOND

SAME_ARRIVAL_NS = NANOSECONDS_PER_SECOND

RESPONSE_PREFIXES = ("chatcmpl-", "cmpl-")
"""What OpenAI's interface, and vLLM with the client's X-Request-Id, put before the id of a response."""

Thing = TypeVar("Thing")


def bare_id(request_id: str) -> str:
    """A request's id as its client knows it: vLLM answers `chatcmpl-<id>`, and to one prompt `cmpl-<id>-0`.

    A client may take the id of its own response, or of an engine behind it, for X-Request-Id: then prefixes pile up.
    """
    while request_id.startswith(RESPONSE_PREFIXES):
        prefix, _, request_id = request_id.partition("-")
        if prefix == "cmpl":
            request_id = request_id.removesuffix("-0")
    return request_id


class ByRequest(Generic[Thing]):
    """One thing for each request."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[tuple[int, Thing]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_id.values()))

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def __iter__(self) -> Iterator[tuple[str, int, Thing]]:
        """Bare id, arrival and thing of each; what is taken meanwhile changes nothing."""
        return iter([(key, arrival_ns, thing) for key, kept in self._by_id.items() for arrival_ns, thing in kept])

    def get(self, request_id: str, arrival_ns: int) -> Thing | None:
        """What is kept for a request; `None` if nothing is."""
        for known_ns, thing in self._by_id.get(bare_id(request_id), ()):
            if abs(known_ns - arrival_ns) <= SAME_ARRIVAL_NS:
                return thing
        return None

    def put(self, request_id: str, arrival_ns: int, thing: Thing) -> None:
        """Keep something for a request that has nothing yet."""
        self._by_id.setdefault(bare_id(request_id), []).append((arrival_ns, thing))

    def take(self, request_id: str, arrival_ns: int) -> Thing | None:
        """What is kept for a request, for the last time."""
        key = bare_id(request_id)
        kept = self._by_id.get(key)
        if kept is None:
            return None
        for index, (known_ns, thing) in enumerate(kept):
            if abs(known_ns - arrival_ns) <= SAME_ARRIVAL_NS:
                del kept[index]
                if not kept:
                    del self._by_id[key]
                return thing
        return None
