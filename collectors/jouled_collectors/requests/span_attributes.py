"""What attributes of spans say, checked: every reader of spans asks here."""

import json
import math
from collections.abc import Mapping, Sequence

from jouled.model.requests import Outcome
from jouled_collectors.requests.checks import LONGEST_TEXT, RefusedError
from jouled_collectors.requests.spans import Span, Value

FINISH_REASONS = ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason")
_OUTCOMES = {
    "abort": Outcome.CANCELLED,  # vLLM, SGLang
    "cancelled": Outcome.CANCELLED,  # TensorRT-LLM
    "error": Outcome.FAILED,
    "timeout": Outcome.FAILED,  # TensorRT-LLM
}
"""All others mean that the request was served: stop, length, tool_calls, content_filter and the like."""

_LONGEST_SECONDS = 30 * 86_400.0


def is_there(attributes: Mapping[str, Value], keys: Sequence[str]) -> bool:
    """Whether any of these is set."""
    return any(key in attributes for key in keys)


def text(attributes: Mapping[str, Value], *keys: str) -> str:
    """The first of these that is set, a string. Raises `RefusedError`: there is none, or it is something else."""
    key, value = _required(attributes, keys)
    if not isinstance(value, str):
        raise RefusedError("bad_attribute", f"{key} is no string")
    return value


def hint(attributes: Mapping[str, Value], key: str) -> str:
    """A string that only helps to find an engine; empty where it is not set, too long for a name, or something else."""
    value = attributes.get(key)
    return value if isinstance(value, str) and len(value) <= LONGEST_TEXT else ""


def count(attributes: Mapping[str, Value], *keys: str) -> int:
    """The first of these that is set, an integer. Raises `RefusedError`: there is none, or it is something else."""
    key, value = _required(attributes, keys)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedError("bad_attribute", f"{key} is no integer")
    return value


def optional_count(attributes: Mapping[str, Value], *keys: str) -> int | None:
    """As `count`, but `None` where none of them is set."""
    return count(attributes, *keys) if is_there(attributes, keys) else None


def optional_seconds(attributes: Mapping[str, Value], key: str) -> float | None:
    """A duration, or `None` where it is not set. Raises `RefusedError`: no number, not finite, or above a month."""
    value = attributes.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("bad_attribute", f"{key} is no number")
    if not math.isfinite(value) or value > _LONGEST_SECONDS:
        raise RefusedError("bad_latency", f"{key} is not finite, or above {_LONGEST_SECONDS:.0f} s")
    return float(value)


def positive_seconds(attributes: Mapping[str, Value], key: str) -> float | None:
    """As `optional_seconds`, and refused where it is negative."""
    seconds = optional_seconds(attributes, key)
    if seconds is not None and seconds < 0:
        raise RefusedError("bad_latency", f"{key} is negative")
    return seconds


def missing(key: str) -> RefusedError:
    """The refusal of a span that lacks what is needed."""
    return RefusedError("missing_attribute", f"the span has no {key}")


def outcome(span: Span) -> Outcome:
    """How the request ended: by the span's status, then by its finish reasons."""
    if span.failed:
        return Outcome.FAILED
    for key in FINISH_REASONS:
        for reason in _reasons(span.attributes.get(key)):
            if reason in _OUTCOMES:
                return _OUTCOMES[reason]
    return Outcome.COMPLETED


def _reasons(value: Value | None) -> Sequence[object]:
    """A list of strings, one string, or such a list as JSON in a string: SGLang and TensorRT-LLM write `["stop"]`."""
    if not isinstance(value, str):
        return value if isinstance(value, Sequence) else ()
    if not value.startswith("[") or len(value) > LONGEST_TEXT:
        return (value,)
    try:
        reasons = json.loads(value)
    except (ValueError, RecursionError):
        return ()
    return [reason for reason in reasons if isinstance(reason, str)]


def _required(attributes: Mapping[str, Value], keys: Sequence[str]) -> tuple[str, Value]:
    for key in keys:
        if key in attributes:
            return key, attributes[key]
    raise missing(keys[0])
