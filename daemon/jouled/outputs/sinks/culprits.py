"""Sends a delivery, and where it is refused as a whole, finds out which of its records are to blame."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TypeVar

from jouled.api import Delivery, RejectedRecord
from jouled.model.errors import SinkError
from jouled.outputs.sinks.http import Answer

MOST_REQUESTS = 100
"""Requests of one delivery, unless its first record needs more: to find a culprit among n takes 2 log₂ n at the most,
so five among a thousand fit."""

_REFUSALS = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,  # Thanos Receive says so of samples out of order
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)

_REFUSED = "refused"

R = TypeVar("R")


async def deliver(
    records: Sequence[R],
    send: Callable[[Sequence[R]], Awaitable[Answer]],
    timeout_seconds: float,
    is_about_records: Callable[[str], bool] = lambda _: False,
) -> Delivery:
    """Send all records at once; of a part that is refused the first half, down to single records, then the rest.

    For senders whose records may come again without harm. What is refused alone is rejected for good. The search ends
    after `MOST_REQUESTS` or half of `timeout_seconds`, or when the other side takes nothing more: what is decided by
    then counts, the rest is kept.

    is_about_records: whether the words of a refusal, in small letters, are of a kind that any number of records may
    deserve. Where all of a delivery are refused in the same other words, it is the sender or its settings that are
    refused, and all is kept.

    Raises:
        SinkError: the other side takes nothing now, or answers with a status that is no word on the records.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_seconds / 2.0
    taken = requests = 0
    rejected: list[RejectedRecord] = []
    ends = [len(records)]  # where the next part to send ends, last; behind it those that were split
    while ends and (not taken or (requests < MOST_REQUESTS and loop.time() < until)):
        requests += 1
        try:
            answer = _word_on_records(await send(records[taken : ends[-1]]))
        except SinkError:
            if not taken:
                raise
            break  # the next delivery meets the same trouble, with nothing decided before it
        if not answer.is_good and ends[-1] - taken > 1:
            ends.append((taken + ends[-1]) // 2)
            continue
        if not answer.is_good:
            rejected.append(_rejected(taken, answer))
        taken = ends.pop()
    if len(rejected) == taken > 1 and len({each.message for each in rejected}) == 1:
        message, reason = rejected[0].message, rejected[0].reason
        if reason == _REFUSED and not is_about_records(message.lower()):
            mend = "Check the url and settings of this sink"
            raise SinkError("refused", f"everything is refused alike, so all is kept: {message[:300]}", mend=mend)
    return Delivery(taken, tuple(rejected))


def _word_on_records(answer: Answer) -> Answer:
    if answer.is_good or answer.status in _REFUSALS:
        return answer
    raise SinkError(
        "refused", f"the other side answers {answer.status}: {answer.text[:300]}", mend="Check the url of this sink"
    )


def _rejected(index: int, answer: Answer) -> RejectedRecord:
    reason = "too_large" if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else _REFUSED
    return RejectedRecord(index, reason, f"{answer.status}: {answer.text}")
