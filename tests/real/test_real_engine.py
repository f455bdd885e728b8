"""The daemon beside a real vLLM on CPU: what it books against what the engine and its clients saw.

`make test-real` prepares the engine; not part of `make test`.
"""

from typing import Any

import pytest
from tests.real.scenario import ENGINE_NAME, SEVERAL, Observed

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(1800)]

OWNERS = ("prefill", "decode", "resident", "unreported", "idle", "unattributed", "downtime")
Figures = dict[str, object]

SAME_MOMENT_NS = 2_000
"""A microsecond for the floats of Unix seconds on each side."""


def microjoules(joules: float) -> int:
    return round(joules * 1e6)


def group_of(observed: Observed) -> dict[str, Any]:
    group: dict[str, Any]
    [group] = [group for group in observed.snapshot["groups"] if ENGINE_NAME in group["engines"]]
    return group


def daemon_tokens(observed: Observed, kind: str) -> int:
    def at(when: str) -> float:
        return observed.daemon_pages[when].total("jouled_engine_tokens_total", engine=ENGINE_NAME, kind=kind)

    return round(at("end") - at("start"))


def test_the_load_was_what_it_should_be(observed: Observed, figures: Figures) -> None:
    in_burst = observed.engine_delta("vllm:generation_tokens_total", "burst_start", "burst_end")
    aborted_share = sum(sent.generation_tokens for sent in observed.aborted) / in_burst
    shortest_long = min(sent.seconds for sent in observed.long)
    figures |= {
        "requests sent": len(observed.sent),
        "requests finished": len(observed.finished),
        "requests aborted": len(observed.aborted),
        "clients that left too late": len(observed.late_leavers),
        "aborted tokens in the burst": f"{aborted_share:.1%}",
        "long requests, seconds": ", ".join(f"{sent.seconds:.0f}" for sent in observed.long),
    }
    assert len(observed.finished) >= 200
    assert aborted_share >= 0.10
    assert len(observed.long) == 3
    assert shortest_long > 60


def test_every_finished_request_has_a_final_receipt_with_the_engines_own_tokens(
    observed: Observed, figures: Figures
) -> None:
    wrong = []
    for sent in observed.finished:
        receipt = observed.receipts.get(sent.response_id)
        tokens = receipt and (receipt["prompt_tokens"], receipt["generation_tokens"], receipt["outcome"])
        if tokens != (sent.prompt_tokens, sent.generation_tokens, "completed"):
            wrong.append((sent.response_id, tokens, (sent.prompt_tokens, sent.generation_tokens)))
    figures["final receipts"] = len(observed.receipts)
    figures["receipts truncated, clipped or late"] = sum(
        any(word in receipt["validity"] for word in ("truncated", "clipped", "late"))
        for receipt in observed.receipts.values()
    )
    assert wrong == []


def test_the_plugin_changes_no_other_package_of_the_engine(observed: Observed) -> None:
    before, after = observed.packages
    assert before < after
    assert {package.partition("==")[0] for package in after - before} == {"jouled"}


def test_both_paths_tell_the_same_of_each_request(observed: Observed, figures: Figures) -> None:
    """Tokens and outcomes are equal, moments within the rounding of Unix seconds as floats."""
    pairs = [(observed.span_receipts[name], observed.receipts[name]) for name in observed.receipts]
    for told in ("prompt_tokens", "generation_tokens", "outcome"):
        assert [pair for pair in pairs if pair[0][told] != pair[1][told]] == []
    for moment in ("arrival_ns", "scheduled_ns", "first_token_ns", "last_token_ns"):
        off_ns = max(abs(span[moment] - both[moment]) for span, both in pairs)
        figures[f"{moment}: plug-in and span differ by"] = f"{off_ns / 1000:.1f} µs at most"
        assert off_ns <= SAME_MOMENT_NS


def test_both_daemons_share_the_energy_alike(observed: Observed, figures: Figures) -> None:
    """Each has its own samples of the same machine."""
    by_spans = sum(receipt["joules"] for receipt in observed.span_receipts.values())
    by_both = sum(observed.receipts[name]["joules"] for name in observed.span_receipts)
    figures["joules by spans alone, by both"] = f"{by_spans:.1f}, {by_both:.1f}"
    assert abs(by_both / by_spans - 1) < 0.10


def test_requests_told_twice_count_once(observed: Observed) -> None:
    page = observed.daemon_pages["end"]
    for metric in ("jouled_requests_total", "jouled_request_tokens_total"):
        assert page.total(metric, engine=ENGINE_NAME) == observed.span_page.total(metric, engine=ENGINE_NAME)
    refused = {series: value for series, value in page.values.items() if "rejected_events_total{" in series and value}
    assert refused == {}


def test_each_of_several_answers_to_one_prompt_has_a_receipt_of_its_own(observed: Observed) -> None:
    """Told by both paths without a number, and counted once each."""
    several, receipts = observed.several, observed.several_receipts
    assert several is not None
    assert len(receipts) == len({receipt["span_id"] for receipt in receipts}) == SEVERAL
    assert {receipt["prompt_tokens"] for receipt in receipts} == {several.prompt_tokens}
    assert sum(receipt["generation_tokens"] for receipt in receipts) == several.generation_tokens
    assert all(receipt["joules"] > 0 and not receipt["provisional"] for receipt in receipts)


