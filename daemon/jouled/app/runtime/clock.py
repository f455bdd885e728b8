"""The clock of the core: boot time plus an offset, in nanoseconds."""

import time

from msgspec import Struct


class ClockState(Struct, frozen=True):
    """The clock of a commit: the kernel's name of the boot, and core time minus boot time."""

    boot_id: str
    offset_ns: int


class BootClock:
    """Core time: boot time (which runs on in suspend and never steps) plus an offset that outlives restarts."""

    def __init__(self, offset_ns: int) -> None:
        self.offset_ns = offset_ns

    @classmethod
    def equal_to_wall_now(cls) -> "BootClock":
        """A clock that shows Unix time now and does not follow later steps of the wall clock."""
        return cls(time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def now_ns(self) -> int:
        """Core time now."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.offset_ns
