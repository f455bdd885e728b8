"""The TensorRT-LLM collector on pages that its own metrics code printed, of 1.0 and of commit 050f80d."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EnergyCollector, EngineCollector, EngineFacts, EnginePage, FactsCollector, LatencyCollector
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines.tensorrt_llm import TensorRtLlmCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
TENSORRT = TensorRtLlmCollector()
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
FACTS = EngineFacts(precision="fp8", parallelism="ep4 pp2 tp4", speculation="eagle")


def fixture(name: str) -> bytes:
    return (FIXTURES / f"tensorrt-llm-{name}.prom").read_bytes()


def test_is_a_collector_of_everything_and_asks_no_queue() -> None:
    collector: EngineCollector = TENSORRT
    assert (collector.name, collector.page_path, collector.version_path) == (
        "tensorrt_llm",
        "/prometheus/metrics",
        "/version",
    )
    assert TENSORRT.energy_path == "/energy_metrics"
    assert collector.semantics == CounterSemantics(
        prompt="total", prompt_at="finish", generation="all", generation_at="finish"
    )
    for protocol in (EnergyCollector, FactsCollector, LatencyCollector):
        assert isinstance(TENSORRT, protocol)


@pytest.mark.parametrize("prefix", [b"trtllm_", b"trtllm:", b""])
def test_a_page_with_every_prefix(prefix: bytes) -> None:
    """Prompts of 1000, 300, 50 and 20 tokens; the third one has answers of 7 and 5, the last one was cut off at 3."""
    assert TENSORRT.page(fixture("050f80d").replace(b"trtllm_", prefix)) == EnginePage(
        model=MODEL,
        facts=FACTS,
        prompt_tokens=1000 + 300 + 50 + 20,
        cached_prompt_tokens=240,
        generation_tokens=41 + 1 + 7 + 5 + 3,
        requests_running=2,
        requests_waiting=7,
    )


def test_before_the_first_request_ends_its_counts_are_zero() -> None:
    assert TENSORRT.page(fixture("050f80d-start")) == EnginePage(
        model=MODEL, facts=FACTS, prompt_tokens=0, cached_prompt_tokens=0, generation_tokens=0
    )


def test_the_five_families_of_1_0_have_no_tokens() -> None:
    """Its labels say `undefined`."""
    page = fixture("1.0")
    assert TENSORRT.page(page) == EnginePage()
    read = TENSORRT.latencies(page, {"ttft", "tpot", "e2el"})
    assert {name: histogram.counts[-1] for name, histogram in read.items()} == {"ttft": 3, "tpot": 1, "e2el": 3}


def test_a_count_that_cannot_be_is_unknown() -> None:
    page = b"trtllm_prompt_cached_tokens_total 0\ntrtllm_prompt_tokens_total NaN\n"
    assert TENSORRT.page(page) == EnginePage(cached_prompt_tokens=0, generation_tokens=0)


@pytest.mark.parametrize("prefix", [b"trtllm_", b"trtllm:", b""])
def test_latencies_with_every_prefix(prefix: bytes) -> None:
    """Of five answers the one with one token has no time per output token."""
    read = TENSORRT.latencies(fixture("050f80d").replace(b"trtllm_", prefix), {"ttft", "tpot"})
    assert {name: histogram.counts[-1] for name, histogram in read.items()} == {"ttft": 5, "tpot": 4}


def test_a_series_appears_with_its_first_use() -> None:
    """Absent is not zero: before an iteration was told nobody knows how many requests run."""
    start, served = fixture("050f80d-start"), fixture("050f80d")
    for name in (b"generation_tokens_total", b"num_requests_running", b"num_requests_completed_total"):
        assert (b"\ntrtllm_" + name + b"{" in start, b"\ntrtllm_" + name + b"{" in served) == (False, True)
    assert TENSORRT.page(start).requests_running is None
    assert TENSORRT.latencies(start, {"ttft", "tpot", "e2el"}) == {}


def test_sizes_as_their_short_names_say_them() -> None:
    page = b'trtllm_parallel_config_info{tp_size="8",pp_size="x",cp_size="",ep_size="0"} 1\n'
    assert TENSORRT.page(page).facts == EngineFacts(parallelism="tp8")


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the engine's metrics"):
        TENSORRT.page(b"python_info 1\n")
    with pytest.raises(ValueError, match="a JSON document"):
        TENSORRT.page(b'[{"iter": 1}]')


def test_version() -> None:
    assert TENSORRT.version(b'{"version":"1.2.1"}') == "1.2.1"


def test_energy() -> None:
    assert TENSORRT.energy_joules(b'{"total_energy_j":81234.5678,"query_time":4711.25}') == 81234.5678


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error":"Energy monitoring is not available"}', "missing required field `total_energy_j`"),
        (b'{"total_energy_j":-3.0}', "can be no energy"),
        (b'{"total_energy_j":"3"}', "Expected `float`"),
        (b'{"total_energy_j":1e999}', "out of range|no energy"),
        (b'{"total_energy_j":NaN}', "not the expected JSON"),
        (b"<html>", "not the expected JSON"),
        (b"", "not the expected JSON"),
    ],
)
def test_what_is_no_energy_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TENSORRT.energy_joules(body)


@pytest.mark.parametrize(
    "argv",
    [
        ["/usr/bin/python3", "/usr/local/bin/trtllm-serve", "m", "--port", "8000"],
        ["trtllm-serve", "serve", "m"],
        ["trtllm-serve", "--tp_size", "4", "m"],
        ["python3", "-m", "tensorrt_llm.commands.serve", "m"],
    ],
)
def test_servers_are_recognised(argv: list[str]) -> None:
    assert TENSORRT.recognises(argv, "")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["trtllm-serve"],
        ["trtllm-serve", "disaggregated", "-c", "c.yaml"],
        ["trtllm-serve", "disaggregated_mpi_worker", "-c", "c.yaml"],
        ["trtllm-serve", "grpc", "m"],
        ["trtllm-bench", "m"],
        ["mpirun", "-n", "2", "trtllm-serve", "m"],
        ["bash", "/usr/local/bin/trtllm-llmapi-launch", "trtllm-serve", "m"],
        ["python3", "-m", "mpi4py.futures.server"],
    ],
)
def test_other_processes_are_not(argv: list[str]) -> None:
    assert not TENSORRT.recognises(argv, "")


def test_facts() -> None:
    argv = [
        *("trtllm-serve", "serve", "/models/m", "--tp_size", "8", "--pp_size=2", "--cp_size", "2"),
        *("--ep_size", "4", "--server_role", "CONTEXT", "--backend", "pytorch"),
    ]
    environ = {"TRTLLM_USE_UCX_KVCACHE": "1", "TRTLLM_USE_MPI_KVCACHE": "1", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    assert TENSORRT.facts(argv, environ) == EngineFacts(
        model="/models/m",
        role="prefill",
        parallelism="ep4 pp2 cp2 tp8",
        kv_connector="ucx",
    )
    assert TENSORRT.facts(["trtllm-serve", "m", "--server_role", "generation"], {}) == EngineFacts(
        model="m", role="decode"
    )
    assert TENSORRT.facts([], {}) == EngineFacts()


@given(
    st.lists(
        st.sampled_from([b"\ntrtllm_", b"\n", b"prompt_tokens_total", b"model_config_info", b'{dtype="auto"}', b" 5"])
        | st.binary(max_size=3),
        max_size=30,
    ).map(b"".join)
)
def test_any_bytes_give_a_page_or_a_value_error(body: bytes) -> None:
    try:
        page = TENSORRT.page(body)
    except ValueError:
        return
    assert page.prompt_tokens is None or page.prompt_tokens >= 0


@given(st.binary(max_size=40) | st.floats().map(lambda joules: f'{{"total_energy_j":{joules}}}'.encode()))
def test_any_answer_is_an_energy_or_a_value_error(body: bytes) -> None:
    try:
        joules = TENSORRT.energy_joules(body)
    except ValueError:
        return
    assert 0.0 <= joules < float("inf")
