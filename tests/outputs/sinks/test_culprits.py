"""The search for the records that are refused."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.model.errors import SinkError
from jouled.outputs.sinks.culprits import MOST_REQUESTS, deliver
from jouled.outputs.sinks.http import Answer


class Other:
    """Refuses every part that holds a culprit, and breaks down after so many requests (then works again)."""

    def __init__(self, culprits: set[int], breaks_at: int) -> None:
        self.culprits = culprits
        self.breaks_at = breaks_at
        self.requests = 0
        self.has: set[int] = set()

    async def send(self, part):
        self.requests += 1
        if self.requests == self.breaks_at:
            raise SinkError("server_error", "out of order")
        if self.culprits & set(part):
            return Answer(400, "refused")
        self.has |= set(part)
        return Answer(204, "")

    async def refuse(self, part):
        return Answer(400, f"no use for {len(part)}")


@given(st.integers(1, 400), st.data())
def test_each_record_is_accepted_or_rejected_as_it_deserves_in_bounded_deliveries(count, data):
    records = list(range(count))
    culprits = data.draw(st.sets(st.sampled_from(records), max_size=40))
    other = Other(culprits, breaks_at=data.draw(st.integers(1, 60)))

    async def all_of_them() -> set[int]:
        position, rejected = 0, set()
        while position < count:
            before = other.requests
            try:
                delivery = await deliver(records[position:], other.send, 10.0, lambda words: "refused" in words)
            except SinkError:
                assert other.requests == other.breaks_at
                continue
            assert delivery.taken > 0
            assert other.requests - before <= MOST_REQUESTS
            rejected |= {position + one.index for one in delivery.rejected}
            position += delivery.taken
        return rejected

    assert asyncio.run(all_of_them()) == culprits
    assert other.has == set(records) - culprits


@given(st.integers(2, 400))
def test_where_all_are_refused_alike_in_unknown_words_none_is_rejected(count):
    other = Other(set(range(count)), breaks_at=0)
    with pytest.raises(SinkError, match="everything is refused alike") as caught:
        asyncio.run(deliver(range(count), other.send, 10.0))
    assert caught.value.reason == "refused"
    assert other.requests <= MOST_REQUESTS


async def test_a_single_record_that_is_refused_is_rejected_whatever_the_words():
    delivery = await deliver(["only"], Other({0}, breaks_at=0).refuse, 10.0)
    assert [each.index for each in delivery.rejected] == [0]


async def test_where_nothing_is_wrong_it_is_one_request():
    other = Other(set(), breaks_at=0)
    assert (await deliver(range(1000), other.send, 10.0)).taken == 1000
    assert other.requests == 1


async def test_one_culprit_among_a_thousand_costs_some_twenty_requests():
    other = Other({777}, breaks_at=0)
    assert (await deliver(range(1000), other.send, 10.0)).taken == 1000
    assert other.requests <= 21
