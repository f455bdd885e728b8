"""A clock for tests of samplers."""


class StepClock:
    """Stands still; every look at it moves it by `step_ns`."""

    def __init__(self, now_ns: int = 1_000_000_000_000, step_ns: int = 0) -> None:
        self.time_ns = now_ns
        self.step_ns = step_ns

    def now_ns(self) -> int:
        seen = self.time_ns
        self.time_ns += self.step_ns
        return seen

    def advance(self, seconds: float) -> None:
        self.time_ns += round(seconds * 1e9)
