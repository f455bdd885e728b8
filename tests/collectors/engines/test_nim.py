"""The NIM collector on the page that a live NIM 1.0.0 showed, and on the pages of engines behind newer ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jouled.api import (
    EngineCollector,
    EngineFacts,
    EnginePage,
    EnvironmentPort,
    FactsCollector,
    LatencyCollector,
)
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines.nim import NimCollector
from jouled_collectors.engines.sglang import SglangCollector
from jouled_collectors.engines.tensorrt_llm import TensorRtLlmCollector
from jouled_collectors.engines.vllm import VllmCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
NIM = NimCollector()


def fixture(name: str) -> bytes:
    return (FIXTURES / f"{name}.prom").read_bytes()


def test_is_a_collector_with_facts_and_latencies() -> None:
    collector: EngineCollector = NIM
    assert (collector.name, collector.page_path, collector.version_path) == ("nim", "/v1/metrics", "/v1/version")
    assert collector.semantics == CounterSemantics()
    assert isinstance(NIM, FactsCollector)
    assert isinstance(NIM, EnvironmentPort)
    assert NIM.port_variables == ("NIM_SERVER_PORT",)
    assert isinstance(NIM, LatencyCollector)


def test_the_names_of_1() -> None:
    assert NIM.page(fixture("nim-1.0.0")) == EnginePage(
        model="meta/llama-3.1-8b-instruct",
        prompt_tokens=109,
        generation_tokens=174,
        requests_running=1,
        requests_waiting=0,
    )


def test_time_per_output_token_has_one_observation_a_token_and_is_left_out() -> None:
    read = NIM.latencies(fixture("nim-1.0.0"), {"ttft", "tpot", "e2el"})
    assert {name: histogram.counts[-1] for name, histogram in read.items()} == {"ttft": 5, "e2el": 5}


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("vllm-0.33.0-ranks", VllmCollector()),
        ("sglang-0.5.23-ranks", SglangCollector()),
        ("sglang-0.5.5-at-finish", SglangCollector()),
        ("tensorrt-llm-050f80d", TensorRtLlmCollector()),
    ],
)
def test_the_page_of_the_engine_behind_it_is_read_as_that_engines(name: str, behind: EngineCollector) -> None:
    theirs = behind.page(fixture(name))
    assert NIM.page(fixture(name)) == replace(theirs, semantics=theirs.semantics or behind.semantics)
    assert isinstance(behind, LatencyCollector)
    assert NIM.latencies(fixture(name), {"ttft", "e2el"}) == behind.latencies(fixture(name), {"ttft", "e2el"})


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the engine's metrics"):
        NIM.page(b"python_info 1\nnum_requests_running_max 3\n")


def test_version() -> None:
    assert NIM.version(b'{"release":"1.0.0","api":"1.0.0"}') == "1.0.0"


@pytest.mark.parametrize(
    "module",
    [
        "nim_llm_sdk.entrypoints.launch",
        "nim_llm_sdk.entrypoints.openai.api_server",
        "vllm_nvext.entrypoints.openai.api_server",
    ],
)
def test_servers_of_1_are_recognised(module: str) -> None:
    argv = ["/opt/nim/llm/.venv/bin/python3", "-m", module, "--max-model-len", "16000"]
    assert NIM.recognises(argv, "")
    assert not VllmCollector().recognises(argv, "")
    assert NIM.port(argv) == 8000


@pytest.mark.parametrize("argv", [[], ["vllm", "serve", "m"], ["python3", "-m", "nim_llm_sdk.logging.pack_all_logs"]])
def test_other_processes_are_not(argv: list[str]) -> None:
    assert not NIM.recognises(argv, "")


def test_facts() -> None:
    argv = ["python3", "-m", "vllm_nvext.entrypoints.openai.api_server", "--tensor-parallel-size", "4"]
    environ = {"NIM_SERVED_MODEL_NAME": "meta/llama,alias", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert NIM.facts(argv, environ) == EngineFacts(model="meta/llama", parallelism="tp4")
    assert NIM.facts(argv, {"NIM_MODEL_NAME": "/models/m"}).model == "/models/m"


@given(
    st.lists(
        st.sampled_from([b"\nvllm:", b"\nsglang_", b"\ntrtllm_", b"\n", b"prompt_tokens_total", b" 5", b'{a="b"}'])
        | st.binary(max_size=3),
        max_size=30,
    ).map(b"".join)
)
def test_any_bytes_give_a_page_or_a_value_error(body: bytes) -> None:
    try:
        page = NIM.page(body)
    except ValueError:
        return
    assert page.prompt_tokens is None or page.prompt_tokens >= 0
