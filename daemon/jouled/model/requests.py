"""What is known of a request to an engine: only numbers, names and times, never a word of its text."""

from enum import StrEnum

from msgspec import Struct


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RequestEvent(Struct, frozen=True, kw_only=True, gc=False, tag="request"):
    """A request that has ended. Times are nanoseconds; receivers give Unix wall time, the core sees core time.

    arrival ≤ first token ≤ last token. `scheduled_ns`: when it left the engine's queue. `cached_prompt_tokens`: of the
    prompt tokens, those taken from the prefix cache; `None` is not told. `seen_ns`: when the event reached the daemon
    (0: at its last token). `answer`: where an engine makes several answers to one prompt and tells of each alike, which
    of those with as many tokens, from 1 on; 0: told by somebody who knows of one answer only.
    """

    engine: str
    id: str
    arrival_ns: int
    first_token_ns: int
    last_token_ns: int
    prompt_tokens: int
    generation_tokens: int
    scheduled_ns: int | None = None
    cached_prompt_tokens: int | None = None
    outcome: Outcome = Outcome.COMPLETED
    trace_id: str = ""
    span_id: str = ""
    tenant: str = ""
    adapter: str = ""
    preemptions: int = 0
    seen_ns: int = 0
    answer: int = 0


class RequestStart(Struct, frozen=True, kw_only=True, tag="request_start"):
    """A request known to be in flight."""

    engine: str
    id: str
    arrival_ns: int
    seen_ns: int = 0
