"""Several tellings of one request made one: by its engine's spans, a plug-in in the engine, a gateway before it.

The richer telling gives times and tokens, for they belong together; what it lacks of names comes from the other.
"""

from msgspec.structs import astuple, replace

from jouled.core.attribution.by_request import SAME_ARRIVAL_NS, bare_id
from jouled.model.requests import Outcome, RequestEvent

_GRAVITY = {Outcome.COMPLETED: 0, Outcome.CANCELLED: 1, Outcome.FAILED: 2}


def is_same(known: RequestEvent, event: RequestEvent) -> bool:
    """Whether both tell of one request: one id, one arrival, and the same tokens as far as it ran to its end.

    Of a request that was cut off a gateway has seen fewer tokens than the engine made, at the same time. Where both
    tell of answers, each answer is a request of its own.
    """
    if not _is_near(known, event) or not is_one_answer(known.answer, event.answer):
        return False
    if known.prompt_tokens == event.prompt_tokens and known.generation_tokens == event.generation_tokens:
        return True
    are_answers = known.answer and event.answer
    return not are_answers and _was_cut_off(known, event) and not _is_apart(known, event)


def is_one_answer(known: int, answer: int) -> bool:
    """Whether of answers with as many tokens two numbers may mean the same one; 0 may mean any."""
    return known == answer or not known or not answer


def is_another_try(known: RequestEvent, event: RequestEvent) -> bool:
    """Whether they are two tries of a client under one id, one after the other, of which one was cut off."""
    return _is_near(known, event) and _was_cut_off(known, event) and _is_apart(known, event)


def _is_near(known: RequestEvent, event: RequestEvent) -> bool:
    return bare_id(known.id) == bare_id(event.id) and abs(known.arrival_ns - event.arrival_ns) <= SAME_ARRIVAL_NS


def _was_cut_off(known: RequestEvent, event: RequestEvent) -> bool:
    return (known.outcome, event.outcome) != (Outcome.COMPLETED, Outcome.COMPLETED)


def _is_apart(known: RequestEvent, event: RequestEvent) -> bool:
    """Whether one began when the other had ended."""
    return known.last_token_ns < event.arrival_ns or event.last_token_ns < known.arrival_ns


def merged(known: RequestEvent, event: RequestEvent) -> RequestEvent:
    """Both tellings in one; which came first changes nothing but when it was seen."""
    base, other = (known, event) if _rank(known) >= _rank(event) else (event, known)
    return described(replace(base, seen_ns=known.seen_ns), other)


def described(known: RequestEvent, event: RequestEvent) -> RequestEvent:
    """The known telling with the names and cached tokens that it lacks and the graver outcome: no times, no work."""
    spanned = known if known.trace_id else event
    cached = known.cached_prompt_tokens
    if cached is None and event.cached_prompt_tokens is not None:
        cached = min(event.cached_prompt_tokens, known.prompt_tokens)
    return replace(
        known,
        id=max(known.id, event.id, key=lambda request_id: (len(request_id), request_id)),
        outcome=max(known.outcome, event.outcome, key=_GRAVITY.__getitem__),
        trace_id=spanned.trace_id,
        span_id=spanned.span_id,
        tenant=known.tenant or event.tenant,
        adapter=known.adapter or event.adapter,
        cached_prompt_tokens=cached,
        preemptions=max(known.preemptions, event.preemptions),
        answer=known.answer or event.answer,
    )


def _rank(event: RequestEvent) -> tuple[object, ...]:
    """How much a telling says of the work; engines know when a request left the queue, and what the cache held."""
    told = (event.scheduled_ns is not None, event.cached_prompt_tokens is not None, event.generation_tokens)
    rest = astuple(replace(event, seen_ns=0, scheduled_ns=event.scheduled_ns or 0, cached_prompt_tokens=0))
    return (*told, bool(event.trace_id), *rest)
