"""Whose word on an engine goes first."""

import subprocess
import sys

import pytest

from jouled.api import EngineFacts, EnginePage
from jouled.app.runtime.engines.facts import told_by_process, told_facts
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


class Told:
    """A collector that tells what stands in the command line."""

    def facts(self, argv, environ):
        return EngineFacts(model=argv[-1])


@pytest.mark.parametrize("word", [b"m\xff\xfe", b"m\x1b[31m\n", b"m" * 100_000], ids=["no UTF-8", "controls", "long"])
def test_what_a_process_was_started_with_can_be_stored_and_printed(word: bytes) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, word], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        model = told_by_process(Told(), process.pid).model
        process.communicate()
    assert model.startswith("m")
    assert model.isprintable()
    assert len(model) <= 256
    assert model.encode()


def test_a_page_can_tell_nothing_that_cannot_be_printed() -> None:
    page = EnginePage(facts=EngineFacts(speculation="a\nb" + "c" * 1_000_000))
    assert told_facts(ENGINE, "", page, EngineFacts())["speculation"] == "a?b" + "c" * 253
