"""A LiteLLM proxy tells jouled of its calls: who asked, what was cut off, what failed. Runs inside the proxy.

    litellm_settings:
      callbacks: ["jouled_collectors.requests.litellm_callback.proxy_handler_instance"]

Needs the standard library and the proxy's own `litellm`: `pip install --no-deps .` from the checkout, or copy this file
beside the proxy's configuration and name it `litellm_callback.proxy_handler_instance`. It does nothing unless
JOULED_URL names at least one daemon, parted by commas: `http://gpu1:9966`, `unix:/run/jouled/api.sock`. Where they ask
for a token, JOULED_TOKEN_FILE is the file that holds it. Each event goes to all daemons, and each takes what went to an
engine of its host, known by `api_base`; a deployment whose engine cannot be known by that (behind a port proxy) names
it as `model_info: {jouled_engine: vllm-8000}`.

A call never waits and never fails because of this: events are queued, `MOST_QUEUED` at most for each daemon, and sent
by a thread. What does not fit is dropped and counted, and the log says how many.

Taken are names, numbers and times of `standard_logging_object`, no text. As seen on LiteLLM 1.108.7: `id` is the
engine's response id, of a failed call LiteLLM's own; `trace_id` is that of the client's `traceparent`, if it sent one.
Without streaming nothing is known of the first token: it counts as seen at the end, as the client saw it. When a client
leaves a stream, `client_disconnected` is set and the tokens are LiteLLM's own estimate; when it leaves another call,
the engine works on and the call counts as completed. A call that was answered from LiteLLM's cache, or never sent to an
engine, is none.
"""

import atexit
import http.client
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from litellm.integrations.custom_logger import CustomLogger

MOST_QUEUED = 10_000
"""Some 5 MB; at 50 calls a second what three minutes without a daemon bring."""

_MOST_AT_ONCE = 500
_TIMEOUT_SECONDS = 15.0  # the daemon answers when the event is on disk, after 8 s at the latest
_LONGEST_PAUSE_SECONDS = 30.0
_LAST_SECONDS = 2.0
_PATH = "/api/v1/requests"
_CALLS = frozenset({"acompletion", "atext_completion", "aresponses", "anthropic_messages", "aembedding"})
_PORTS = {"http": 80, "https": 443}
_LONGEST_TEXT = 256
_NANOSECONDS = 1_000_000_000

_log = logging.getLogger("jouled.litellm")


class JouledCallback(CustomLogger):  # type: ignore[misc,unused-ignore]  # litellm is not there where types are checked
    """The callback. Where no senders are given the environment names them. unreadable: calls that made no event."""

    def __init__(self, senders: "list[Sender] | None" = None) -> None:
        super().__init__()
        self.unreadable = 0
        self._senders = _from_environment(os.environ) if senders is None else senders

    async def async_log_success_event(
        self,
        kwargs: Mapping[str, Any],
        response_obj: object,  # noqa: ARG002 - LiteLLM passes them all by name
        start_time: object,  # noqa: ARG002
        end_time: object,  # noqa: ARG002
    ) -> None:
        """A call was answered, or its client left."""
        self._tell(kwargs)

    async def async_log_failure_event(
        self,
        kwargs: Mapping[str, Any],
        response_obj: object,  # noqa: ARG002
        start_time: object,  # noqa: ARG002
        end_time: object,  # noqa: ARG002
    ) -> None:
        """A call failed."""
        self._tell(kwargs)

    def _tell(self, kwargs: Mapping[str, Any]) -> None:
        if not self._senders:
            return
        try:
            event = event_of(kwargs)
        except Exception as error:  # noqa: BLE001 - a version of LiteLLM that tells otherwise must not hurt the proxy
            self.unreadable += 1
            if self.unreadable & (self.unreadable - 1) == 0:  # the 1st, 2nd, 4th, 8th …
                _log.warning("%d calls cannot be told to jouled: %s", self.unreadable, type(error).__name__)
            return
        if event is not None:
            line = json.dumps(event, separators=(",", ":")).encode()
            for sender in self._senders:
                sender.put(line)


