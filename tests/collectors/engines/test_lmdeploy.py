"""The LMDeploy collector on pages printed by its own loggers (fixtures/engines/regenerate/lmdeploy_now.py)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jouled.api import EngineCollector, EngineFacts, EnginePage, FactsCollector, LatencyCollector
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines.lmdeploy import LmdeployCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
PAGE = (FIXTURES / "lmdeploy-0.18.0.prom").read_bytes()
LMDEPLOY = LmdeployCollector()
EXPECTED = EnginePage(
    model="internlm/internlm2_5-7b-chat",
    prompt_tokens=215,
    cached_prompt_tokens=64,
    generation_tokens=42,
    requests_running=1,
    requests_waiting=2,
)


def doubled(page: bytes) -> bytes:
    """The page as commit 0168eed prints it: every generated token counted twice, no histogram of both kinds."""
    lines = [line for line in page.splitlines(keepends=True) if b"lmdeploy:iteration_tokens_total" not in line]
    return b"".join(lines).replace(b'chat"} 42.0\n', b'chat"} 84.0\n')


def test_is_an_engine_collector_with_the_default_semantics() -> None:
    collector: EngineCollector = LMDEPLOY
    assert (collector.name, collector.page_path, collector.version_path) == ("lmdeploy", "/metrics/", "")
    assert collector.semantics == CounterSemantics()
    assert isinstance(LMDEPLOY, FactsCollector)
    assert isinstance(LMDEPLOY, LatencyCollector)


def test_a_page_of_its_own_logger_with_aborted_and_running_requests() -> None:
    assert LMDEPLOY.page(PAGE) == EXPECTED


def test_a_page_of_an_older_release_without_the_cache_counter() -> None:
    page = LMDEPLOY.page((FIXTURES / "lmdeploy-0.12.0.prom").read_bytes())
    assert page == replace(EXPECTED, cached_prompt_tokens=None)


def test_requests_that_wait_for_a_handle_wait_too() -> None:
    page = PAGE.replace(
        b'lmdeploy:num_api_requests_waiting{engine="0",model_name="internlm/internlm2_5-7b-chat"} 0.0',
        b'lmdeploy:num_api_requests_waiting{engine="0",model_name="internlm/internlm2_5-7b-chat"} 5.0',
    )
    assert LMDEPLOY.page(page).requests_waiting == 7


def test_tokens_counted_twice_are_not_told() -> None:
    assert LMDEPLOY.page(doubled(PAGE)) == replace(EXPECTED, generation_tokens=None)


def test_a_counter_above_the_histogram_of_both_kinds_is_not_told() -> None:
    page = b"lmdeploy:prompt_tokens_total 10\nlmdeploy:generation_tokens_total 8\n"
    assert LMDEPLOY.page(page + b"lmdeploy:iteration_tokens_total_sum 14\n").generation_tokens is None
    assert LMDEPLOY.page(page + b"lmdeploy:iteration_tokens_total_sum 18\n").generation_tokens == 8


def test_latencies_of_requests() -> None:
    read = LMDEPLOY.latencies(PAGE, {"ttft", "tpot", "e2el"})
    assert {name: histogram.counts[-1] for name, histogram in read.items()} == {"ttft": 4, "e2el": 2}


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric that begins with lmdeploy:"):
        LMDEPLOY.page(b"python_info 1\n")
    with pytest.raises(ValueError, match="does not tell its version"):
        LMDEPLOY.version(b"{}")


@given(st.integers(0, len(PAGE)), st.binary(max_size=8))
def test_a_page_cut_anywhere_gives_no_more_than_the_whole(end: int, tail: bytes) -> None:
    try:
        page = LMDEPLOY.page(PAGE[:end] + b"\n" + tail)
    except ValueError:
        return
    assert (page.prompt_tokens or 0) <= 215
    assert (page.generation_tokens or 0) <= 42


@pytest.mark.parametrize(
    ("argv", "recognised", "port"),
    [
        (["/opt/bin/python", "/opt/bin/lmdeploy", "serve", "api_server", "m"], True, 23333),
        (["lmdeploy", "serve", "api_server", "m", "--server-port", "8001"], True, 8001),
        (["python3", "-m", "lmdeploy", "serve", "api_server", "m", "--server-port=8002"], True, 8002),
        (["lmdeploy", "serve", "api_server", "m", "--server-port", "0"], True, 23333),
        (["lmdeploy", "serve", "proxy"], False, 23333),
        (["lmdeploy", "chat", "m"], False, 23333),
        (["lmdeploy"], False, 23333),
        ([], False, 23333),
    ],
)
def test_processes(argv: list[str], recognised: bool, port: int) -> None:
    assert LMDEPLOY.recognises(argv, "") is recognised
    assert LMDEPLOY.port(argv) == port


def test_facts() -> None:
    base = ["lmdeploy", "serve", "api_server", "internlm/internlm2_5-7b-chat"]
    assert LMDEPLOY.facts(base, {}) == EngineFacts(model="internlm/internlm2_5-7b-chat")
    told = [*base, "--model-name", "chat", "--tp", "4", "--dp=2", "--dtype", "float16", "--model-format", "awq"]
    assert LMDEPLOY.facts(told, {"CUDA_VISIBLE_DEVICES": "2,3"}) == EngineFacts(
        model="chat", precision="awq", parallelism="dp2 tp4"
    )
    assert LMDEPLOY.facts([*base, "--model-format", "hf", "--dtype", "bfloat16"], {}).precision == "bfloat16"
    split = LMDEPLOY.facts([*base, "--role", "Prefill", "--speculative-algorithm", "eagle3"], {})
    assert (split.role, split.kv_connector, split.speculation) == ("prefill", "dlslime", "eagle3")
    assert LMDEPLOY.facts([*base, "--role", "Decode", "--migration-backend", "Mooncake"], {}).kv_connector == "mooncake"
    assert LMDEPLOY.facts([*base, "--role", "Hybrid"], {}).role == ""
    assert LMDEPLOY.facts([], {}) == EngineFacts()
