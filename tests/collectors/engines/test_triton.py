"""The Triton collector on pages written after the sources of both backends and Triton's documentation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EnginePage
from jouled_collectors.engines.triton import TritonCollector

TRITON = TritonCollector()
COMMON = b"""# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 12
nv_inference_request_success{model="tensorrt_llm",version="1"} 12
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="ensemble",version="1"} 0
nv_inference_pending_request_count{model="preprocessing",version="1"} 2
# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{gpu_uuid="GPU-951eeeeb-d284-d263-688e-d98a5306389b"} 4879631.328000044
"""
TENSORRT_LLM = b"""# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 4
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 7
# TYPE nv_trt_llm_general_metrics gauge
nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm",version="1"} 249
nv_trt_llm_general_metrics{general_type="timestamp",model="tensorrt_llm",version="1"} 1700074049
# TYPE nv_llm_input_token_len histogram
nv_llm_input_token_len_count{model="tensorrt_llm",response_metric_type="total_input_tokens",version="1"} 12
nv_llm_input_token_len_sum{model="tensorrt_llm",response_metric_type="total_input_tokens",version="1"} 1536
nv_llm_input_token_len_bucket{model="tensorrt_llm",response_metric_type="total_input_tokens",version="1",le="+Inf"} 12
# TYPE nv_llm_output_token_len histogram
nv_llm_output_token_len_sum{model="tensorrt_llm",response_metric_type="total_output_tokens",version="1"} 600
nv_llm_output_token_len_bucket{model="tensorrt_llm",response_metric_type="total_output_tokens",version="1",le="10"} 0
"""
VLLM = b"""# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{model="vllm_model",version="1"} 110
vllm:generation_tokens_total{model="vllm_model",version="1"} 60
vllm:request_prompt_tokens_sum{model="vllm_model",version="1"} 100
vllm:request_generation_tokens_sum{model="vllm_model",version="1"} 48
vllm:num_requests_running{model="vllm_model",version="1"} 2
vllm:num_requests_waiting{model="vllm_model",version="1"} 1
"""


def test_is_an_engine_collector_of_tokens_at_finish() -> None:
    collector: EngineCollector = TRITON
    assert (collector.name, collector.page_path, collector.default_port) == ("triton", "/metrics", 8002)
    assert (collector.semantics.prompt_at, collector.semantics.generation_at) == ("finish", "finish")


def test_the_tensorrt_llm_backend() -> None:
    assert TRITON.page(COMMON + TENSORRT_LLM) == EnginePage(
        model="tensorrt_llm",
        steps=249,
        prompt_tokens=1536,
        generation_tokens=600,
        requests_running=4,
        requests_waiting=3,
    )


def test_the_vllm_backend_by_its_finished_requests() -> None:
    assert TRITON.page(COMMON + VLLM) == EnginePage(
        model="vllm_model", prompt_tokens=100, generation_tokens=48, requests_running=2, requests_waiting=1
    )


def test_two_backends_in_one_server_are_added_up_under_the_busiest_name() -> None:
    page = TRITON.page(COMMON + TENSORRT_LLM + VLLM)
    assert (page.model, page.prompt_tokens, page.generation_tokens) == ("tensorrt_llm", 1636, 648)
    assert (page.requests_running, page.requests_waiting) == (6, 4)


def test_other_backends_tell_no_tokens_but_who_waits() -> None:
    assert TRITON.page(COMMON) == EnginePage(requests_waiting=2)


def test_a_page_of_vllm_itself_is_none_of_triton() -> None:
    with pytest.raises(ValueError, match="no metric that begins with nv:"):
        TRITON.page(VLLM)


@pytest.mark.parametrize("value", [b"NaN", b"-5", b"1e18"])
def test_an_absurd_sum_is_absent(value: bytes) -> None:
    page = COMMON + b'nv_llm_output_token_len_sum{model="m"} ' + value + b"\n"
    assert TRITON.page(page).generation_tokens is None


WHOLE = COMMON + TENSORRT_LLM + VLLM


@given(st.integers(0, len(WHOLE)), st.binary(max_size=8))
def test_a_page_cut_anywhere_gives_no_more_than_the_whole(end: int, tail: bytes) -> None:
    try:
        page = TRITON.page(WHOLE[:end] + b"\n" + tail)
    except ValueError:
        return
    assert (page.prompt_tokens or 0) <= 1636
    assert (page.generation_tokens or 0) <= 648


@pytest.mark.parametrize(
    ("argv", "recognised", "port"),
    [
        (["/opt/tritonserver/bin/tritonserver", "--model-repository=/models"], True, 8002),
        (["tritonserver", "--metrics-port", "9002", "--http-port", "9000"], True, 9002),
        (["tritonserver", "--metrics-port=9003", "--allow-metrics=true"], True, 9003),
        (["tritonserver", "--allow-metrics=false"], False, 8002),
        (["tritonserver", "--allow-metrics", "0"], False, 8002),
        (["mpirun", "-n", "1", "tritonserver"], False, 8002),
        ([], False, 8002),
    ],
)
def test_processes(argv: list[str], recognised: bool, port: int) -> None:
    assert TRITON.recognises(argv, "") is recognised
    assert TRITON.port(argv) == port