def event_of(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The event for `POST /api/v1/requests`; `None` for a call that no engine worked on."""
    told = kwargs.get("standard_logging_object") or {}
    server = _server(told.get("api_base") or "")
    if told.get("call_type") not in _CALLS or told.get("cache_hit") or not server:
        return None
    metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
    outcome = _outcome(told, metadata)
    start, end = float(told["startTime"]), float(told["endTime"])
    event = {
        "id": _text(told.get("id")),
        "arrival_ns": round(start * _NANOSECONDS),
        "first_token_ns": round(min(max(float(told.get("completionStartTime") or end), start), end) * _NANOSECONDS),
        "last_token_ns": round(end * _NANOSECONDS),
        "prompt_tokens": int(told.get("prompt_tokens") or 0),
        "generation_tokens": int(told.get("completion_tokens") or 0),
        "outcome": outcome,
        "trace_id": _text(told.get("trace_id")),
        "tenant": _tenant(told.get("metadata") or {}),
        **_whose(metadata, server, told),
    }
    cached = _cached(told) if outcome == "completed" else None
    return event if cached is None else {**event, "cached_prompt_tokens": cached}


def _outcome(told: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    if metadata.get("client_disconnected"):
        return "cancelled"
    return "completed" if told.get("status") == "success" else "failed"


def _cached(told: Mapping[str, Any]) -> int | None:
    usage = (told.get("metadata") or {}).get("usage_object") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return cached if isinstance(cached, int) else None


def _tenant(metadata: Mapping[str, Any]) -> str:
    """The team, else the key, by their aliases."""
    return _text(metadata.get("user_api_key_team_alias") or metadata.get("user_api_key_alias"))


def _whose(metadata: Mapping[str, Any], server: str, told: Mapping[str, Any]) -> dict[str, str]:
    engine = _text((metadata.get("model_info") or {}).get("jouled_engine"))
    if engine:
        return {"engine": engine}
    return {"server": server, "model": _text(told.get("model")).removeprefix(f"{told.get('custom_llm_provider')}/")}


def _server(api_base: str) -> str:
    parts = urlsplit(api_base)
    port = parts.port or _PORTS.get(parts.scheme)
    return f"{parts.hostname}:{port}" if parts.hostname and port else ""


def _text(value: object) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


class Sender:
    """Sends lines to one daemon, from a thread that begins with the first line."""

    def __init__(self, url: str, token: str = "") -> None:
        self.dropped = 0
        self._url = url
        self._token = token
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ends_by: float | None = None
        self._said: set[str] = set()

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it where the queue is full; returns at once."""
        with self._changed:
            if len(self._queue) >= MOST_QUEUED:
                self._drop(1, "the queue is full")
                return
            self._queue.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jouled", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify()

    def close(self, seconds: float = _LAST_SECONDS) -> None:
        """Send what waits, for so long at most."""
        with self._changed:
            self._ends_by = time.monotonic() + seconds
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        pause = 0.0
        while (lines := self._next(pause)) is not None:
            try:
                is_done = self._post(lines)
            except (OSError, ValueError, http.client.HTTPException) as error:
                self._say_once(f"jouled at {self._url} cannot be reached, calls wait: {error}")
                is_done = False
            if is_done:
                pause = 0.0
                self._said.clear()
                with self._changed:
                    for _ in lines:
                        self._queue.popleft()
            else:
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause or 0.5)

    def _next(self, pause: float) -> list[bytes] | None:
        """The oldest lines once there are some, after the pause; `None` at the end."""
        with self._changed:
            if pause:
                self._changed.wait_for(lambda: self._ends_by is not None, pause)
            self._changed.wait_for(lambda: self._queue or self._ends_by is not None)
            is_late = self._ends_by is not None and time.monotonic() > self._ends_by
            if is_late or not self._queue or (pause and self._ends_by is not None):
                return None
            return [line for line, _ in zip(self._queue, range(_MOST_AT_ONCE), strict=False)]

    def _post(self, lines: list[bytes]) -> bool:
        """Whether the daemon has it; what it refuses is told, and not sent again."""
        connection = _connection(self._url)
        try:
            headers = {"Content-Type": "application/x-ndjson"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            connection.request("POST", _path(self._url), b"\n".join(lines), headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status in {http.client.OK, http.client.BAD_REQUEST}:
            count, why = _refused(answer)
            if response.status == http.client.BAD_REQUEST:
                count, why = len(lines), why or _short(answer)
            if count:
                self._drop(count, f"refused: {why}")
            return True
        self._say_once(f"jouled at {self._url} answered {response.status}, calls wait: {_short(answer)}")
        return False

    def _drop(self, count: int, why: str) -> None:
        before, self.dropped = self.dropped, self.dropped + count
        if self.dropped.bit_length() > before.bit_length():  # the 1st, 2nd, 4th, 8th …
            _log.warning("%d calls were not told to jouled at %s: %s", self.dropped, self._url, why)

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            _log.warning("%s", sentence)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(self._path)


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _UnixConnection(parts.path)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)


def _path(url: str) -> str:
    parts = urlsplit(url)
    return _PATH if parts.scheme == "unix" else parts.path.rstrip("/") + _PATH


def _refused(answer: bytes) -> tuple[int, str]:
    """How many events a daemon refused, and why the first of them."""
    try:
        told = json.loads(answer)
        refused = told.get("rejected") or []
        count = len(refused) + sum((told.get("more_rejected") or {}).values())
        return count, str(refused[0].get("message"))[:_LONGEST_TEXT] if refused else ""
    except (ValueError, AttributeError, TypeError, LookupError):
        return 0, ""


def _short(answer: bytes) -> str:
    return answer[:_LONGEST_TEXT].decode(errors="replace")


def _from_environment(environment: Mapping[str, str]) -> list[Sender]:
    urls = [url.strip() for url in environment.get("JOULED_URL", "").split(",") if url.strip()]
    if not urls:
        _log.warning("calls are not told to jouled: set JOULED_URL, for example to http://127.0.0.1:9966")
    token = _token(environment.get("JOULED_TOKEN_FILE", ""))
    return [Sender(url, token) for url in urls if _is_usable(url)]


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        if (parts.scheme in _PORTS and parts.hostname and parts.port != 0) or _is_socket(url):
            return True
    except ValueError:
        pass  # a port that is no number, an unfinished IPv6 address
    _log.error("JOULED_URL is no usable URL: %s; write http://HOST:PORT or unix:/run/jouled/api.sock", url)
    return False


def _is_socket(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "unix" and parts.path.startswith("/")


def _token(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _log.error("JOULED_TOKEN_FILE cannot be read, calls are told without a token: %s", error)
        return ""


proxy_handler_instance = JouledCallback()
