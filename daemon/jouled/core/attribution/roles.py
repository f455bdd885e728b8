"""What an engine does of a request: all of it, or one half where prefill and decode run in pools of their own.

Each pool attributes its half under the same request and trace id; neither waits for the other (attribution.md
section 5).
"""

from jouled.model.requests import RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND

PREFILL_ROLE, DECODE_ROLE = "prefill", "decode"


class Served:
    """The part of a request that one engine serves; times are core nanoseconds.

    earliest_ns: when service may have begun at the earliest. cached: prompt tokens that it need not compute.
    moved: its turn was not yet when it first came up.
    """

    __slots__ = ("cached", "earliest_ns", "event", "generated", "last_ns", "moved")

    def __init__(self, event: RequestEvent, earliest_ns: int, last_ns: int, cached: int, generated: int) -> None:
        self.event = event
        self.earliest_ns, self.last_ns = earliest_ns, last_ns
        self.cached, self.generated = cached, generated
        self.moved = False


def served(event: RequestEvent, role: str) -> Served:
    """What an engine of this role serves of a request.

    A prefill pool ends with the first token. A decode pool gets the prompt as KV cache: it computes nothing of it, and
    begins when the transfer has ended (`scheduled_ns`), else with the first token.
    """
    arrival_ns, scheduled_ns, first_ns = event.arrival_ns, event.scheduled_ns, event.first_token_ns
    begun_ns = arrival_ns if scheduled_ns is None or scheduled_ns < arrival_ns else scheduled_ns
    before_first_ns = first_ns - NANOSECONDS_PER_MILLISECOND
    if before_first_ns < arrival_ns:
        before_first_ns = arrival_ns
    cached = min(event.cached_prompt_tokens, event.prompt_tokens) if event.cached_prompt_tokens else 0
    last_ns, generated = event.last_token_ns, event.generation_tokens
    if role == PREFILL_ROLE:
        last_ns, generated = first_ns, min(generated, 1)
    elif role == DECODE_ROLE:
        cached = event.prompt_tokens
        begun_ns = before_first_ns if scheduled_ns is None else begun_ns
    earliest_ns = begun_ns if begun_ns < before_first_ns else before_first_ns
    return Served(event, earliest_ns, last_ns, cached, generated)
