"""What has waited too long for its other parts reaches the core."""

import asyncio
import contextlib
from collections import Counter

import pytest

from jouled.api import Received, Rejected
from jouled.app.runtime.requests import overdue_parts
from jouled.app.runtime.requests.overdue_parts import release_overdue
from jouled.model.errors import JouledError

LATE = Received(rejected=[Rejected("", "no_frontend_span", "why")])


class Joining:
    """Tells once of something late; its third look is the last one."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.looked_thrice = asyncio.Event()

    def overdue(self, now_ns: int) -> Received:
        self.asked.append(now_ns)
        if len(self.asked) == 3:
            self.looked_thrice.set()
        return LATE if len(self.asked) == 1 else Received()


async def test_it_is_asked_again_and_again_and_what_is_late_is_handed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue_parts, "EVERY_SECONDS", 0.0)
    joining, taken = Joining(), list[Received]()

    async def accept(received: Received) -> Received:
        taken.append(received)
        return received

    task = asyncio.create_task(release_overdue("otlp", joining, accept, _no_count))
    await joining.looked_thrice.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert taken == [LATE]
    assert joining.asked == sorted(joining.asked)


async def test_what_cannot_be_kept_now_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue_parts, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr("jouled.app.runtime.requests.hand_over.asyncio.sleep", _at_once(asyncio.sleep))
    joining, tries = Joining(), list[Received]()

    async def accept(received: Received) -> Received:
        tries.append(received)
        if len(tries) == 1:
            raise JouledError("the disk is full")
        return received

    task = asyncio.create_task(release_overdue("otlp", joining, accept, _no_count))
    await joining.looked_thrice.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(tries) == 2


def _at_once(sleep):
    return lambda _seconds: sleep(0)


async def test_a_receiver_with_a_fault_ends_nothing_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue_parts, "EVERY_SECONDS", 0.0)
    counted, taken = Counter[str](), list[Received]()

    class Failing(Joining):
        def overdue(self, now_ns: int) -> Received:
            told = super().overdue(now_ns)
            if len(self.asked) < 3:
                raise KeyError(now_ns)
            return told

    async def accept(received: Received) -> Received:
        taken.append(received)
        return received

    failing = Failing()
    task = asyncio.create_task(
        release_overdue("otlp", failing, accept, lambda reason, number: counted.update({reason: number}))
    )
    looked = asyncio.create_task(failing.looked_thrice.wait())
    await asyncio.wait({task, looked}, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done()
    assert counted["receiver_failed"] == 2
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _no_count(reason: str, number: int) -> None:
    raise AssertionError(f"{number} counted as {reason}")
