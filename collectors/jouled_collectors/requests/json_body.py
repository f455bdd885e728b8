"""JSON from strangers: every fault ends in `MalformedBodyError` with its place."""

import re
from typing import TypeVar

import msgspec

from jouled.api import MOST_RECORDS, MalformedBodyError, TooManyRecordsError

T = TypeVar("T")

_BYTE = re.compile(r" \(byte (\d+)\)$")
_PATH = re.compile(r" - at `(.+)`$")
# A string that is cut off reaches to the end, so that no body is looked at twice.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)


def media_type(content_type: str) -> str:
    """The media type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def check_records(body: bytes, depth: int) -> None:
    """Raise `TooManyRecordsError` if commas part more than `MOST_RECORDS` values down to this depth of brackets.

    Looks only at brackets, commas and strings, builds nothing, and stops at the first one too many.
    """
    if body.count(b",") < MOST_RECORDS:
        return
    level = 0
    commas = 0
    for token in _STRUCTURE.finditer(body):
        match token[0]:
            case b",":
                commas += level <= depth
                if commas >= MOST_RECORDS:
                    raise TooManyRecordsError
            case b"[" | b"{":
                level += 1
            case b"]" | b"}":
                level -= 1


def decode(body: bytes, expected: type[T]) -> T:
    """Decode a whole body, strictly.

    Raises:
        MalformedBodyError: the position is a path (`$.resourceSpans`) for a value of the wrong type, else a byte
            counted from 0, with line and column counted from 1.
    """
    try:
        return msgspec.json.decode(body, type=expected)
    except msgspec.ValidationError as error:
        path = _PATH.search(str(error))
        raise MalformedBodyError(_PATH.sub("", str(error)), path[1] if path else "$") from None
    except msgspec.DecodeError as error:
        byte = _BYTE.search(str(error))
        raise MalformedBodyError(_BYTE.sub("", str(error)), _place(body, int(byte[1]) if byte else len(body))) from None
    except UnicodeDecodeError:
        raise MalformedBodyError("The body is not UTF-8", _place(body, _first_byte_not_utf8(body))) from None
    except RecursionError:
        raise MalformedBodyError("The JSON is nested too deeply", "$") from None


def _place(body: bytes, byte: int) -> str:
    before = body[:byte]
    line = before.count(b"\n") + 1
    column = byte - before.rfind(b"\n")
    return f"byte {byte} (line {line}, column {column})"


def _first_byte_not_utf8(body: bytes) -> int:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(body)