def test_cached_tokens_come_from_the_plugin_as_the_client_was_told(observed: Observed, figures: Figures) -> None:
    cached = {sent.response_id: sent.cached_tokens for sent in observed.finished}
    figures["requests with cached tokens"] = sum(map(bool, cached.values()))
    assert any(cached.values())
    assert {name: receipt["cached_prompt_tokens"] for name, receipt in observed.receipts.items()} == cached
    assert {receipt["cached_prompt_tokens"] for receipt in observed.span_receipts.values()} == {None}


def test_receipts_are_found_by_the_clients_own_request_id(observed: Observed) -> None:
    missing = [
        sent.ask.request_id
        for sent in observed.finished
        if observed.bare_receipts.get(sent.ask.request_id, {}).get("id") != sent.response_id
    ]
    assert missing == []


def test_receipts_are_whole_and_within_what_was_measured(observed: Observed) -> None:
    for receipt in observed.receipts.values():
        parts = sum(microjoules(receipt[f"joules_{part}"]) for part in ("prefill", "decode", "resident"))
        assert microjoules(receipt["joules"]) == parts
        assert receipt["quality"] == "estimated"
        assert parts > 0


def test_token_counters_agree_with_the_engine(observed: Observed, figures: Figures) -> None:
    generated = observed.engine_delta("vllm:generation_tokens_total")
    prompt = observed.engine_delta("vllm:prompt_tokens_total")
    cached = observed.engine_delta("vllm:prompt_tokens_cached_total")
    figures |= {"engine: generated tokens": generated, "engine: prompt tokens": prompt, "engine: cached tokens": cached}
    assert daemon_tokens(observed, "generation") == generated
    assert daemon_tokens(observed, "prompt_cached") == cached
    assert daemon_tokens(observed, "prompt_computed") == prompt - cached


def test_reported_and_aborted_tokens_are_all_the_engine_made(observed: Observed, figures: Figures) -> None:
    """Clients that left saw most of what was made for them: the engine goes on until it notices."""
    page = observed.daemon_pages["end"]
    reported = round(page.total("jouled_request_tokens_total", engine=ENGINE_NAME, kind="generation"))
    seen_by_leavers = sum(sent.generation_tokens for sent in observed.aborted)
    generated = observed.engine_delta("vllm:generation_tokens_total")
    unseen = generated - reported - seen_by_leavers
    figures |= {
        "tokens of receipts": reported,
        "tokens that aborting clients saw": seen_by_leavers,
        "tokens made after they left": unseen,
        "event coverage": f"{reported / generated:.4f}",
    }
    assert reported == observed.reported_tokens
    assert 0 <= unseen < seen_by_leavers


def test_aborted_work_shows_as_unreported(observed: Observed, figures: Figures) -> None:
    """Its share of the energy of work lies near the aborted share of the tokens; a factor of two is let pass."""
    group = group_of(observed)
    worked = sum(group[f"{owner}_uj"] for owner in ("prefill", "decode", "resident", "unreported"))
    energy_share = group["unreported_uj"] / worked
    token_share = 1 - observed.reported_tokens / observed.engine_delta("vllm:generation_tokens_total")
    figures |= {"unreported share of energy": f"{energy_share:.2%}", "aborted share of tokens": f"{token_share:.2%}"}
    assert token_share / 2 <= energy_share <= token_share * 2


def test_joules_are_conserved_to_the_microjoule(observed: Observed, figures: Figures) -> None:
    group = group_of(observed)
    for owner in (*OWNERS, "open"):
        figures[f"{owner}, joules"] = f"{group[f'{owner}_uj'] / 1e6:.3f}"
    figures["measured (estimated), joules"] = f"{group['measured_uj'] / 1e6:.3f}"
    assert group["quality"] == "estimated"
    assert group["measured_uj"] > 0
    assert sum(group[f"{owner}_uj"] for owner in (*OWNERS, "open")) == group["measured_uj"]


def test_receipts_are_the_owners_counters(observed: Observed, figures: Figures) -> None:
    group = group_of(observed)
    receipts = [*observed.receipts.values(), *observed.late_leavers.values(), *observed.several_receipts]
    for part in ("prefill", "decode", "resident"):
        assert sum(microjoules(receipt[f"joules_{part}"]) for receipt in receipts) == group[f"{part}_uj"]
    total = sum(microjoules(receipt["joules"]) for receipt in receipts)
    figures["sum of receipts, joules"] = f"{total / 1e6:.6f}"
    assert total == group["prefill_uj"] + group["decode_uj"] + group["resident_uj"]


def test_estimates_stay_out_of_boundaries(observed: Observed) -> None:
    page = observed.daemon_pages["end"]
    assert not [series for series, value in page.values.items() if "boundary_energy_joules_total" in series and value]
    owned = [series for series in page.values if f'engine="{ENGINE_NAME}"' in series]
    assert not [series for series in owned if 'quality="measured"' in series]
