"""Ids under other names: the same on one node, another on the next, found by every form that a client knows."""

import stat
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.scenario import request

from jouled.app.runtime.requests.pseudonyms import KEY_FILE, Pseudonyms, load_or_make
from jouled.model.errors import JouledError
from jouled.model.requests import RequestStart
from jouled.outputs.store.query import ReceiptQuery, sql

NAMES = Pseudonyms(b"k" * 32)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_nothing_of_an_id_is_left_and_nothing_else_changes():
    event = request("chatcmpl-alice@example.org", 1.0, trace_id=TRACE, span_id=SPAN, tenant="red")
    hidden = NAMES.of_event(event)
    assert hidden.id.startswith("chatcmpl-")
    assert "alice" not in hidden.id
    assert (len(hidden.trace_id), len(hidden.span_id)) == (32, 16)
    assert {hidden.trace_id, hidden.span_id}.isdisjoint({TRACE, SPAN})
    kept = [name for name in event.__struct_fields__ if name not in {"id", "trace_id", "span_id"}]
    assert all(getattr(hidden, name) == getattr(event, name) for name in kept)


def test_start_and_end_of_a_request_get_one_name():
    start = NAMES.of_event(RequestStart(engine="e", id="chatcmpl-7", arrival_ns=1))
    assert start.id == NAMES.of_event(request("chatcmpl-7", 1.0)).id


def test_what_is_absent_stays_absent():
    assert NAMES.of_event(request("r", 1.0)).trace_id == ""


def test_another_key_gives_other_names():
    assert NAMES.request_id("r") != Pseudonyms(b"l" * 32).request_id("r")


@given(st.text(min_size=1) | st.from_regex(r"((chat)?cmpl-){1,2}x?(-[0-9])?", fullmatch=True), st.integers(0, 20))
def test_a_receipt_is_found_by_every_form_of_its_id(bare, number):
    """As the store looks for it: by the response id, or by what the client sent."""
    for stored in (bare, f"chatcmpl-{bare}", f"cmpl-{bare}-{number}"):
        asked = NAMES.request_id(bare)
        _, values = sql(ReceiptQuery(id=asked))
        name = NAMES.request_id(stored)
        ranges = [(low, high) for low, high in pairwise(values) if str(low).endswith("-")]
        assert name in values or any(low < name < high for low, high in ranges)


@pytest.mark.parametrize("prefix", ["cmpl-", "chatcmpl-"])
def test_whoever_asks_for_an_id_of_prefixes_alone_gets_an_answer(prefix):
    """An address may be 8 kB long: more prefixes than Python's stack is deep."""
    assert NAMES.request_id(prefix * 1_600 + "r") == prefix * 1_600 + NAMES.request_id("r")


def test_the_key_is_made_once_and_for_its_user_alone(tmp_path):
    first = load_or_make(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert load_or_make(tmp_path).request_id("r") == first.request_id("r")
    assert len((tmp_path / KEY_FILE).read_bytes()) == 32


def test_a_key_that_hides_nothing_is_refused(tmp_path):
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(JouledError, match=r"damaged.*Remove it"):
        load_or_make(tmp_path)
