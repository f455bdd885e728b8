"""What `jouled check` says of an engine's sizes, and that its lines are a good configuration."""

import json
import tomllib

import pytest

from jouled.app.cli.check_priors import prior_notes
from jouled.app.config.checks import check
from jouled.app.config.convert import convert
from jouled.app.config.types import Config, EngineConfig
from jouled.core.attribution.priors import sizes_for


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("config", "model", "source"),
    [
        (EngineConfig(name="e", parameters=8e9), "chat", "from the configuration"),
        (EngineConfig(name="e"), "Llama-3.1-8B", "(known_model): 8.03e9 parameters"),
        (EngineConfig(name="e", model="Llama-3.1-8B"), "chat", "known_model"),
    ],
)
async def test_known_sizes_need_no_advice(config, model, source):
    [line] = await prior_notes(config, model)
    assert source in line


async def test_a_file_is_found(tmp_path):
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(sizes, 64)))
    [line] = await prior_notes(EngineConfig(name="e"), str(tmp_path))
    assert "config.json (config_file)" in line


@pytest.mark.parametrize(("model", "source"), [("my-70B", "name"), ("chat", "generic")])
async def test_guessed_sizes_come_with_lines_to_paste(model, source):
    engine = EngineConfig(name='the "e"', type="vllm", url="http://127.0.0.1:8000", model=model)
    first, _, *lines = await prior_notes(engine, "")
    assert f"({source})" in first
    config = convert(tomllib.loads("\n".join(lines)), Config, "$")
    check(config)
    [pasted] = config.engines
    assert (pasted.name, pasted.type, pasted.url) == (engine.name, engine.type, engine.url)
    sizes = sizes_for(pasted.engine())
    assert sizes.source == "configuration"
    assert sizes.parameters == (70e9 if source == "name" else 8e9)
