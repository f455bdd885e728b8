"""What cannot be asked for again is offered until it is kept; what the core has taken is not offered twice."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jouled.api import Received, ReceivedRequest, Rejected
from jouled.app.runtime.front import Front
from jouled.app.runtime.requests import hand_over as module
from jouled.app.runtime.requests.hand_over import hand_over
from jouled.model.errors import JouledError
from jouled.model.requests import RequestStart

TOLD = Received(
    requests=[ReceivedRequest(event=RequestStart(engine="e", id="x", arrival_ns=1))],
    rejected=[Rejected("line 1", "broken_json", "it is broken")],
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Backoff, "next_seconds", lambda _self: 0.001)


class Core:
    """An ingest, a publisher and a disk: `commits` says of each wait for a commit whether one comes."""

    def __init__(self, *commits: bool, troubles: tuple[str, ...] = ()) -> None:
        self.taken: list[Received] = []
        self._commits = iter(commits)
        self._troubles = iter(troubles)

    def take(self, received: Received) -> Received:
        self.taken.append(received)
        return received

    @property
    def trouble(self) -> str:
        return next(self._troubles, "")

    async def kept(self) -> None:
        if not next(self._commits):
            raise JouledError("the books cannot be committed: send it again later")


def accept_of(core: Core) -> Callable[[Received], Awaitable[Received]]:
    nothing = cast("Any", None)
    return Front(
        metering=cast("Any", SimpleNamespace(has_failed=False)),
        publisher=cast("Any", core),
        store=nothing,
        power=nothing,
        ingest=cast("Any", core),
        kept=core.kept,
        forget=nothing,
        forwarder=None,
        extra=dict,
    ).accept


async def test_what_is_taken_waits_for_its_commit_and_is_not_taken_again(caplog: pytest.LogCaptureFixture) -> None:
    core = Core(False, False, True)
    await hand_over("files", accept_of(core), TOLD)
    assert core.taken == [TOLD]
    assert [record.getMessage() for record in caplog.records] == [
        "files reads no further for now: the books cannot be committed: send it again later"
    ]


async def test_while_the_disk_is_full_it_is_not_taken_again() -> None:
    core = Core(True, troubles=("disk full", "disk full"))
    await hand_over("files", accept_of(core), TOLD)
    assert core.taken == [TOLD]


async def test_what_could_not_be_taken_is_offered_again_without_what_was_refused() -> None:
    core, offered = Core(True), []
    taking = accept_of(core)

    async def accept(received: Received) -> Received:
        offered.append(received)
        if len(offered) == 1:
            raise JouledError("no engine is known yet")
        return await taking(received)

    await hand_over("files", accept, TOLD)
    assert offered == [TOLD, Received(requests=TOLD.requests)]
    assert core.taken == offered[1:]
