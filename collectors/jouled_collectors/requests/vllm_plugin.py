"""Runs inside vLLM's API server and tells jouled of finished requests over a Unix datagram socket.

vLLM loads it by the entry-point group `vllm.stat_logger_plugins` (its pull request 22456). It does nothing unless
JOULED_SOCKET names the daemon's socket. It needs the standard library and vLLM alone, never raises into the engine and
never blocks. What is sent is described in `vllm_datagram`, which reads it.

vLLM declares its statistics unstable, so that all of them may be missing here. As read in 0.32.0 and 0.33.0; requests
have their ids there since pull request 39710 (2026).
"""

import json
import logging
import os
import socket
import time
from collections import Counter, deque
from typing import Any

SOCKET_VARIABLE = "JOULED_SOCKET"

MOST_DATAGRAM_BYTES = 60_000
"""Three of them fit into a socket's send buffer of Linux (net.core.wmem_default, 212 992 bytes)."""

MOST_WAITING = 1_000
"""Finished requests kept while the daemon is away: 5 s at 200 requests a second, some 400 kB."""

MOST_RUNNING = 10_000
"""Requests whose first token is remembered; those that are aborted never end here."""

MOST_STEPS = 50
"""Of the answers to one prompt, which begin together as long as all of them fit into the engine."""

MOST_NUMBERED = 5_000
"""Requests of which is remembered how many answers were told, and as many before them: some megabyte."""

MOST_ID_CHARACTERS = 300
"""More than the daemon takes of an id, so that it refuses what is longer, and says so."""

MOST_REQUEST_BYTES = 10_000
"""Of one request: two kilobytes are the most that is expected, and what fits into no datagram would stop all others."""

COUNTS_SECONDS = 1.0
SEND_SECONDS = 0.05
"""Between two datagrams while the engine has more to do: sending costs more than all the rest."""

RETRY_SECONDS = 0.2
"""Pause after a datagram that could not be sent: the daemon empties a full queue sooner, and restarts in 2 s."""

_log = logging.getLogger("vllm.jouled")
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class Answers:
    """Tells answers to one prompt apart (`n` above 1): vLLM gives all of them one id and one arrival, and no number.

    Those with other tokens are others; of those with as many, this is the first that ended, the second and so on. What
    has been forgotten begins with 1 again, which the daemon takes for a repeat: then an answer is missing, never twice.
    """

    def __init__(self) -> None:
        self._newer: dict[int, int] = {}
        self._older: dict[int, int] = {}

    def number(self, record: dict[str, Any]) -> int:
        """The number of an answer that has just ended, from 1 on."""
        arrival = record["finished"] - record["e2e"]
        key = hash((record["id"], arrival, record["prompt_tokens"], record["generation_tokens"]))
        number = (self._newer.get(key) or self._older.get(key, 0)) + 1
        self._newer[key] = number
        if len(self._newer) >= MOST_NUMBERED:
            self._older, self._newer = self._newer, {}
        return number


class FirstTokens:
    """The steps that brought first tokens of one request: a single one, unless several answers to it were asked for."""

    __slots__ = ("running", "steps")

    def __init__(self, now: float) -> None:
        self.steps = [now]
        self.running = 1

    def another(self, now: float) -> None:
        """One more answer has begun."""
        self.running += 1
        if now != self.steps[-1]:
            self.steps.append(now)
            del self.steps[:-MOST_STEPS]

    def of(self, record: dict[str, Any]) -> float:
        """That of an answer which has ended: the one nearest to where the core's clock has it, back from the end."""
        if len(self.steps) == 1:
            return self.steps[0]
        counted_back: float = record["finished"] - (record["decode"] or 0.0)
        return min(self.steps, key=lambda step: abs(step - counted_back))


