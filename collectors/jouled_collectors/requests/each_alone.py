"""Many records in one body or file: each is taken or refused alone."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from jouled.api import Received, ReceivedRequest, Refusals, Rejected
from jouled_collectors.requests.checks import RefusedError

LONGEST_MESSAGE = 300
"""Characters of what is told of a refusal."""

Record = TypeVar("Record")


def each_alone(records: Iterable[tuple[str, Record]], read: Callable[[Record, str], ReceivedRequest]) -> Received:
    """All requests of these records; those for which `read` raises `RefusedError` are refused at their positions."""
    requests = []
    refusals = Refusals()
    for position, record in records:
        try:
            requests.append(read(record, position))
        except RefusedError as error:
            refusals.add(Rejected(position, error.reason, str(error)[:LONGEST_MESSAGE]))
    return Received(requests=requests, rejected=refusals.kept, more_rejected=refusals.more)


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """The lines that hold something, each with its position, counted from 1."""
    return ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
