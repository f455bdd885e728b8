"""The callback inside a LiteLLM proxy: what it tells of each call, and that it never holds up nor breaks the proxy.

The calls were seen on LiteLLM 1.108.7 (tests/real/test_litellm.py runs one); here its base class is a stand-in.
"""

import asyncio
import contextlib
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests.http_events import HttpEventsReceiver

FIXTURES = Path(__file__).parents[2] / "fixtures/requests"
CALLS = {
    call["name"]: call for call in map(json.loads, (FIXTURES / "litellm-1.108.7-calls.jsonl").read_text().splitlines())
}
SECOND = 1_000_000_000


def _stand_in() -> dict[str, ModuleType]:
    package, integrations = ModuleType("litellm"), ModuleType("litellm.integrations")
    custom_logger = ModuleType("litellm.integrations.custom_logger")
    custom_logger.CustomLogger = type("CustomLogger", (), {})  # type: ignore[attr-defined]
    return {
        "litellm": package,
        "litellm.integrations": integrations,
        "litellm.integrations.custom_logger": custom_logger,
    }


@pytest.fixture(scope="module")
def callback() -> Iterator[Any]:
    """The module, with a stand-in for LiteLLM and no daemon named."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("JOULED_URL", raising=False)
        for name, module in _stand_in().items():
            patched.setitem(sys.modules, name, module)
        yield importlib.import_module("jouled_collectors.requests.litellm_callback")
        sys.modules.pop("jouled_collectors.requests.litellm_callback")


def kwargs_of(name: str, **changes: Any) -> dict[str, Any]:
    kwargs: dict[str, Any] = json.loads(json.dumps(CALLS[name]["kwargs"]))
    kwargs["standard_logging_object"] |= changes
    return kwargs


def taken(event: dict[str, Any]) -> Any:
    """What the daemon's receiver makes of it."""
    received = HttpEventsReceiver().decode(json.dumps(event).encode(), "application/json")
    assert received.rejected_count == 0, received.rejected
    return received.requests[0]


def event_of(callback: Any, name: str, **changes: Any) -> RequestEvent:
    told = taken(callback.event_of(kwargs_of(name, **changes)))
    assert isinstance(told.event, RequestEvent)
    return told.event


def test_a_streamed_call(callback):
    event = event_of(callback, "streamed")
    assert event.id == "chatcmpl-fixed1"
    assert event.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert (event.prompt_tokens, event.cached_prompt_tokens, event.generation_tokens) == (12, 8, 5)
    assert event.first_token_ns - event.arrival_ns == pytest.approx(0.165 * SECOND, abs=SECOND / 1000)
    assert event.last_token_ns - event.arrival_ns == pytest.approx(0.429 * SECOND, abs=SECOND / 1000)
    assert event.outcome is Outcome.COMPLETED


def test_without_a_stream_the_first_token_comes_at_the_end(callback):
    event = event_of(callback, "answered")
    assert event.first_token_ns == event.last_token_ns > event.arrival_ns


def test_how_calls_end(callback):
    ends = {name: event_of(callback, name).outcome for name in ("answered", "failed", "left")}
    assert ends == {"answered": Outcome.COMPLETED, "failed": Outcome.FAILED, "left": Outcome.CANCELLED}


def test_of_a_call_that_was_left_no_cache_is_told(callback):
    event = event_of(callback, "left")
    assert event.cached_prompt_tokens is None
    assert event.generation_tokens == 18


@pytest.mark.parametrize("name", ["refused by the proxy", "no such model"])
def test_a_call_that_never_reached_an_engine_is_none(callback, name):
    assert callback.event_of(kwargs_of(name)) is None


@pytest.mark.parametrize("changes", [{"cache_hit": True}, {"call_type": "aimage_generation"}, {"api_base": "azure"}])
def test_a_call_that_is_no_work_of_an_engine_is_none(callback, changes):
    assert callback.event_of(kwargs_of("answered", **changes)) is None


def test_the_engine_is_known_by_its_server(callback):
    hint = taken(callback.event_of(kwargs_of("answered"))).hint
    assert (hint.engine, hint.address, hint.port, hint.model) == ("", "127.0.0.1", 18100, "tiny")
    assert hint.may_be_elsewhere


def test_a_deployment_may_name_its_engine(callback):
    kwargs = kwargs_of("answered")
    kwargs["litellm_params"]["metadata"]["model_info"]["jouled_engine"] = "vllm-8000"
    hint = taken(callback.event_of(kwargs)).hint
    assert (hint.engine, hint.address) == ("vllm-8000", "")


@pytest.mark.parametrize(
    ("api_base", "server"),
    [
        ("http://gpu1:8000/v1", "gpu1:8000"),
        ("https://engine.example/v1", "engine.example:443"),
        ("http://[::1]:8000/v1", "::1:8000"),
    ],
)
def test_servers(callback, api_base, server):
    assert callback.event_of(kwargs_of("answered", api_base=api_base))["server"] == server
    assert taken(callback.event_of(kwargs_of("answered", api_base=api_base))).hint.may_be_elsewhere


