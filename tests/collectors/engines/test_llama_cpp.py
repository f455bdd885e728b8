"""The llama.cpp collector on pages of two live llama-servers under load."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EngineFacts, EnginePage, EnvironmentPort, FactsCollector
from jouled_collectors.engines.llama_cpp import LlamaCppCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
PAGE = (FIXTURES / "llama-server-0c1e570.prom").read_bytes()
LLAMA = LlamaCppCollector()
EXPECTED = EnginePage(
    steps=815,
    prompt_tokens=2448,
    cached_prompt_tokens=614,
    generation_tokens=759,
    requests_running=8,
    requests_waiting=4,
)


def test_is_an_engine_collector() -> None:
    collector: EngineCollector = LLAMA
    assert (collector.name, collector.page_path, collector.version_path) == ("llama_cpp", "/metrics", "/props")


def test_a_live_page() -> None:
    assert LLAMA.page(PAGE) == EXPECTED


def test_a_live_page_of_a_later_build() -> None:
    assert LLAMA.page((FIXTURES / "llama-server-b11434.prom").read_bytes()) == EnginePage(
        steps=33_567,
        prompt_tokens=69_273,
        cached_prompt_tokens=0,
        generation_tokens=132_601,
        requests_running=4,
        requests_waiting=2,
    )


def test_the_prompt_counter_is_told_to_hold_computed_tokens_only() -> None:
    assert LLAMA.semantics.prompt == "computed"
    assert LLAMA.semantics.prompt_at == "step"
    assert LLAMA.semantics.generation_at == "finish"


def test_a_page_quoted_as_a_json_string_is_read_alike() -> None:
    assert LLAMA.page(json.dumps(PAGE.decode()).encode()) == EXPECTED


def test_six_digit_values() -> None:
    page = b"llamacpp:prompt_tokens_total 1e+06\nllamacpp:tokens_predicted_total 1.00856e+06\n"
    assert LLAMA.page(page) == EnginePage(prompt_tokens=1_000_000, generation_tokens=1_008_560)


def test_an_older_build_without_the_cache_counter() -> None:
    page = b"llamacpp:prompt_tokens_total 7\nllamacpp:prompt_tokens_seconds 12.5\n"
    assert LLAMA.page(page) == EnginePage(prompt_tokens=7)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error":{"code":501}}', "start llama-server with --metrics"),
        (b"<html></html>", "an HTML page"),
        (b'"half a string', "not the expected JSON"),
        (b'"\\ud800"', "not the expected JSON"),
        (b'"no metrics"', "no metric that begins with llamacpp:"),
        (b"", "the page is empty"),
    ],
)
def test_what_is_no_page_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LLAMA.page(body)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(b'"'.__add__))
def test_any_bytes_give_a_page_or_a_value_error(body: bytes) -> None:
    for read in (LLAMA.page, LLAMA.version):
        try:
            read(body)
        except ValueError:
            continue


def test_version_is_the_build_string() -> None:
    assert LLAMA.version(b'{"build_info":"b1-0c1e570","total_slots":8}') == "b1-0c1e570"
    with pytest.raises(ValueError, match="version is empty"):
        LLAMA.version(b'{"build_info":""}')


@pytest.mark.parametrize(
    ("argv", "recognised", "port"),
    [
        (["llama-server", "-m", "/models/m.gguf"], True, 8080),
        (["/usr/local/bin/llama-server", "--metrics", "--port", "8081"], True, 8081),
        (["/opt/llama/llama", "serve", "--port", "8082"], True, 8082),
        (["llama", "server"], True, 8080),
        (["llama", "bench"], False, 8080),
        (["llama"], False, 8080),
        (["llama-cli", "--port", "1234"], False, 1234),
        (["bash", "llama-server"], False, 8080),
        ([], False, 8080),
    ],
)
def test_processes(argv: list[str], recognised: bool, port: int) -> None:
    assert LLAMA.recognises(argv, "") is recognised
    assert LLAMA.port(argv) == port


def test_port_and_facts_may_stand_in_variables() -> None:
    assert isinstance(LLAMA, EnvironmentPort)
    assert isinstance(LLAMA, FactsCollector)
    assert tuple(LLAMA.port_variables) == ("LLAMA_ARG_PORT",)
    environ = {"LLAMA_ARG_MODEL": "/m/tiny-BF16.gguf", "LLAMA_ARG_SPEC_TYPE": "ngram-mod", "CUDA_VISIBLE_DEVICES": "1"}
    assert LLAMA.facts(["llama-server"], environ) == EngineFacts(
        model="tiny-BF16.gguf", precision="bfloat16", speculation="ngram-mod"
    )


@pytest.mark.parametrize(
    ("arguments", "model", "precision"),
    [
        (["-m", "/models/Llama-3.1-8B-Instruct-Q4_K_M.gguf"], "Llama-3.1-8B-Instruct-Q4_K_M.gguf", "q4_k_m"),
        (["--model", "/m/x-F16-00001-of-00003.gguf", "-a", "other,chat"], "chat", "float16"),
        (["-hf", "ggml-org/gemma-3-4b-it-GGUF:IQ2_XXS"], "ggml-org/gemma-3-4b-it-GGUF:IQ2_XXS", "iq2_xxs"),
        (["-hf", "ggml-org/gpt-oss-20b-GGUF"], "ggml-org/gpt-oss-20b-GGUF", ""),
        (["-m", "/m/gpt-oss-20b-mxfp4.gguf"], "gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        (["-m", "/m/weights"], "weights", ""),
        ([], "", ""),
    ],
)
def test_the_model_and_its_number_format(arguments: list[str], model: str, precision: str) -> None:
    facts = LLAMA.facts(["llama-server", *arguments], {})
    assert (facts.model, facts.precision) == (model, precision)


@pytest.mark.parametrize(
    ("arguments", "speculation"),
    [
        (["-md", "draft.gguf"], "draft_model"),
        (["--spec-draft-model", "draft.gguf", "--spec-type", "draft-eagle3"], "eagle3"),
        (["--spec-type", "draft-simple,ngram-mod"], "draft_model,ngram-mod"),
        (["--spec-type", "none"], ""),
        ([], ""),
    ],
)
def test_speculation(arguments: list[str], speculation: str) -> None:
    assert LLAMA.facts(["llama-server", *arguments], {}).speculation == speculation
