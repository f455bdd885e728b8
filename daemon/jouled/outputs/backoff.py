"""How long to wait before asking again something that failed."""

import random


class Backoff:
    """Waits that double from `first_seconds` to `last_seconds`, each with jitter of up to half of it."""

    def __init__(self, first_seconds: float, last_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._last_seconds = last_seconds
        self._next_seconds = first_seconds

    def next_seconds(self) -> float:
        """The wait before the next attempt."""
        whole = self._next_seconds
        self._next_seconds = min(self._last_seconds, 2 * whole)
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, keeps no secret

    def reset(self) -> None:
        """It worked: the next failure starts from the first wait again."""
        self._next_seconds = self._first_seconds