@pytest.mark.parametrize(
    ("aliases", "tenant"),
    [
        ({"user_api_key_team_alias": "search", "user_api_key_alias": "nightly"}, "search"),
        ({"user_api_key_alias": "nightly"}, "nightly"),
        ({}, ""),
    ],
)
def test_the_tenant_is_the_team_else_the_key(callback, aliases, tenant):
    assert event_of(callback, "answered", metadata=aliases).tenant == tenant


def test_no_text_is_told(callback):
    for name in CALLS:
        event = callback.event_of(kwargs_of(name))
        assert "TEXT" not in json.dumps(event)
        assert "TEXT" in json.dumps(kwargs_of(name))


class Daemon:
    """jouled's door: takes what is posted; answers as told, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.events: list[str] = []
        self.headers: list[Any] = []
        self.posts = 0
        self._statuses = list(statuses)

    async def take(self, request: web.Request) -> web.Response:
        self.posts += 1
        self.headers.append(request.headers)
        status = self._statuses.pop(0) if self._statuses else 200
        body = await request.read()
        received = HttpEventsReceiver().decode(body, request.headers["Content-Type"])
        if status == 200:
            self.events += [each.event.id for each in received.requests]
        answer, headers = HttpEventsReceiver().respond(received, "")
        return web.Response(status=status, body=answer, headers=headers)


@contextlib.asynccontextmanager
async def daemon(told: Daemon, socket: Path | None = None) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/api/v1/requests", told.take)
    runner = web.AppRunner(application)
    await runner.setup()
    if socket is None:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    else:
        await web.UnixSite(runner, str(socket)).start()
        url = f"unix:{socket}"
    try:
        yield url
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - bounded by the deadline above
            await asyncio.sleep(0.005)


async def tell(handler: Any, *ids: str) -> None:
    for request_id in ids:
        kwargs = kwargs_of("streamed", id=request_id)
        await handler.async_log_success_event(kwargs=kwargs, response_obj=None, start_time=None, end_time=None)


@pytest.mark.parametrize("over", ["tcp", "unix"])
async def test_calls_reach_the_daemon(callback, tmp_path, over):
    told = Daemon()
    async with daemon(told, tmp_path / "api.sock" if over == "unix" else None) as url:
        sender = callback.Sender(url, "s3cret")
        await tell(callback.JouledCallback([sender]), *map(str, range(20)))
        await until(lambda: len(told.events) == 20)
    assert told.events == [str(number) for number in range(20)]
    assert told.headers[0]["Authorization"] == "Bearer s3cret"


async def test_failures_reach_the_daemon_too(callback):
    told = Daemon()
    async with daemon(told) as url:
        handler = callback.JouledCallback([callback.Sender(url)])
        kwargs = kwargs_of("failed", id="r1")
        await handler.async_log_failure_event(kwargs=kwargs, response_obj=None, start_time=None, end_time=None)
        await until(lambda: told.events == ["r1"])


async def test_every_daemon_is_told(callback):
    one, two = Daemon(), Daemon()
    async with daemon(one) as first, daemon(two) as second:
        await tell(callback.JouledCallback([callback.Sender(first), callback.Sender(second)]), "r1")
        await until(lambda: one.events == two.events == ["r1"])


async def test_a_daemon_that_cannot_take_it_now_gets_it_later(callback, caplog):
    told = Daemon(503, 401)
    async with daemon(told) as url:
        await tell(callback.JouledCallback([callback.Sender(url)]), "r1")
        await until(lambda: told.events == ["r1"])
    assert told.posts == 3
    assert "answered 503" in caplog.text


async def test_a_daemon_that_comes_later_gets_it(callback, tmp_path):
    told = Daemon()
    sender = callback.Sender(f"unix:{tmp_path / 'api.sock'}")
    await tell(callback.JouledCallback([sender]), "r1")
    async with daemon(told, tmp_path / "api.sock"):
        await until(lambda: told.events == ["r1"])


async def test_what_is_refused_is_counted_and_not_sent_again(callback, caplog):
    told = Daemon()
    async with daemon(told) as url:
        sender = callback.Sender(url)
        await tell(callback.JouledCallback([sender]), "", "r1")
        await until(lambda: told.events == ["r1"])
        await until(lambda: sender.dropped == 1)
        await tell(callback.JouledCallback([sender]), "r2")
        await until(lambda: told.events == ["r1", "r2"])
    assert "the request has no id" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        # As the daemon answers where nothing was taken: it names the first hundred.
        {"error": "nothing was taken", "rejected": [{"message": "why"}] * 2, "rejected_count": 7},
        {"error": "the body cannot be read"},
        {"rejected": ["why"]},
        {"rejected": {"0": "why"}},
        ["why"],
    ],
)
async def test_all_that_is_refused_at_once_is_counted_whoever_answers(callback, caplog, answer):
    asked = []

    async def refuse(request: web.Request) -> web.Response:
        asked.append(await request.read())
        return web.json_response(answer, status=400)

    told = Daemon()
    told.take = refuse
    async with daemon(told) as url:
        sender = callback.Sender(url)
        await tell(callback.JouledCallback([sender]), *map(str, range(7)))
        await until(lambda: sender.dropped == 7)
    assert sum(body.count(b"\n") + 1 for body in asked) == 7
    assert "why" in caplog.text or "cannot be read" in caplog.text


async def test_without_a_daemon_nothing_waits_and_what_is_dropped_is_told(callback, monkeypatch, caplog):
    monkeypatch.setattr(callback, "MOST_QUEUED", 3)
    sender = callback.Sender("unix:/nowhere/api.sock")
    await tell(callback.JouledCallback([sender]), *map(str, range(11)))
    assert sender.dropped == 8
    warnings = [record.message for record in caplog.records if "were not told" in record.message]
    assert [message.split()[0] for message in warnings] == ["1", "2", "4", "8"]


async def test_at_the_end_what_waits_is_sent(callback):
    told = Daemon()
    async with daemon(told) as url:
        sender = callback.Sender(url)
        await tell(callback.JouledCallback([sender]), *map(str, range(1_200)))
        await asyncio.to_thread(sender.close, 10.0)
    assert len(told.events) == 1_200


async def test_the_end_does_not_wait_for_a_daemon_that_is_away(callback):
    sender = callback.Sender("unix:/nowhere/api.sock")
    await tell(callback.JouledCallback([sender]), "r1")
    await asyncio.to_thread(sender.close, 10.0)
    assert "jouled" not in {thread.name for thread in threading.enumerate() if thread is sender._thread}


async def test_a_litellm_that_tells_otherwise_breaks_nothing(callback, caplog):
    sender = callback.Sender("unix:/nowhere/api.sock")
    handler = callback.JouledCallback([sender])
    odd: list[Any] = [
        {}, {"standard_logging_object": None}, {"standard_logging_object": 7}, {"standard_logging_object": []},
        {"standard_logging_object": {"call_type": "acompletion", "api_base": "http://h:99999"}},
        kwargs_of("answered", startTime=None), kwargs_of("answered", startTime="SECRET"),
        kwargs_of("answered", metadata=3), kwargs_of("answered", prompt_tokens={}),
        {**kwargs_of("answered"), "litellm_params": {"metadata": {"model_info": 3}}},
    ]  # fmt: skip
    for kwargs in odd:
        await handler.async_log_success_event(kwargs=kwargs, response_obj=None, start_time=None, end_time=None)
    assert handler.unreadable > 4
    assert "cannot be told" in caplog.text
    assert "SECRET" not in caplog.text


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from([*CALLS["streamed"]["kwargs"]["standard_logging_object"], "metadata"]), ANYTHING, max_size=4
    )
)
def test_whatever_litellm_tells_the_proxy_goes_on(callback, changes):
    handler = callback.JouledCallback([])
    handler._senders = [_Ignore()]
    handler._tell(kwargs_of("streamed", **changes))


class _Ignore:
    def put(self, line: bytes) -> None:
        pass


def test_without_a_daemon_named_it_is_inert(callback, caplog):
    assert callback._from_environment({}) == []
    assert "set JOULED_URL" in caplog.text
    handler = callback.JouledCallback([])
    handler._tell({"standard_logging_object": 7})
    assert handler.unreadable == 0


@pytest.mark.parametrize(
    ("urls", "usable"),
    [
        ("http://127.0.0.1:9966", 1),
        ("http://a:1, https://b ,unix:/run/jouled/api.sock", 3),
        ("http://a:99999", 0),
        ("gpu1:9966", 0),
        ("unix:", 0),
        ("http://[::1", 0),
        (",", 0),
    ],
)
def test_urls(callback, urls, usable, caplog):
    assert len(callback._from_environment({"JOULED_URL": urls})) == usable
    assert bool(caplog.records) == (not usable)


def test_the_token_comes_from_a_file(callback, tmp_path, caplog):
    (tmp_path / "token").write_text("s3cret\n")
    named = {"JOULED_URL": "http://a:1", "JOULED_TOKEN_FILE": str(tmp_path / "token")}
    assert callback._from_environment(named)[0]._token == "s3cret"
    named["JOULED_TOKEN_FILE"] = str(tmp_path / "gone")
    assert callback._from_environment(named)[0]._token == ""
    assert "JOULED_TOKEN_FILE cannot be read" in caplog.text


def test_the_file_alone_is_enough(callback, tmp_path):
    """As copied beside a proxy's configuration: with the standard library and LiteLLM only."""
    package = tmp_path / "litellm" / "integrations"
    package.mkdir(parents=True)
    (package / "custom_logger.py").write_text("class CustomLogger: pass")
    (tmp_path / "litellm_callback.py").write_bytes(Path(callback.__file__).read_bytes())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import litellm_callback as c; print(type(c.proxy_handler_instance).__name__)"  # noqa: E501
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "JouledCallback"
