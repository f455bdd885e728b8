"""The Ollama collector on answers of `/api/ps` and `/api/version` as its documentation has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EngineFacts, EnginePage, EnvironmentPort
from jouled_collectors.engines.ollama import OllamaCollector

OLLAMA = OllamaCollector()
TWO_LOADED = b"""{"models":[
{"name":"llama3.2:latest","model":"llama3.2:latest","size":5137025024,"digest":"2ae6f6dd","details":{"parent_model":"",
 "format":"gguf","family":"llama","families":["llama"],"parameter_size":"3.2B","quantization_level":"Q4_K_M"},
 "expires_at":"2026-11-26T14:38:31.83753-07:00","size_vram":5137025024,"context_length":4096},
{"name":"qwen3:8b","model":"qwen3:8b","size":1,"details":{"quantization_level":"Q8_0"},"size_vram":1}]}"""


def test_is_an_engine_collector() -> None:
    collector: EngineCollector = OLLAMA
    assert (collector.name, collector.page_path, collector.version_path) == ("ollama", "/api/ps", "/api/version")
    assert isinstance(OLLAMA, EnvironmentPort)
    assert tuple(OLLAMA.port_variables) == ("OLLAMA_HOST",)


def test_the_first_model_is_the_one_used_last() -> None:
    assert OLLAMA.page(TWO_LOADED) == EnginePage(
        model="llama3.2:latest", facts=EngineFacts(model="llama3.2:latest", precision="q4_k_m")
    )


def test_without_a_loaded_model_nothing_is_told() -> None:
    assert OLLAMA.page(b'{"models":[]}') == EnginePage()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"models":null}',
        b'{"models":[{}]}',
        b'{"models":[{"name":7}]}',
        b'{"models":[{"name":"m","details":[]}]}',
        b'{"models":[{"name":" "}]}',
        b'{"models":[{"name":"a\\u0000"}]}',
        b'{"models":[{"name":"' + b"m" * 300 + b'"}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_list_of_models_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"not the expected JSON|the model's name is empty"):
        OLLAMA.page(body)


@given(st.integers(0, len(TWO_LOADED) - 1))
def test_an_answer_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match="not the expected JSON"):
        OLLAMA.page(TWO_LOADED[:end])


def test_version() -> None:
    assert OLLAMA.version(b'{"version":"0.13.5"}') == "0.13.5"


@pytest.mark.parametrize(
    ("argv", "recognised"),
    [
        (["/usr/local/bin/ollama", "serve"], True),
        (["ollama", "start"], True),
        (["ollama", "run", "llama3.2"], False),
        (["/usr/local/bin/ollama", "runner", "--model", "/blobs/sha256-1", "--port", "41731"], False),
        (["ollama"], False),
        ([], False),
    ],
)
def test_only_the_server_is_recognised(argv: list[str], recognised: bool) -> None:
    assert OLLAMA.recognises(argv, "") is recognised
    assert OLLAMA.port(argv) == 11434