class Teller:
    """Gathers what an engine's steps tell and sends it. Used from one thread.

    path: of the daemon's socket. engine_index: the data-parallel rank. answers: shared by the ranks of a process, over
    which vLLM may spread the answers to one prompt. Every datagram goes to the path anew, so that a daemon which was
    restarted is found again.
    """

    def __init__(self, path: str, engine_index: int = 0, answers: Answers | None = None) -> None:
        self._path = path
        self._answers = Answers() if answers is None else answers
        service_name = os.environ.get("OTEL_SERVICE_NAME", "")[:MOST_ID_CHARACTERS]
        self._about = {"service_name": service_name, "engine_index": engine_index}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._waiting: deque[str] = deque()
        self._first_tokens: dict[float, FirstTokens] = {}
        self._lost: Counter[str] = Counter()
        self._counts = dict.fromkeys(("steps", "prompt_computed", "prompt_cached", "generation"), 0)
        self._scheduled: Counter[str] = Counter()
        self._counts_due = 0.0
        self._not_before = 0.0
        self._is_away = False
        self._told: set[str] = set()

    def step(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """One step of the engine has ended; either of the two may be missing."""
        if iteration_stats is not None:
            self._remember_first_tokens(iteration_stats)
            for finished in getattr(iteration_stats, "finished_requests", None) or ():
                self._finish(finished, iteration_stats)
        now = time.monotonic()
        if now >= self._not_before:
            if self._waiting or now >= self._counts_due:
                self.send(now)
        elif self._waiting and not self._is_away and not getattr(scheduler_stats, "num_running_reqs", 0):
            self.send(now)  # this may be the last step for long
        if iteration_stats is not None:
            self._count(iteration_stats)
        details = getattr(scheduler_stats, "iteration_details", None)
        if details is not None:
            self._count_scheduled(details)

    def send(self, now: float) -> None:
        """Send all that waits, in as many datagrams as it takes, and the counts so far with each of them."""
        while True:
            datagram, requests = self._datagram()
            try:
                self._socket.sendto(datagram, socket.MSG_DONTWAIT, self._path)
            except OSError as error:
                self._is_away = True
                self._not_before = now + RETRY_SECONDS
                self._tell_once("unsent", "jouled: %s cannot be sent to now: %s", self._path, error)
                return
            self._lost.clear()
            self._is_away = False
            self._not_before = now + SEND_SECONDS
            self._counts_due = now + COUNTS_SECONDS
            for _ in range(requests):
                self._waiting.popleft()
            if not self._waiting:
                return

    def fault(self) -> None:
        """Something in here failed; called while its exception is handled."""
        self._lost["fault"] += 1
        self._tell_once("fault", "jouled: what this vLLM tells of a step cannot be read", exc_info=True)

    def _finish(self, finished: Any, iteration_stats: Any) -> None:
        try:
            request_id = getattr(finished, "request_id", None)
            if request_id is None:
                self._lost["no_id"] += 1
                self._tell_once("no_id", "jouled: this vLLM tells of requests without their ids; send spans instead")
                return
            record = _record(request_id, finished, iteration_stats.iteration_timestamp)
            record["first_token"] = self._first_token(record)
            record["answer"] = self._answers.number(record)
            text = _encode(record)
            if len(text) > MOST_REQUEST_BYTES:
                raise ValueError(f"a request takes {len(text)} bytes")  # noqa: TRY301 - one way out
            self._waiting.append(text)
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._lost["unsent"] += 1
        except Exception:  # noqa: BLE001 - one request that cannot be read costs no other, and the engine nothing
            self.fault()

    def _first_token(self, record: dict[str, Any]) -> float | None:
        """When the first token of a request came that has ended; `None` where that was never told."""
        arrival = record["finished"] - record["e2e"]
        first = self._first_tokens.get(arrival)
        if first is None:
            return None
        first.running -= 1
        if not first.running:
            del self._first_tokens[arrival]
        return first.of(record)

    def _remember_first_tokens(self, iteration_stats: Any) -> None:
        """Of first tokens a step tells how long they took, not whose they are: the arrival tells that.

        vLLM subtracts it from the step's time; the difference of two Unix times of this century is exact as a float, so
        that the same arrival comes out again here and at the request's end.
        """
        try:
            for latency in getattr(iteration_stats, "time_to_first_tokens_iter", None) or ():
                now = iteration_stats.iteration_timestamp
                first = self._first_tokens.get(now - latency)
                if first is None:
                    self._first_tokens[now - latency] = FirstTokens(now)
                else:
                    first.another(now)
            while len(self._first_tokens) > MOST_RUNNING:
                del self._first_tokens[next(iter(self._first_tokens))]
        except Exception:  # noqa: BLE001 - requests are told without them
            self.fault()

    def _count(self, iteration_stats: Any) -> None:
        counts = self._counts
        counts["steps"] += 1
        counts["generation"] += int(getattr(iteration_stats, "num_generation_tokens", 0))
        prompt = getattr(iteration_stats, "prompt_token_stats", None)
        if prompt is not None:
            counts["prompt_computed"] += int(getattr(prompt, "computed", 0))
            counts["prompt_cached"] += int(getattr(prompt, "cached_tokens", 0))

    def _count_scheduled(self, details: Any) -> None:
        scheduled = self._scheduled
        scheduled["prefill_tokens"] += int(getattr(details, "num_ctx_tokens", 0))
        scheduled["decode_tokens"] += int(getattr(details, "num_generation_tokens", 0))
        scheduled["elapsed_microseconds"] += int(1_000 * getattr(details, "elapsed_ms", 0))

    def _datagram(self) -> tuple[bytes, int]:
        """The next datagram and how many of the waiting requests are in it."""
        head = {"version": 1, **self._about, "lost": self._lost, "counts": self._counts, "scheduled": self._scheduled}
        start = f'{_encode(head)[:-1]},"requests":['
        size = len(start) + len("]}")
        requests = []
        for request in self._waiting:
            size += len(request) + len(",")
            if size > MOST_DATAGRAM_BYTES:
                break
            requests.append(request)
        return f"{start}{','.join(requests)}]}}".encode("ascii"), len(requests)

    def _tell_once(self, about: str, message: str, *values: object, exc_info: bool = False) -> None:
        if about not in self._told:
            self._told.add(about)
            _log.warning(f"{message}. This is said once.", *values, exc_info=exc_info)


def _record(request_id: str, finished: Any, now: float) -> dict[str, Any]:
    """A finished request, as in `vllm_datagram`. Its id is the client's: the `gen_ai.request.id` of its span."""
    reason = getattr(finished, "finish_reason", None)
    return {
        "id": str(request_id)[:MOST_ID_CHARACTERS],
        "finished": now,
        "e2e": finished.e2e_latency,
        "queued": getattr(finished, "queued_time", None),
        "prefill": getattr(finished, "prefill_time", None),
        "decode": getattr(finished, "decode_time", None),
        "prompt_tokens": finished.num_prompt_tokens,
        "cached_tokens": getattr(finished, "num_cached_tokens", None),
        "generation_tokens": finished.num_generation_tokens,
        "preemptions": getattr(finished, "num_preemptions", 0),
        "reason": str(getattr(reason, "name", reason)).lower(),
    }


def _stat_logger_base() -> Any:
    """The class that vLLM's loader asks for, which ends the engine's start over any other; none without vLLM.

    Raises `ImportError` where this vLLM has it elsewhere: the loader then leaves the plug-in out and says so.
    """
    try:
        from vllm.v1.metrics.loggers import StatLoggerBase
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        return object
    return StatLoggerBase


class JouledStatLogger(_stat_logger_base()):  # type: ignore[misc]  # there is no vLLM where types are checked
    """vLLM's stat logger, one for each data-parallel engine of an API server. Nothing here raises."""

    _answers = Answers()  # of all ranks

    def __init__(self, vllm_config: object = None, engine_index: int = 0, *_: object, **__: object) -> None:
        del vllm_config
        self._teller: Teller | None = None
        if path := os.environ.get(SOCKET_VARIABLE):
            try:
                self._teller = Teller(path, engine_index, self._answers)
            except Exception:  # noqa: BLE001 - the engine starts without it
                _log.warning("jouled: nothing will be sent", exc_info=True)

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, *_: object, **__: object) -> None:
        """Take what one step tells."""
        if self._teller is not None:
            try:
                self._teller.step(scheduler_stats, iteration_stats)
            except Exception:  # noqa: BLE001 - the engine goes on whatever happens here
                self._teller.fault()

    def log(self, *_: object, **__: object) -> None:
        """Send what waits; vLLM calls this every ten seconds, also when no step is made."""
        if self._teller is not None:
            try:
                self._teller.send(time.monotonic())
            except Exception:  # noqa: BLE001 - as above
                self._teller.fault()

    def log_engine_initialized(self, *_: object, **__: object) -> None:
        """Nothing to say: the daemon finds the engine by itself."""


# What a later vLLM may declare abstract must not keep the engine from starting.
JouledStatLogger.__abstractmethods__ = frozenset()
