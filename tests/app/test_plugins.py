"""Plug-ins by entry point: good ones are there, broken ones are told and stop nothing."""

from importlib.metadata import EntryPoint

import pytest

from jouled.app.runtime.plugins import load_plugins
from jouled.model.errors import ConfigurationError

MODULE = """
from jouled.api import PowerSettings

class PduSettings(PowerSettings, kw_only=True):
    host: str

class Pdu:
    name = "pdu"
    isolation = "thread"
    settings_type = PduSettings
    def open(self, settings, clock): ...

class Meter(Pdu):
    name = "meter"
    settings_type = PowerSettings

class Lacking:
    name = "lacking"

class Newer(Pdu):
    name = "newer"
    api_version = 99

class Wrong(Pdu):
    name = "wrong"
    settings_type = dict

class Forked(Pdu):
    name = "forked"
    isolation = "fork"

class Explodes:
    def __init__(self):
        raise SystemExit("bye")
"""


@pytest.fixture
def finder(tmp_path, monkeypatch):
    (tmp_path / "third_party_meters.py").write_text(MODULE)
    (tmp_path / "third_party_broken.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)

    def find_only(*entries: tuple[str, str]):
        points = [EntryPoint(name, value, "jouled.power") for name, value in entries]
        return lambda group: points if group == "jouled.power" else []

    return find_only


def test_the_own_collectors_are_found_by_entry_point():
    plugins = load_plugins()
    assert plugins.refused == ()
    assert {"nvml", "rapl", "estimate", "twin"} <= plugins.power.keys()
    assert {"vllm", "llama_cpp"} <= plugins.engines.keys()
    assert {"otlp", "http_events"} <= plugins.requests.keys()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("broken", "third_party_broken:X", "ModuleNotFoundError: No module named 'a_library_that_is_not_there'"),
        ("gone", "third_party_meters:Gone", "AttributeError"),
        ("lacking", "third_party_meters:Lacking", "it lacks isolation, settings_type, open"),
        ("newer", "third_party_meters:Newer", "made for version 99 of the interface"),
        ("other", "third_party_meters:Pdu", "it calls itself `pdu`"),
        ("wrong", "third_party_meters:Wrong", "settings_type is no PowerSettings"),
        ("forked", "third_party_meters:Forked", "'fork', neither thread nor process"),
        ("explodes", "third_party_meters:Explodes", "SystemExit: bye"),
    ],
)
def test_a_broken_one_is_told_and_the_others_are_there(finder, name, value, reason):
    plugins = load_plugins(finder((name, value), ("pdu", "third_party_meters:Pdu")))
    assert list(plugins.power) == ["pdu"]
    [refused] = plugins.refused
    assert (refused.name, refused.package) == (name, "unknown")
    assert reason in str(refused)


def test_of_two_with_one_name_the_second_is_left_out(finder):
    plugins = load_plugins(finder(("pdu", "third_party_meters:Pdu"), ("pdu", "third_party_meters:Pdu")))
    assert list(plugins.power) == ["pdu"]
    assert "same name" in str(plugins.refused[0])


def test_tables_become_settings_and_a_wrong_name_is_told(finder):
    plugins = load_plugins(
        finder(
            ("pdu", "third_party_meters:Pdu"), ("meter", "third_party_meters:Meter"), ("broken", "third_party_broken:X")
        )
    )
    settings = plugins.power_settings({"pdu": {"host": "a"}, "broken": {"x": 1}})
    assert list(settings) == ["pdu"]
    assert settings["pdu"].host == "a"
    with pytest.raises(ConfigurationError, match=r"c.toml: \$.power.mter.*Did you mean `meter`"):
        plugins.power_settings({"mter": {}}, "c.toml")


def test_only_what_needs_no_configuration_is_discoverable(finder):
    plugins = load_plugins(finder(("pdu", "third_party_meters:Pdu"), ("meter", "third_party_meters:Meter")))
    assert list(plugins.discoverable()) == ["meter"]
