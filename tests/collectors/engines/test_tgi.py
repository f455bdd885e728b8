"""The TGI collector on a page after one of a running router (fixtures/engines/regenerate/tgi_by_hand.py)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EngineFacts, EnginePage, EnvironmentPort, FactsCollector, LatencyCollector
from jouled_collectors.engines.tgi import TgiCollector

TGI = TgiCollector()
PAGE = (Path(__file__).parents[2] / "fixtures" / "engines" / "tgi-3.prom").read_bytes()
PROMPT_TOKENS, GENERATION_TOKENS = 662, 5082


def test_is_an_engine_collector_of_tokens_at_finish() -> None:
    collector: EngineCollector = TGI
    assert (collector.name, collector.page_path, collector.version_path) == ("tgi", "/metrics", "/info")
    assert collector.semantics.generation_at == "finish"
    assert isinstance(TGI, FactsCollector)
    assert isinstance(TGI, LatencyCollector)
    assert isinstance(TGI, EnvironmentPort)


def test_tokens_are_the_sums_of_histograms_and_steps_the_calls_of_both_methods() -> None:
    assert TGI.page(PAGE) == EnginePage(
        steps=1525,
        prompt_tokens=PROMPT_TOKENS,
        generation_tokens=GENERATION_TOKENS,
        requests_running=7,
        requests_waiting=3,
    )


def test_before_the_first_request_nothing_is_told() -> None:
    assert TGI.page(b"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n") == EnginePage(requests_waiting=0)


def test_the_only_latency_is_the_whole_request() -> None:
    read = TGI.latencies(PAGE, {"ttft", "tpot", "e2el"})
    assert list(read) == ["e2el"]
    assert read["e2el"].counts[-1] == 109
    assert len(read["e2el"].bounds_seconds) == 35
    assert TGI.latencies(PAGE, {"ttft"}) == {}
    assert TGI.latencies(b"tgi_queue_size 0\n", {"e2el"}) == {}


@pytest.mark.parametrize("value", [b"NaN", b"-1", b"+Inf", b"1e300"])
def test_an_absurd_sum_is_absent(value: bytes) -> None:
    assert TGI.page(b"tgi_request_input_length_sum " + value + b"\n") == EnginePage()


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", "the page is empty"), (b"tgi_queue_size many\n", "the value is no number"), (b"{}", "a JSON document")],
)
def test_what_is_no_page_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TGI.page(body)


@given(st.integers(0, len(PAGE)), st.binary(max_size=8))
def test_a_page_cut_anywhere_gives_no_more_than_the_whole(end: int, tail: bytes) -> None:
    try:
        page = TGI.page(PAGE[:end] + b"\n" + tail)
    except ValueError:
        return
    assert (page.prompt_tokens or 0) <= PROMPT_TOKENS
    assert (page.generation_tokens or 0) <= GENERATION_TOKENS


def test_version() -> None:
    assert TGI.version(b'{"model_id":"m","version":"3.3.6","sha":"x"}') == "3.3.6"
    with pytest.raises(ValueError, match="not the expected JSON"):
        TGI.version(b"{}")


@pytest.mark.parametrize(
    ("argv", "recognised", "port"),
    [
        (["text-generation-router", "--hostname", "::", "--port", "80"], True, 80),
        (["/usr/local/bin/text-generation-router-v2", "--port=8080"], True, 8080),
        (["text-generation-router"], True, 3000),
        (["text-generation-launcher", "--model-id", "m", "--port", "80"], False, 80),
        (["python3", "/opt/conda/bin/text-generation-server", "serve", "m"], False, 3000),
        ([], False, 3000),
    ],
)
def test_only_the_router_has_the_port(argv: list[str], recognised: bool, port: int) -> None:
    assert TGI.recognises(argv, "") is recognised
    assert TGI.port(argv) == port


def test_facts() -> None:
    argv = ["text-generation-router", "--port", "80", "--tokenizer-name", "meta-llama/Llama-3.1-8B"]
    environ = {"NUM_SHARD": "4", "QUANTIZE": "awq", "DTYPE": "", "SPECULATE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert TGI.facts(argv, environ) == EngineFacts(
        model="meta-llama/Llama-3.1-8B",
        precision="awq",
        parallelism="tp4",
        speculation="medusa_or_ngram",
    )
    assert TGI.facts(["text-generation-router"], {"MODEL_ID": "m", "SPECULATE": "0"}) == EngineFacts(model="m")
    assert TGI.facts([], {"NUM_SHARD": "many"}) == EngineFacts()
