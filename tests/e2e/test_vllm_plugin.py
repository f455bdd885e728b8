"""vLLM's plug-in and a real daemon: to receipts, over a stop, a kill and a restart, each once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.e2e.conftest import METER, Launch, until_covered
from tests.e2e.engine_server import engine_server
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for

from jouled_collectors.requests.vllm_plugin import JouledStatLogger

CONFIGURATION = f"""
{METER}
[[engines]]
name = "vllm-8000"
type = "vllm"
url = "{{url}}"
devices = ["gpu0"]
interval_seconds = 0.5
"""

Finish = Callable[..., None]


@pytest.fixture
def finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Finish]:
    """A step of an engine in which these requests end, too short for any look at the page."""
    monkeypatch.setenv("JOULED_SOCKET", str(tmp_path / "state" / "vllm.sock"))
    logger = JouledStatLogger(None, 0)
    assert logger._teller is not None

    def step(*ids: str) -> None:
        requests = [
            SimpleNamespace(
                request_id=each,
                e2e_latency=0.08,
                decode_time=0.05,
                num_prompt_tokens=192,
                num_cached_tokens=128,
                num_generation_tokens=20,
            )
            for each in ids
        ]
        logger.record(None, SimpleNamespace(iteration_timestamp=time.time(), finished_requests=requests))

    yield step
    logger._teller._socket.close()


def has_receipts(daemon: LiveDaemon, *ids: str) -> bool:
    return all((receipt := daemon.receipt(each)) and not receipt["provisional"] for each in ids)


def completed(daemon: LiveDaemon) -> float:
    try:
        return daemon.page().total("jouled_requests_total", engine="vllm-8000", outcome="completed")
    except KeyError:
        return 0.0


def test_every_finished_request_becomes_one_receipt(launch: Launch, finish: Finish) -> None:
    with engine_server() as (engine, url):
        configuration = CONFIGURATION.format(url=url)
        first = launch(configuration)
        until_covered(first, engine, 0.5)
        engine.prompt += 6 * 192
        engine.generation += 6 * 20
        finish("chatcmpl-1", "chatcmpl-2")
        wait_for(lambda: has_receipts(first, "chatcmpl-1", "chatcmpl-2"), PATIENCE_SECONDS, "no receipts")
        finish("chatcmpl-3")
        first.stop()  # at once: it is committed although nobody could be told
        finish("chatcmpl-4")  # nobody is there
        second = launch(configuration)
        finish("chatcmpl-5")
        wait_for(
            lambda: has_receipts(second, "chatcmpl-3", "chatcmpl-4", "chatcmpl-5"), PATIENCE_SECONDS, "no receipts"
        )
        second.kill()
        third = launch(configuration)
        finish("chatcmpl-6")
        wait_for(lambda: has_receipts(third, "chatcmpl-6"), PATIENCE_SECONDS, "no receipt")
        wait_for(lambda: completed(third) >= 6, PATIENCE_SECONDS, "not counted")
        assert completed(third) == 6
        receipt = third.receipt("chatcmpl-1")
    assert receipt is not None
    assert (receipt["engine"], receipt["model"]) == ("vllm-8000", "tiny")
    assert (receipt["prompt_tokens"], receipt["cached_prompt_tokens"], receipt["generation_tokens"]) == (192, 128, 20)
