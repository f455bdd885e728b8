"""What part of requests an engine serves, by what its counters show."""

import pytest

from jouled.api import EnginePage
from jouled.core.attribution.roles import counts_generation, counts_prompt, role_by_counters

PREFILL = EnginePage(prompt_tokens=90_000, transferred_prompt_tokens=0, generation_tokens=100, requests_finished=100)
DECODE = EnginePage(
    prompt_tokens=90_000, transferred_prompt_tokens=89_900, generation_tokens=20_000, requests_finished=100
)


@pytest.mark.parametrize(
    ("page", "role"),
    [
        (PREFILL, "prefill"),
        (DECODE, "decode"),
        (EnginePage(prompt_tokens=900, transferred_prompt_tokens=0, generation_tokens=10, requests_finished=10), ""),
        (EnginePage(prompt_tokens=90_000, generation_tokens=20_000, requests_finished=100), ""),
        (
            EnginePage(prompt_tokens=90_000, generation_tokens=150, requests_finished=100, requests_running=50),
            "prefill",
        ),
        (EnginePage(prompt_tokens=90_000, generation_tokens=151, requests_finished=100, requests_running=50), ""),
        (
            EnginePage(
                prompt_tokens=90_000, transferred_prompt_tokens=45_000, generation_tokens=9_000, requests_finished=100
            ),
            "",
        ),
        (EnginePage(prompt_tokens=90_000, requests_finished=100), ""),
        (EnginePage(generation_tokens=100, requests_finished=100), ""),
        (EnginePage(), ""),
    ],
    ids=[
        "prefill",
        "decode",
        "too few requests",
        "both halves",
        "some in flight",
        "more than one each",
        "half of the prompts",
        "generation not told",
        "prompt not told",
        "nothing told",
    ],
)
def test_roles_by_counters(page: EnginePage, role: str) -> None:
    assert role_by_counters(page) == role


def test_every_kind_of_token_is_counted_by_one_of_two_pools() -> None:
    for counts in (counts_prompt, counts_generation):
        assert [counts(role) for role in ("unified", "frontend")] == [True, False]
        assert counts("prefill") is not counts("decode")
