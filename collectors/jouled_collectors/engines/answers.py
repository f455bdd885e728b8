"""JSON answers of engines, with one kind of error for all that can be wrong with them."""

from typing import TypeVar

import msgspec

T = TypeVar("T")

_LONGEST_VERSION = 100


def decode(body: bytes, expected: type[T]) -> T:
    """Read a JSON answer. Raises `ValueError` with the reason."""
    try:
        return msgspec.json.decode(body, type=expected)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is not the expected JSON: {error}") from None


def version(text: str) -> str:
    """A version as the engine tells it, without blanks around it. Raises `ValueError` if it can be none."""
    text = text.strip()
    if not text or len(text) > _LONGEST_VERSION or not text.isprintable():
        raise ValueError(f"the version is empty, unprintable or longer than {_LONGEST_VERSION} characters")
    return text
