"""Whose request it is, when it was, and what the sender is told."""

from collections import Counter
from collections.abc import Sequence

import pytest

from jouled.api import EngineHint, Received, ReceivedRequest, Rejected
from jouled.app.runtime.requests.ingest import Ingest
from jouled.app.runtime.wall_clock import WallClock
from jouled.model.engine import Engine
from jouled.model.errors import JouledError
from jouled.model.requests import RequestEvent, RequestStart

BIG = Engine(name="vllm-8000", type="vllm", pid=100)
SMALL = Engine(name="vllm-8001", type="vllm", pid=200)
SECOND = 1_000_000_000


def event(request_id: str = "r1", last_token_ns: int = 30 * SECOND) -> RequestEvent:
    return RequestEvent(
        engine="",
        id=request_id,
        arrival_ns=last_token_ns - 2 * SECOND,
        scheduled_ns=last_token_ns - 2 * SECOND,
        first_token_ns=last_token_ns - SECOND,
        last_token_ns=last_token_ns,
        prompt_tokens=10,
        generation_tokens=5,
    )


class Desk:
    """An `Ingest` whose core answers as told."""

    def __init__(self, engines: Sequence[Engine], answer: str = "") -> None:
        self.fed: list[RequestEvent | RequestStart] = []
        self.counted: Counter[str] = Counter()
        self.wall = WallClock()
        self.answer = answer
        self.now_seconds = 40
        self.ingest = Ingest(lambda: engines, self._feed, self._count, self, self.wall)

    def now_ns(self) -> int:
        return self.now_seconds * SECOND

    def _feed(self, item: RequestEvent | RequestStart) -> str:
        self.fed.append(item)
        return self.answer

    def _count(self, reason: str, records: int) -> None:
        self.counted[reason] += records

    def take(self, *requests: ReceivedRequest) -> Received:
        return self.ingest.take(Received(requests=requests, ignored=2))


def test_request_reaches_the_core_with_engine_and_time_of_arrival() -> None:
    desk = Desk([BIG])
    received = desk.take(ReceivedRequest(event=event()))
    assert not received.rejected
    assert received.ignored == 2
    [fed] = desk.fed
    assert isinstance(fed, RequestEvent)
    assert (fed.engine, fed.seen_ns) == ("vllm-8000", 40 * SECOND)


def test_times_are_shifted_by_steps_of_the_wall_clock() -> None:
    desk = Desk([BIG])
    desk.wall.step(20 * SECOND, 7 * SECOND)
    desk.take(ReceivedRequest(event=event(last_token_ns=37 * SECOND)))
    desk.take(ReceivedRequest(event=RequestStart(engine="", id="s", arrival_ns=38 * SECOND)))
    request, start = desk.fed
    assert isinstance(request, RequestEvent)
    assert (request.last_token_ns, request.first_token_ns) == (30 * SECOND, 29 * SECOND)
    assert (request.scheduled_ns, request.arrival_ns) == (28 * SECOND, 28 * SECOND)
    assert start.arrival_ns == 31 * SECOND


def test_unknown_engine_is_refused_with_what_helps() -> None:
    desk = Desk([BIG, SMALL])
    received = desk.take(ReceivedRequest(event=event("r7"), hint=EngineHint(engine="vllm-9")))
    [rejected] = received.rejected
    assert (rejected.position, rejected.reason) == ("request r7", "unknown_engine")
    assert "vllm-8000, vllm-8001" in rejected.message
    assert not received.requests
    assert not desk.fed
    assert desk.counted == {"unknown_engine": 1}


def test_a_call_to_a_server_elsewhere_is_left_alone() -> None:
    desk = Desk([BIG])
    hint = EngineHint(address="api.example.com", port=443, model="large", may_be_elsewhere=True)
    received = desk.take(ReceivedRequest(event=event(), hint=hint))
    assert (received.requests, received.rejected, received.ignored) == ([], [], 3)
    assert not desk.fed
    assert not desk.counted


@pytest.mark.parametrize("reason", ["duplicate", "conflict"])
def test_a_repeated_event_is_no_fault_of_the_sender(reason: str) -> None:
    received = Desk([BIG], reason).take(ReceivedRequest(event=event()))
    assert not received.rejected
    assert len(received.requests) == 1


def test_refusal_of_the_core_reaches_the_sender() -> None:
    received = Desk([BIG], "absurd_tokens").take(ReceivedRequest(event=event()))
    assert received.rejected[0].reason == "absurd_tokens"


def test_what_the_receiver_refused_is_kept_and_counted() -> None:
    desk = Desk([BIG])
    refused = Rejected("line 3", "wrong_type", "no number")
    received = desk.ingest.take(Received(requests=[ReceivedRequest(event=event())], rejected=[refused]))
    assert list(received.rejected) == [refused]
    assert desk.counted == {"wrong_type": 1}


def test_refusals_beyond_the_first_hundred_are_only_counted() -> None:
    desk = Desk([BIG, SMALL])
    unknown = [ReceivedRequest(event=event(f"r{n}"), hint=EngineHint(engine="none")) for n in range(7)]
    refused = [Rejected(f"line {n}", "wrong_type", "no number") for n in range(98)]
    received = desk.ingest.take(Received(requests=unknown, rejected=refused, more_rejected={"wrong_type": 30}))
    assert len(received.rejected) == 100
    assert received.more_rejected == {"wrong_type": 30, "unknown_engine": 5}
    assert received.rejected_count == 135
    assert desk.counted == {"wrong_type": 128, "unknown_engine": 7}


def test_refusal_names_the_position_in_the_body() -> None:
    received = Desk([BIG, SMALL]).take(
        ReceivedRequest(event=event(), hint=EngineHint(engine="none"), position="line 3"),
        ReceivedRequest(event=event(), hint=EngineHint(engine="none"), position="[4]"),
    )
    assert [refused.position for refused in received.rejected] == ["line 3", "[4]"]


@pytest.mark.parametrize(
    ("arrival_seconds", "reason"),
    [(60, ""), (61, "in_the_future"), (-86_400, ""), (-86_401, "too_old"), (10**9, "in_the_future")],
)
def test_a_start_arrives_about_now(arrival_seconds: int, reason: str) -> None:
    desk = Desk([BIG])
    desk.now_seconds = 200_000
    desk.wall.step(0, 7_000 * SECOND)
    arrival_ns = (207_000 + arrival_seconds) * SECOND
    start = RequestStart(engine="", id="s", arrival_ns=arrival_ns)
    received = desk.take(ReceivedRequest(event=start, position="line 2"))
    assert [(refused.position, refused.reason) for refused in received.rejected] == [("line 2", reason)] * bool(reason)
    assert desk.counted == ({reason: 1} if reason else {})
    assert len(desk.fed) == (not reason)


def test_before_the_engines_are_known_nothing_is_refused_for_good() -> None:
    desk = Desk([])
    looked = False
    ingest = Ingest(lambda: [BIG] if looked else [], desk._feed, desk._count, desk, desk.wall, are_known=lambda: looked)
    told = Received(requests=[ReceivedRequest(event=event())], rejected=[Rejected("", "bad_time", "why")])
    with pytest.raises(JouledError, match="send it again"):
        ingest.take(told)
    assert desk.counted == {"bad_time": 1}
    assert ingest.take(Received(ignored=1)).ignored == 1
    looked = True
    assert len(ingest.take(Received(requests=told.requests)).requests) == 1
