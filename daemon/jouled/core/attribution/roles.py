"""What an engine does of a request: all of it, or one half where prefill and decode run in pools of their own.

Each pool attributes its half under the same request and trace id; neither waits for the other (attribution.md
section 5).
"""

from typing import NamedTuple

from jouled.model.requests import RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND

PREFILL_ROLE, DECODE_ROLE = "prefill", "decode"


class Served(NamedTuple):
    """The part of a request that one engine serves; times are core nanoseconds.

    earliest_ns: when service may have begun at the earliest. cached: prompt tokens that it need not compute.
    """

    earliest_ns: int
    last_ns: int
    cached: int
    generated: int


def served(event: RequestEvent, role: str) -> Served:
    """What an engine of this role serves of a request.

    A prefill pool ends with the first token. A decode pool gets the prompt as KV cache: it computes nothing of it, and
    begins when the transfer has ended (`scheduled_ns`), else with the first token.
    """
    begun_ns = event.arrival_ns if event.scheduled_ns is None else max(event.scheduled_ns, event.arrival_ns)
    before_first_ns = max(event.first_token_ns - NANOSECONDS_PER_MILLISECOND, event.arrival_ns)
    cached = min(event.cached_prompt_tokens or 0, event.prompt_tokens)
    last_ns, generated = event.last_token_ns, event.generation_tokens
    if role == PREFILL_ROLE:
        last_ns, generated = event.first_token_ns, min(generated, 1)
    if role == DECODE_ROLE:
        cached = event.prompt_tokens
        begun_ns = before_first_ns if event.scheduled_ns is None else begun_ns
    return Served(min(begun_ns, before_first_ns), last_ns, cached, generated)
