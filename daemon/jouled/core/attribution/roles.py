"""What an engine does of a request: all of it, or one half where prefill and decode run in pools of their own.

Each pool attributes its half under the same request and trace id; neither waits for the other (attribution.md
section 5).
"""

from jouled.api import EnginePage
from jouled.model.requests import RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND

PREFILL_ROLE, DECODE_ROLE = "prefill", "decode"
HALVES = frozenset({PREFILL_ROLE, DECODE_ROLE})
FRONTEND_ROLE = "frontend"
"""What hands requests to engines that are counted by themselves: it computes nothing and counts nothing."""

FEWEST_REQUESTS = 20
MOST_OF_A_POOL = 0.8
"""Of its prompt tokens a decode pool computes those of requests that came to it alone, and the last one of each."""


def counts_prompt(role: str) -> bool:
    """Whether the prompt tokens of an engine are counted with it: a decode pool's were computed by another."""
    return role not in {DECODE_ROLE, FRONTEND_ROLE}


def counts_generation(role: str) -> bool:
    """Whether the generated tokens of an engine, and requests by their end, are counted with it.

    The one token that a prefill pool makes is made again by the decode pool, or handed on and counted there.
    """
    return role not in {PREFILL_ROLE, FRONTEND_ROLE}


def role_by_counters(page: EnginePage) -> str:
    """The role that counters since the engine's start show; empty as long as they show none.

    The prompts of a decode pool came as KV cache; of a request a prefill pool makes one token. To be asked of engines
    that move KV caches alone: one that classifies makes one token of each request, too.
    """
    finished, prompt = page.requests_finished or 0, page.prompt_tokens or 0
    if finished < FEWEST_REQUESTS or not prompt:
        return ""
    if (page.transferred_prompt_tokens or 0) >= MOST_OF_A_POOL * prompt:
        return DECODE_ROLE
    begun = finished + (page.requests_running or 0)
    made_one_each = page.generation_tokens is not None and page.generation_tokens <= begun
    return PREFILL_ROLE if made_one_each and not page.transferred_prompt_tokens else ""


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
