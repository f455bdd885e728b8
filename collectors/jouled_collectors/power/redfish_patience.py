"""When a BMC that failed is asked again."""

import random

from jouled.model.errors import SourceError, SourceState
from jouled.model.units import nanoseconds

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 5.0, 60.0
_FIRST_REFUSED_SECONDS, _LAST_REFUSED_SECONDS = 60.0, 300.0
"""After a refusal: BMCs lock users out after some five logins within minutes."""


class Patience:
    """Waits that double while a BMC fails, with jitter; kept when the source is opened again, so that it is no excuse.

    error: why it failed last; `None`: it works, or was never asked.
    """

    def __init__(self) -> None:
        self.error: SourceError | None = None
        self._failures = 0
        self._ask_at_ns = 0

    def is_over(self, now_ns: int) -> bool:
        """Whether the BMC may be asked now."""
        return now_ns >= self._ask_at_ns

    def fail(self, error: SourceError, now_ns: int) -> None:
        """It failed: leave it alone for a while, longer if it refused."""
        is_refused = error.state in {SourceState.DENIED, SourceState.ABSENT}
        first_seconds = _FIRST_REFUSED_SECONDS if is_refused else _FIRST_RETRY_SECONDS
        last_seconds = _LAST_REFUSED_SECONDS if is_refused else _LAST_RETRY_SECONDS
        whole_seconds = min(last_seconds, first_seconds * 2 ** min(self._failures, 10))
        self.error = error
        self._failures += 1
        self._ask_at_ns = now_ns + nanoseconds(whole_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def succeed(self) -> None:
        """It works: the next failure starts from the first wait again."""
        self.error = None
        self._failures = 0
        self._ask_at_ns = 0
