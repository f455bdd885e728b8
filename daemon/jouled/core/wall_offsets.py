"""By how much the wall clock is ahead of core time, over its steps."""

from bisect import bisect_right

from msgspec.structs import replace

from jouled.core.absence import KEEP_NS
from jouled.model.readings import ClockStep
from jouled.model.receipt import Receipt

_AFTER_ALL_NS = 1 << 80


class WallOffsets:
    """steps: (core time, wall time less core time from then on), of the last day."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def take(self, step: ClockStep, now_ns: int) -> None:
        """The wall clock was set. Until it first was, in a life that had begun, both told the same."""
        if not self.steps and now_ns:
            self.steps.append((0, 0))
        self.steps.append((step.t_ns, step.wall_minus_core_ns))
        self.steps.sort()
        kept_from = bisect_right(self.steps, (now_ns - KEEP_NS, _AFTER_ALL_NS)) - 1
        del self.steps[: max(kept_from, 0)]

    def at(self, core_ns: int) -> int:
        """Wall time less core time at a moment of core time."""
        if not self.steps:
            return 0
        index = bisect_right(self.steps, (core_ns, _AFTER_ALL_NS)) - 1
        return self.steps[max(index, 0)][1]

    def in_core_time(self, receipt: Receipt) -> Receipt:
        """A receipt, whose times are Unix time, in core time."""
        steps = reversed(self.steps)
        offset_ns = next((by for since, by in steps if receipt.last_token_ns - by >= since), 0)
        if not offset_ns:
            return receipt
        moved = ("arrival_ns", "first_token_ns", "last_token_ns")
        return replace(receipt, **{name: getattr(receipt, name) - offset_ns for name in moved})
