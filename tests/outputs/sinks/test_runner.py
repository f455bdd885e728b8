"""The runner: in order, until it is taken; nothing lost, whatever a sink does."""

import asyncio
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.snapshots import NOW_NS, receipt

from jouled.api import Delivery, RejectedRecord
from jouled.model.errors import SinkError
from jouled.model.points import NumberedReceipt
from jouled.outputs.sinks.counts import SinkCounts
from jouled.outputs.sinks.place import Place, Receiver
from jouled.outputs.sinks.runner import LAST_WAIT_SECONDS, LONGEST_RETRY_AFTER_SECONDS, Runner
from jouled.outputs.store import Behind


class Other:
    """The other side of a sink: takes what it is told to, and remembers it."""

    def __init__(self) -> None:
        self.has: list[int] = []
        self.answers: list[Delivery | Exception] = []

    async def receipts(self, records):
        answer = self.answers.pop(0) if self.answers else Delivery(len(records))
        if isinstance(answer, Exception):
            raise answer
        refused = {rejected.index for rejected in answer.rejected}
        self.has += [r.number for index, r in enumerate(records[: answer.taken]) if index not in refused]
        return answer


def runner(
    other,
    count: int,
    most: int = 10,
    position: int = 0,
    timeout_seconds: float = 5.0,
    resend_seconds: float = 0.0,
    **options,
):
    spool = [NumberedReceipt(number, receipt(number)) for number in range(1, count + 1)]

    async def read(after: int, most: int):
        return Behind([record for record in spool if record.number > after][:most], [])

    counts = SinkCounts()
    made = Runner(
        "stub",
        "receipts",
        read=read,
        send=other.receipts,
        most=most,
        timeout_seconds=timeout_seconds,
        place=Place(position, position, resend_seconds),
        receiver=Receiver(),
        counts=counts,
        wall_ns=lambda: NOW_NS,
        **options,
    )
    return made, counts, spool


async def test_everything_is_sent_in_order_and_in_batches():
    other = Other()
    made, counts, _ = runner(other, 25, most=10, position=3)
    assert [await made.step() for _ in range(4)] == [0.0, 0.0, 0.0, None]
    assert other.has == list(range(4, 26))
    assert made.place.taken == 25
    assert counts.records == {"receipts": {"accepted": 22}}
    assert counts.last_success_ns == NOW_NS


async def test_what_fails_is_kept_and_sent_again(caplog):
    other = Other()
    other.answers = [SinkError("unreachable", "nobody listens"), SinkError("unreachable", "nobody listens")]
    made, counts, _ = runner(other, 3)
    with caplog.at_level(logging.INFO):
        first, second = await made.step(), await made.step()
        assert made.place.taken == 0
        assert made.trouble == "nobody listens"
        assert await made.step() == 0.0
    assert 0.0 < first <= 1.0
    assert 0.0 < second <= 2.0, "waits double, with jitter"
    assert other.has == [1, 2, 3]
    assert counts.failures == {"unreachable": 2}
    assert made.trouble == ""
    began, ended = (record.message for record in caplog.records)
    assert "nobody listens" in began
    assert "again" in ended


async def test_the_wait_that_the_other_side_asks_for_is_kept():
    other = Other()
    other.answers = [
        SinkError("throttled", "slow down", retry_after_seconds=120.0),
        SinkError("throttled", "slow down", retry_after_seconds=1e9),
    ]
    made, _, _ = runner(other, 1)
    assert await made.step() == 120.0
    assert await made.step() == LONGEST_RETRY_AFTER_SECONDS


async def test_a_sink_that_hangs_fails_in_time():
    other = Other()

    async def hang(records):
        await asyncio.Event().wait()

    other.receipts = hang
    made, counts, _ = runner(other, 1, timeout_seconds=0.01)
    assert 0.0 < await made.step() <= LAST_WAIT_SECONDS
    assert counts.failures == {"timeout": 1}
    assert "0.01 s" in made.trouble


async def test_a_receiver_that_is_too_slow_for_many_gets_fewer():
    other, sizes = Other(), []

    async def slow(records):
        sizes.append(len(records))
        if len(records) > 3:
            await asyncio.Event().wait()
        return Delivery(len(records))

    other.receipts = slow
    made, *_ = runner(other, 20, most=16, timeout_seconds=0.01)
    while await made.step() is not None:
        pass
    assert sizes[:4] == [16, 8, 4, 2]
    assert made.place.taken == 20


async def test_a_bug_of_a_sink_loses_nothing(caplog):
    other = Other()
    other.answers = [KeyError("boom")]
    made, counts, _ = runner(other, 2)
    await made.step()
    assert counts.failures == {"error": 1}
    assert "KeyError" in caplog.text
    await made.step()
    assert other.has == [1, 2]


async def test_refused_records_become_dead_letters_and_hold_up_nobody(caplog):
    other = Other()
    other.answers = [Delivery(3, (RejectedRecord(1, "bad_request", "no such field" * 100),))]
    made, counts, _ = runner(other, 5)
    assert await made.step() == 0.0
    assert made.place.taken == 3, "the rest was kept"
    await made.step()
    assert other.has == [1, 3, 4, 5]
    assert counts.records == {"receipts": {"accepted": 4, "rejected": 1}}
    [dead] = made.dead_letters
    assert (dead.sink, dead.kind, dead.record, dead.reason) == ("stub", "receipts", 2, "bad_request")
    assert len(dead.message) == 500


