"""The Triton collector on pages of a running server, and on lines by hand for what that did not print."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EnginePage
from jouled_collectors.engines.triton import TritonCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
TRITON = TritonCollector()
FIRST_RELEASE_WITH_GAUGES = b"""# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 4
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 7
"""
GPU = b"""# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{gpu_uuid="GPU-951eeeeb-d284-d263-688e-d98a5306389b"} 4879631.328000044
"""


def fixture(name: str) -> bytes:
    return (FIXTURES / f"triton-2.51.0-{name}.prom").read_bytes()


def test_is_an_engine_collector_of_tokens_at_finish() -> None:
    collector: EngineCollector = TRITON
    assert (collector.name, collector.page_path, collector.default_port) == ("triton", "/metrics", 8002)
    assert (collector.semantics.prompt_at, collector.semantics.generation_at) == ("finish", "finish")


def test_the_tensorrt_llm_backend() -> None:
    assert TRITON.page(fixture("tensorrt-llm")) == EnginePage(
        model="tensorrt_llm",
        steps=114,
        prompt_tokens=1312,
        generation_tokens=112,
        requests_running=2,
        requests_waiting=1,
        counts_by_model={
            "steps": {"tensorrt_llm/1": 114},
            "prompt": {"tensorrt_llm/1": 1312},
            "generation": {"tensorrt_llm/1": 112},
        },
    )


def test_the_vllm_backend_by_its_finished_requests() -> None:
    """Its counters of steps are ahead: they have the prompts of requests that are still at work."""
    page = fixture("vllm")
    assert b'vllm:prompt_tokens_total{model="vllm_model",version="1"} 2312\n' in page
    assert TRITON.page(page) == EnginePage(
        model="vllm_model",
        prompt_tokens=1312,
        generation_tokens=112,
        requests_running=2,
        requests_waiting=1,
        counts_by_model={"prompt": {"vllm_model/1": 1312}, "generation": {"vllm_model/1": 112}},
    )


def test_the_vllm_backend_without_gauges_does_not_tell_who_is_there() -> None:
    """Triton's own queue is empty, as the backend takes every request at once: it says nothing of those who wait."""
    page = fixture("vllm-v1")
    assert b'nv_inference_pending_request_count{model="vllm_model",version="1"} 0\n' in page
    told = TRITON.page(page)
    assert (told.prompt_tokens, told.generation_tokens) == (1312, 112)
    assert (told.requests_running, told.requests_waiting) == (None, None)


def test_gauges_of_one_model_are_not_those_of_the_server() -> None:
    told = TRITON.page(fixture("vllm-v1") + fixture("tensorrt-llm"))
    assert (told.generation_tokens, told.requests_running, told.requests_waiting) == (224, None, None)


def test_a_backend_that_has_gauges_only() -> None:
    told = TRITON.page(FIRST_RELEASE_WITH_GAUGES + fixture("plain"))
    assert (told.generation_tokens, told.requests_running, told.requests_waiting) == (None, 4, None)


def test_two_backends_in_one_server_are_added_up_under_the_busiest_name() -> None:
    told = TRITON.page(fixture("both"))
    assert (told.model, told.prompt_tokens, told.generation_tokens) == ("tensorrt_llm", 1300, 48)
    assert told.counts_by_model["generation"] == {"tensorrt_llm/1": 41, "vllm_model/1": 7}
    both = TRITON.page(fixture("tensorrt-llm") + fixture("vllm"))
    assert (both.requests_running, both.requests_waiting) == (4, 2)


def test_two_versions_of_one_model_are_two() -> None:
    page = b"""nv_llm_output_token_len_sum{model="m",response_metric_type="total_output_tokens",version="1"} 5
nv_llm_output_token_len_sum{model="m",response_metric_type="total_output_tokens",version="2"} 7
"""
    assert TRITON.page(page).counts_by_model == {"generation": {"m/1": 5, "m/2": 7}}


