"""Whose word on an engine goes first."""

import pytest

from jouled.api import EngineFacts, EnginePage
from jouled.app.runtime.engines.facts import told_facts
from jouled.model.engine import Engine

ENGINE = Engine(name="e")
SHOWS_DECODE = EnginePage(
    facts=EngineFacts(kv_connector="nixl"),
    prompt_tokens=90_000,
    transferred_prompt_tokens=90_000,
    generation_tokens=20_000,
    requests_finished=100,
)


@pytest.mark.parametrize(
    ("configured", "page", "process", "role"),
    [
        ("unified", EnginePage(facts=EngineFacts(role="prefill")), EngineFacts(role="decode"), "unified"),
        ("", EnginePage(facts=EngineFacts(role="prefill")), EngineFacts(role="decode"), "prefill"),
        ("", SHOWS_DECODE, EngineFacts(role="prefill"), "prefill"),
        ("", SHOWS_DECODE, EngineFacts(), "decode"),
        ("", EnginePage(), EngineFacts(), "unified"),
    ],
    ids=["configuration", "label", "arguments", "behaviour", "nobody"],
)
def test_the_role_is_as_configured_else_as_labelled_else_as_started_else_as_shown(
    configured: str, page: EnginePage, process: EngineFacts, role: str
) -> None:
    assert told_facts(ENGINE, configured, page, process)["role"] == role


def test_counters_show_no_role_where_no_kv_cache_is_moved() -> None:
    """An engine that classifies makes one token of each request, too."""
    page = EnginePage(prompt_tokens=90_000, generation_tokens=100, requests_finished=100)
    assert told_facts(ENGINE, "", page, EngineFacts())["role"] == "unified"
    assert told_facts(ENGINE, "", page, EngineFacts(kv_connector="mori"))["role"] == "prefill"


def test_the_instance_is_the_pages() -> None:
    page = EnginePage(facts=EngineFacts(instance="51456a2e9992988e"))
    assert told_facts(ENGINE, "", page, EngineFacts())["instance"] == "51456a2e9992988e"