async def test_refusals_are_logged_as_they_double(caplog):
    other = Other()
    made, _, _ = runner(other, 100, most=1)
    other.answers = [Delivery(1, (RejectedRecord(0, "no", "no"),)) for _ in range(100)]
    for _ in range(100):
        await made.step()
    assert len(caplog.records) == 7, "at 1, 2, 4, 8, 16, 32 and 64"


async def test_a_delivery_of_which_nothing_is_taken_waits():
    other = Other()
    other.answers = [Delivery(0)]
    made, _, _ = runner(other, 2)
    assert await made.step() > 0.0
    assert made.place.taken == 0


async def test_it_waits_for_news_and_for_nothing_else():
    other, delivered = Other(), asyncio.Queue()
    made, _, spool = runner(other, 1)
    take = other.receipts

    async def receipts(records):
        delivery = await take(records)
        delivered.put_nowait(other.has[-1])
        return delivery

    made._send = receipts
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(5):
        assert await delivered.get() == 1
        spool.append(NumberedReceipt(2, receipt(2)))
        made.wake()
        assert await delivered.get() == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_draining_ends_with_the_first_failure():
    other = Other()
    made, _, _ = runner(other, 25, most=10)
    other.answers = [Delivery(10), SinkError("unreachable", "gone")]
    await made.drain()
    assert other.has == list(range(1, 11))


OUTCOMES = st.one_of(
    st.integers(0, 4).map(lambda taken: ("taken", taken)),
    st.integers(0, 3).map(lambda index: ("rejected", index)),
    st.just(("failed", 0)),
)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 30), outcomes=st.lists(OUTCOMES, max_size=30))
def test_every_record_is_taken_or_refused_exactly_once(count, outcomes):
    other, seen, refused = Other(), [], []

    async def receipts(records):
        if outcomes:
            what, number = outcomes.pop(0)
            if what == "failed":
                raise SinkError("server_error", "no")
            if what == "rejected" and number < len(records):
                refused.append(records[number].number)
                seen.extend(r.number for r in records)
                return Delivery(len(records), (RejectedRecord(number, "no", "no"),))
            taken = min(number, len(records))
        else:
            taken = len(records)
        seen.extend(r.number for r in records[:taken])
        return Delivery(taken)

    other.receipts = receipts
    made, counts, _ = runner(other, count, most=4)

    async def all_of_it():
        while await made.step() is not None:
            pass

    asyncio.run(all_of_it())
    assert seen == list(range(1, count + 1))
    results = counts.records.get("receipts", {})
    assert results.get("accepted", 0) + results.get("rejected", 0) == count
    assert [dead.record for dead in made.dead_letters] == refused


async def test_behind_an_outage_the_last_seconds_come_again_and_count_once(caplog):
    other, seconds = Other(), [0]
    made, counts, spool = runner(other, 3, resend_seconds=60.0, now_ns=lambda: seconds[-1] * 1_000_000_000)
    await made.step()
    for second in (100, 130, 150):
        seconds.append(second)
        spool.append(NumberedReceipt(len(spool) + 1, receipt(len(spool) + 1)))
        await made.step()
    assert (made.place.certain, made.place.taken) == (3, 6)
    other.answers = [SinkError("unreachable", "it died")] * 2
    spool.append(NumberedReceipt(7, receipt(7)))
    seconds.append(900)
    await made.step()
    await made.step()
    assert (made.place.certain, made.place.taken) == (3, 6), "while it was dead nothing became certain"
    other.has.clear()
    other.answers = [Delivery(4, (RejectedRecord(1, "refused", "out of order"), RejectedRecord(3, "refused", "bad")))]
    await made.step()
    assert other.has == [4, 6]
    assert counts.records == {"receipts": {"accepted": 6, "rejected": 1, "repeated": 3}}
    assert [dead.record for dead in made.dead_letters] == [7]


@pytest.mark.parametrize(
    ("failures", "again"),
    [
        ([SinkError("throttled", "slow down")] * 9, []),
        ([SinkError("unauthorized", "who?")] * 9, []),
        ([TimeoutError()] * 2, []),
        ([TimeoutError(), SinkError("server_error", "502"), TimeoutError()], [1, 2, 3]),
        ([SinkError("unreachable", "reset")], [1, 2, 3]),
    ],
)
async def test_only_who_may_have_died_is_told_again(failures, again):
    other = Other()
    made, _, spool = runner(other, 3, resend_seconds=60.0)
    await made.step()
    spool.append(NumberedReceipt(4, receipt(4)))
    other.answers = list(failures)
    while await made.step() is not None:
        pass
    assert other.has == [1, 2, 3, *again, 4]


async def test_a_damaged_record_is_lost_once_however_often_it_is_passed():
    other = Other()
    made, counts, _ = runner(other, 0, resend_seconds=60.0)

    async def read(after, most):
        records = [NumberedReceipt(1, receipt(1)), NumberedReceipt(3, receipt(3))]
        return Behind([record for record in records if record.number > after], [2] if after < 2 else [])

    made._read = read
    await made.step()
    made._receiver.deaths += 1
    await made.step()
    assert other.has == [1, 3, 1, 3]
    assert counts.dropped == {"receipts": {"damaged": 1}}