def test_a_model_with_several_series_has_their_sum() -> None:
    page = b"""nv_llm_output_token_len_sum{model="m",instance="0",version="1"} 5
nv_llm_output_token_len_sum{model="m",instance="1",version="1"} 7
"""
    told = TRITON.page(page)
    assert told.counts_by_model == {"generation": {"m/1": told.generation_tokens}}


def test_an_unloaded_model_is_gone_or_stays_as_its_backend_has_it() -> None:
    for name in ("both-one-unloaded", "both-all-unloaded"):
        told = TRITON.page(fixture(name))
        assert told.counts_by_model == {"prompt": {"vllm_model/1": 300}, "generation": {"vllm_model/1": 7}}
        assert (told.model, told.generation_tokens, told.requests_running) == ("vllm_model", 7, 0)


def test_other_backends_tell_no_tokens_but_who_waits() -> None:
    assert TRITON.page(fixture("plain")) == EnginePage(requests_waiting=3)


def test_a_server_without_a_model_has_a_page() -> None:
    assert TRITON.page(fixture("no-model")) == EnginePage()


def test_a_gpus_energy_is_never_counted() -> None:
    assert TRITON.page(fixture("both") + GPU) == TRITON.page(fixture("both"))


def test_a_page_of_vllm_itself_is_none_of_triton() -> None:
    with pytest.raises(ValueError, match="no metric that begins with nv:"):
        TRITON.page((FIXTURES / "vllm-0.33.0.prom").read_bytes())


@pytest.mark.parametrize("value", [b"NaN", b"-5", b"1e18"])
def test_an_absurd_sum_is_absent(value: bytes) -> None:
    told = TRITON.page(fixture("plain") + b'nv_llm_output_token_len_sum{model="m"} ' + value + b"\n")
    assert told.generation_tokens is None
    assert told.counts_by_model == {}


def test_labels_are_read_as_the_server_escapes_them() -> None:
    """As 2.51.0 printed them, of a model that asked for such a label."""
    page = b'vllm:request_generation_tokens_sum{model="a\\"b\\\\c\\nd{e}\xc3\xbc",version="1"} 4009876545\n'
    told = TRITON.page(fixture("no-model") + page)
    assert (told.model, told.generation_tokens) == ('a"b\\c\nd{e}\u00fc', 4_009_876_545)


WHOLE = fixture("both")


@given(st.integers(0, len(WHOLE)), st.binary(max_size=8))
def test_a_page_cut_anywhere_gives_no_more_than_the_whole(end: int, tail: bytes) -> None:
    try:
        page = TRITON.page(WHOLE[:end] + b"\n" + tail)
    except ValueError:
        return
    assert (page.prompt_tokens or 0) <= 1300
    assert (page.generation_tokens or 0) <= 48


@pytest.mark.parametrize(
    ("argv", "recognised", "port"),
    [
        (["/opt/tritonserver/bin/tritonserver", "--model-repository=/models"], True, 8002),
        (["tritonserver", "--metrics-port", "9002", "--http-port", "9000"], True, 9002),
        (["tritonserver", "--metrics-port=9003", "--allow-metrics=true"], True, 9003),
        (["tritonserver", "--allow-metrics=false"], False, 8002),
        (["tritonserver", "--allow-metrics", "0"], False, 8002),
        (["tritonserver", "--allow-metrics", "FALSE"], False, 8002),
        (["tritonserver", "--allow-metrics=false", "--allow-metrics=true"], True, 8002),
        (["tritonserver", "--metrics-port", "9002", "--metrics-port=9003"], True, 9003),
        (["tritonserver", "--metrics-address=0.0.0.0", "--metrics-interval-ms=100", "--http-port=9000"], True, 8002),
        (["mpirun", "-n", "1", "tritonserver"], False, 8002),
        ([], False, 8002),
    ],
)
def test_processes(argv: list[str], recognised: bool, port: int) -> None:
    assert TRITON.recognises(argv, "") is recognised
    assert TRITON.port(argv) == port
