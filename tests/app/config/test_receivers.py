"""The tables `[requests.<name>]` of receivers: whose they are, what may stand in them, where they are shown."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from jouled.api import DrainSettings, FollowSettings
from jouled.app.cli import main
from jouled.app.config import Config
from jouled.app.config.load import load
from jouled.app.config.reference import render
from jouled.app.config.toml import as_toml
from jouled.app.runtime.plugins import Plugins, load_plugins
from jouled.model.errors import ConfigurationError
from jouled_collectors.requests.tensorrt_llm_files import TensorrtLlmFilesSettings
from jouled_collectors.requests.tensorrt_llm_records import TensorrtLlmRecordsSettings

TABLES = """
[requests]
by_tenant = true

[requests.otlp]
forward = "http://10.0.0.7:4318"

[requests.sglang_export]
directory = "/var/log/sglang"

[requests.tensorrt_llm_records]
own = true
tokens_per_block = 64
"""


def configuration(tmp_path: Path, text: str, **environment: str) -> Config:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load(file, environment)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def test_a_table_becomes_the_receivers_own_settings(tmp_path, plugins):
    config = configuration(tmp_path, TABLES)
    assert config.requests.by_tenant
    assert config.requests.otlp.forward == "http://10.0.0.7:4318"
    settings = plugins.receiver_settings(config.receivers)
    assert settings["sglang_export"] == FollowSettings(directory="/var/log/sglang")
    assert settings["tensorrt_llm_records"] == TensorrtLlmRecordsSettings(own=True, tokens_per_block=64)


def test_without_a_table_nothing_is_read(plugins):
    settings = plugins.receiver_settings({})
    assert settings["sglang_export"] == FollowSettings()
    drained = settings["tensorrt_llm_records"]
    assert isinstance(drained, DrainSettings)
    assert not drained.own


def test_files_are_followed_with_a_setting_of_their_own(plugins):
    tables = {"tensorrt_llm_files": {"directory": "/x", "engine": "trt-8000", "tokens_per_block": 64}}
    settings = plugins.receiver_settings(tables)["tensorrt_llm_files"]
    assert settings == TensorrtLlmFilesSettings(directory="/x", engine="trt-8000", tokens_per_block=64)
    assert plugins.receiver_settings({})["tensorrt_llm_files"] == TensorrtLlmFilesSettings()
    with pytest.raises(ConfigurationError, match=r"tensorrt_llm_files\.tokens_per_block"):
        plugins.receiver_settings({"tensorrt_llm_files": {"tokens_per_block": 0}})


def test_the_environment_sets_it_too(tmp_path):
    config = configuration(tmp_path, "", JOULED_REQUESTS__SGLANG_EXPORT__DIRECTORY="/var/log/sglang")
    assert config.receivers == {"sglang_export": {"directory": "/var/log/sglang"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[requests.sglang_exprt]\ndirectory = '/x'", ["$.requests.sglang_exprt", "Did you mean `sglang_export`?"]),
        ("[requests.otpl]\nforward = '/x'", ["$.requests.otpl", "Did you mean `otlp`?"]),
        ("[requests.http_events]\nx = 1", ["$.requests.http_events", "no receiver with settings has this name"]),
        ("[requests.sglang_export]\ndirectry = '/x'", ["$.requests.sglang_export.directry", "`directory`?"]),
        ("[requests.sglang_export]\ndirectory = 3", ["$.requests.sglang_export.directory", "a string"]),
        ("[requests.tensorrt_llm_records]\nown = 'yes'", ["$.requests.tensorrt_llm_records.own", "true or false"]),
        (
            "[requests.tensorrt_llm_records]\ninterval_seconds = 0",
            ["$.requests.tensorrt_llm_records.interval_seconds", "at least"],
        ),
        ("[requests.tensorrt_llm_records]\ninterval_seconds = nan", ["interval_seconds", "no finite number"]),
        ("[requests.tensorrt_llm_records]\ntokens_per_block = 0", ["$.requests.tensorrt_llm_records.tokens_per_block"]),
        ("[requests]\nby_tenat = true", ["$.requests.by_tenat", "Did you mean `by_tenant`?"]),
        ("[requests]\nsglang_export = true", ["$.requests.sglang_export", "unknown key"]),
        ("[receivers.sglang_export]\ndirectory = '/x'", ["$.receivers", "[requests.NAME]"]),
        ("requests = 3", ["$.requests", "a table"]),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(tmp_path, plugins, text, words):
    with pytest.raises(ConfigurationError) as raised:
        plugins.receiver_settings(configuration(tmp_path, text).receivers, "config.toml")
    told = f"{raised.value} {raised.value.mend}"
    assert all(word in told for word in words), told


def test_check_finds_it(tmp_path, capsys):
    file = tmp_path / "config.toml"
    file.write_text("[requests.sglang_exprt]\ndirectory = '/x'")
    assert main(["config", "--check", str(file)]) != 0
    assert "Did you mean `sglang_export`?" in capsys.readouterr().err


def test_it_is_printed_where_it_was_written(tmp_path):
    written = configuration(tmp_path, TABLES)
    shown = as_toml(written)
    assert "[requests.sglang_export]\ndirectory" in shown
    assert "receivers" not in shown
    read_again = configuration(tmp_path, shown)
    assert (read_again.requests, read_again.receivers) == (written.requests, written.receivers)


def test_the_reference_shows_every_receivers_settings(plugins):
    page = render({}, {}, plugins.receiver_settings_types())
    assert "## `[requests.sglang_export]`" in page
    assert "## `[requests.tensorrt_llm_records]`" in page
    assert "| `tokens_per_block` | whole number | `32` |" in page
    assert page.index("[requests.otlp]") < page.index("[requests.sglang_export]") < page.index("## `[cost]`")


MODULE = """
from jouled.api import DrainSettings, FollowSettings, Received
from msgspec import Struct

class Needs(FollowSettings, kw_only=True):
    host: str

class Plain(Struct):
    directory: str = ""

class Follows:
    name = "follows"
    settings_type = FollowSettings
    pattern = "*.log"
    def decode_lines(self, lines, read, settings): return Received()

class Foreign(Follows):
    name = "foreign"
    settings_type = Plain

class Needing(Follows):
    name = "needing"
    settings_type = Needs

class Nothing:
    name = "nothing"
"""


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("follows", "third_party_receivers:Follows", ""),
        ("foreign", "third_party_receivers:Foreign", "its settings_type is no FollowSettings"),
        ("needing", "third_party_receivers:Needing", "need a default each"),
        ("nothing", "third_party_receivers:Nothing", "it is none of HttpIngest"),
    ],
)
def test_receivers_of_others(tmp_path, monkeypatch, name, value, reason):
    (tmp_path / "third_party_receivers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint(name, value, "jouled.requests")
    plugins = load_plugins(lambda group: [entry] if group == "jouled.requests" else [])
    assert [refused.reason for refused in plugins.refused if reason not in refused.reason] == []
    assert (name in plugins.requests) == (not reason)
    assert bool(plugins.refused) == bool(reason)
    if reason:  # it is told at the start already
        assert name not in plugins.receiver_settings({name: {"directory": "/x"}})
