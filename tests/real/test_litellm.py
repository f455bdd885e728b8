"""A real LiteLLM proxy with jouled's callback, between a client and a server on loopback: what the daemon is told."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.support.live import wait_for
from tests.support.tools import REPOSITORY

from jouled.api import ReceivedRequest
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests.http_events import HttpEventsReceiver

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(300)]

LITELLM = REPOSITORY / ".venv-litellm/bin/litellm"
CALLBACK = REPOSITORY / "collectors/jouled_collectors/requests/litellm_callback.py"
MASTER_KEY = "sk-9f8e7d6c5b4a39281706f5e4d3c2b1a0ffeeddccbbaa9988"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CONFIGURATION = """
model_list:
  - model_name: tiny
    litellm_params: {{model: hosted_vllm/tiny, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
litellm_settings: {{callbacks: ["litellm_callback.proxy_handler_instance"], num_retries: 0}}
general_settings: {{master_key: {key}}}
"""


class Proxy:
    """The proxy and what its callback told."""

    def __init__(self, url: str, told: Path) -> None:
        self._url = url
        self._told = told

    def open(self, content: str, *, stream: bool = False, key: str = MASTER_KEY) -> HTTPResponse:
        body = {"model": "tiny", "stream": stream, "messages": [{"role": "user", "content": content}]}
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01",
        }
        request = urllib.request.Request(f"{self._url}/v1/chat/completions", json.dumps(body).encode(), headers)
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=30)
        return answer

    def text(self) -> str:
        return self._told.read_text() if self._told.exists() else ""

    def received(self, found: Callable[[RequestEvent], bool]) -> ReceivedRequest:
        """The request that is told of like this, once it is."""

        def look() -> ReceivedRequest | None:
            received = HttpEventsReceiver().decode(self.text().encode(), "application/x-ndjson")
            assert received.rejected_count == 0
            requests = [each for each in received.requests if isinstance(each.event, RequestEvent)]
            return next((each for each in requests if found(each.event)), None)  # type: ignore[arg-type]

        return wait_for(look, 20, "the callback told nothing of it")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("litellm")
    engine_port, proxy_port, door_port = (_free_port() for _ in range(3))
    (folder / "config.yaml").write_text(CONFIGURATION.format(port=engine_port, key=MASTER_KEY))
    shutil.copy(CALLBACK, folder)
    environment = os.environ | {
        "JOULED_URL": f"http://127.0.0.1:{door_port}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "*",
        "PYTHONPATH": str(REPOSITORY),
    }
    commands = [
        [sys.executable, REPOSITORY / "tests/real/openai_server.py", engine_port],
        [sys.executable, __file__, door_port, folder / "told"],
        [LITELLM, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", proxy_port],
    ]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        for command in commands:
            process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=environment)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        url = f"http://127.0.0.1:{proxy_port}"
        wait_for(lambda: _answers(f"{url}/health/liveliness"), 180, f"no proxy; see {folder / 'log'}")
        yield Proxy(url, folder / "told")


def test_an_answer(proxy: Proxy) -> None:
    with proxy.open("answer a1") as answer:
        assert json.loads(answer.read())["id"] == "chatcmpl-a1"
    received = proxy.received(lambda event: event.id == "chatcmpl-a1")
    event: Any = received.event
    assert (event.prompt_tokens, event.cached_prompt_tokens, event.generation_tokens) == (12, 8, 5)
    assert (event.outcome, event.trace_id) == (Outcome.COMPLETED, TRACE_ID)
    assert received.hint.model == "tiny"
    assert received.hint.address == "127.0.0.1"
    assert abs(event.last_token_ns - time.time_ns()) < 60e9


def test_a_stream(proxy: Proxy) -> None:
    with proxy.open("answer s1", stream=True) as answer:
        assert b"[DONE]" in answer.read()
    event: Any = proxy.received(lambda event: event.id == "chatcmpl-s1").event
    assert event.generation_tokens == 5
    assert 0.1e9 < event.first_token_ns - event.arrival_ns < event.last_token_ns - event.arrival_ns


def test_a_failure_of_the_engine(proxy: Proxy) -> None:
    with pytest.raises(urllib.error.HTTPError):
        proxy.open("fail f1")
    event: Any = proxy.received(lambda event: event.outcome is Outcome.FAILED).event
    assert (event.prompt_tokens, event.generation_tokens) == (0, 0)


def test_a_client_that_leaves_a_stream(proxy: Proxy) -> None:
    with proxy.open("slow l1", stream=True) as answer:
        answer.readline()
    event: Any = proxy.received(lambda event: event.id == "chatcmpl-l1").event
    assert event.outcome is Outcome.CANCELLED
    assert event.generation_tokens < 200


def test_a_call_that_the_proxy_refuses_is_not_told(proxy: Proxy) -> None:
    with pytest.raises(urllib.error.HTTPError):
        proxy.open("answer n1", key="sk-wrong")
    with proxy.open("answer a2") as answer:
        answer.read()
    proxy.received(lambda event: event.id == "chatcmpl-a2")
    assert "127.0.0.1" in proxy.text()
    assert "sk-wrong" not in proxy.text()


def test_no_word_of_a_prompt_or_an_answer_is_told(proxy: Proxy) -> None:
    assert proxy.text()
    assert not [word for word in ("slow ", "answer ", "ANSWER", "out of memory") if word in proxy.text()]


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def _door(port: int, told: Path) -> None:
    """jouled's door as far as the callback sees it: keeps the bodies, answers as the receiver does."""

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        with told.open("ab") as file:
            file.write(body + b"\n")
        received = HttpEventsReceiver().decode(body, request.content_type)
        answer, headers = HttpEventsReceiver().respond(received, request.content_type)
        return web.Response(body=answer, headers=headers)

    application = web.Application()
    application.router.add_post("/api/v1/requests", take)
    web.run_app(application, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    _door(int(sys.argv[1]), Path(sys.argv[2]))
