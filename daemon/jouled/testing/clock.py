"""A clock that stands still until a test moves it."""

from jouled.model.units import nanoseconds

FIRST_NS = 1_000_000_000_000


class ManualClock:
    """Core time for a source under test. Each look moves it by `step_ns`, so that a read takes time."""

    def __init__(self, now_ns: int = FIRST_NS, step_ns: int = 1_000) -> None:
        self.time_ns = now_ns
        self.step_ns = step_ns

    def now_ns(self) -> int:
        """Core time now, nanoseconds."""
        seen_ns = self.time_ns
        self.time_ns += self.step_ns
        return seen_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.time_ns += nanoseconds(seconds)
