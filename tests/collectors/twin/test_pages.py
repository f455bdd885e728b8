"""An engine's page against what a real vLLM prints."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jouled_collectors.twin.load import Load
from jouled_collectors.twin.node import Node
from jouled_collectors.twin.pages import EnginePage

FAMILIES_OF_VLLM = (
    "cache_config_info",
    "e2e_request_latency_seconds",
    "engine_sleep_state",
    "estimated_flops_per_gpu",
    "estimated_read_bytes_per_gpu",
    "estimated_write_bytes_per_gpu",
    "external_prefix_cache_hits",
    "external_prefix_cache_queries",
    "generation_tokens",
    "inter_token_latency_seconds",
    "iteration_tokens_total",
    "kv_cache_usage_perc",
    "mm_cache_hits",
    "mm_cache_queries",
    "num_preemptions",
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "prefix_cache_hits",
    "prefix_cache_queries",
    "prompt_tokens",
    "prompt_tokens_by_source",
    "prompt_tokens_cached",
    "prompt_tokens_cached_by_source",
    "admission_rejections",
    "request_decode_time_seconds",
    "request_generation_tokens",
    "request_inference_time_seconds",
    "request_max_num_generation_tokens",
    "request_num_preemptions",
    "request_params_max_tokens",
    "request_params_n",
    "request_prefill_kv_computed_tokens",
    "request_prefill_time_seconds",
    "request_prompt_tokens",
    "request_queue_time_seconds",
    "request_success",
    "request_time_per_output_token_seconds",
    "time_to_first_token_seconds",
)
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def engine():
    node = Node(3, Load(), 0)
    node.advance(60_000_000_000)
    return node.engines["llama-8b"]


@pytest.fixture(scope="module")
def body(engine):
    return EnginePage(engine, 1_700_000_000.0).render().decode()


@pytest.fixture(scope="module")
def families(body):
    return {family.name: family for family in text_string_to_metric_families(body)}


def value(families, family, sample, **labels):
    wanted = {"engine": "0", "model_name": MODEL, **labels}
    (found,) = [s.value for s in families[family].samples if s.name == sample and s.labels == wanted]
    return found


def test_it_has_vllms_families_and_a_real_pages_size(body, families):
    assert {f"vllm:{name}" for name in FAMILIES_OF_VLLM} <= set(families)
    assert 40_000 < len(body) < 80_000
    assert families["vllm:iteration_tokens_total"].type == "histogram"
    assert "# TYPE vllm:prompt_tokens_total counter" in body
    assert "# TYPE vllm:prompt_tokens_created gauge" in body
    assert "vllm:iteration_tokens_total_created{" in body


def test_its_figures_are_the_engines(engine, families):
    tallies = engine.tallies
    assert value(families, "vllm:prompt_tokens", "vllm:prompt_tokens_total") == tallies.prompt_tokens > 0
    assert value(families, "vllm:generation_tokens", "vllm:generation_tokens_total") == tallies.generation_tokens > 0
    assert value(families, "vllm:num_requests_running", "vllm:num_requests_running") == engine.running
    steps = value(families, "vllm:iteration_tokens_total", "vllm:iteration_tokens_total_count")
    assert steps == engine.steps
    computed = value(
        families, "vllm:prompt_tokens_by_source", "vllm:prompt_tokens_by_source_total", source="local_compute"
    )
    assert computed == tallies.prompt_tokens


@pytest.mark.parametrize(
    "name", ["time_to_first_token_seconds", "inter_token_latency_seconds", "request_prompt_tokens"]
)
def test_histograms_are_cumulative_and_end_in_their_count(families, name):
    samples = families[f"vllm:{name}"].samples
    buckets = [s.value for s in samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == value(families, f"vllm:{name}", f"vllm:{name}_count") > 0
    bounds = [s.labels["le"] for s in samples if s.name.endswith("_bucket")]
    assert bounds[-1] == "+Inf"
    assert all("." in bound for bound in bounds[:-1])


def test_finish_reasons_are_all_there(families):
    reasons = {s.labels["finished_reason"] for s in families["vllm:request_success"].samples if "_total" in s.name}
    assert reasons == {"stop", "length", "abort", "error", "repetition"}
