"""What every request event from outside must fulfil before it is let in, whatever way it came."""

from jouled.model.requests import RequestEvent, RequestStart

MAXIMUM_TOKENS = 10_000_000
"""Per request; the longest contexts offered in 2026 hold a few million tokens."""
MAXIMUM_PREEMPTIONS = 1_000_000
MAXIMUM_ANSWERS = 1_000_000
"""To one prompt; vLLM makes up to VLLM_MAX_N_SEQUENCES, 16 384 as long as nobody says otherwise."""
LONGEST_TEXT = 256
"""Characters of an id, a tenant, an adapter: they become keys and label values."""
_LATEST_NS = 2**63 - 1


class RefusedError(ValueError):
    """A record is refused. `reason` is short and stable, for the counter; the message is for the sender."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_request(event: RequestEvent) -> None:
    """Raise `RefusedError` if the event contradicts itself or is out of all bounds."""
    _check_identity(event.id, event.arrival_ns)
    for field in ("trace_id", "span_id", "tenant", "adapter"):
        _check_text(field, getattr(event, field))
    _check_order(event)
    _check_count("prompt_tokens", event.prompt_tokens)
    _check_count("generation_tokens", event.generation_tokens)
    if event.cached_prompt_tokens is not None:
        _check_count("cached_prompt_tokens", event.cached_prompt_tokens)
        if event.cached_prompt_tokens > event.prompt_tokens:
            raise RefusedError("absurd_tokens", _at("cached_prompt_tokens", "more cached tokens than prompt tokens"))
    if not 0 <= event.preemptions <= MAXIMUM_PREEMPTIONS:
        raise RefusedError("absurd_count", _at("preemptions", f"not in 0..{MAXIMUM_PREEMPTIONS}"))
    if not 0 <= event.answer <= MAXIMUM_ANSWERS:
        raise RefusedError("absurd_count", _at("answer", f"not in 0..{MAXIMUM_ANSWERS}"))


def check_start(event: RequestStart) -> None:
    """Raise `RefusedError` if the start has no id or no time."""
    _check_identity(event.id, event.arrival_ns)


def _check_identity(request_id: str, arrival_ns: int) -> None:
    if not request_id.strip():
        raise RefusedError("empty_id", _at("id", "the request has no id"))
    _check_text("id", request_id)
    _check_time("arrival_ns", arrival_ns)


def _check_order(event: RequestEvent) -> None:
    _check_time("first_token_ns", event.first_token_ns)
    _check_time("last_token_ns", event.last_token_ns)
    if event.last_token_ns < event.arrival_ns:
        raise RefusedError("end_before_start", _at("last_token_ns", "the request ended before it arrived"))
    if event.first_token_ns < event.arrival_ns:
        raise RefusedError("first_token_before_start", _at("first_token_ns", "first token before the arrival"))
    if event.first_token_ns > event.last_token_ns:
        raise RefusedError("first_token_after_end", _at("first_token_ns", "first token after the last"))
    if event.scheduled_ns is not None and not event.arrival_ns <= event.scheduled_ns <= event.first_token_ns:
        raise RefusedError("scheduled_out_of_order", _at("scheduled_ns", "not between arrival and first token"))


def _check_time(field: str, unix_ns: int) -> None:
    if not 0 < unix_ns <= _LATEST_NS:
        raise RefusedError("bad_time", _at(field, "no time in Unix nanoseconds"))


def _check_count(field: str, count: int) -> None:
    if not 0 <= count <= MAXIMUM_TOKENS:
        raise RefusedError("absurd_tokens", _at(field, f"not in 0..{MAXIMUM_TOKENS}"))


def _check_text(field: str, text: str) -> None:
    if len(text) > LONGEST_TEXT or not text.isprintable():
        raise RefusedError("bad_text", _at(field, f"longer than {LONGEST_TEXT} characters, or not printable"))


def _at(field: str, problem: str) -> str:
    return f"{problem} - at `$.{field}`"
