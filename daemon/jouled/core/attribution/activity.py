"""How active each engine was, by looks at its page and process: what splits the host's energy between engines.

All of it is known within seconds, so no engine's books wait for another engine's requests to end.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from jouled.model.engine import EngineSample
from jouled.model.units import NANOSECONDS_PER_SECOND

ROUNDING_SECONDS = 1.0
"""A smaller decrease is the rounding of ended processes' times; a larger one is an engine that has started anew."""


class Look(NamedTuple):
    """One look: cumulative CPU seconds of the engine's processes, and requests running; `None` is not told."""

    t_ns: int
    cpu_seconds: float | None
    running: int | None


class Activity:
    """One engine's looks, kept as long as open cells need them."""

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self._looks: list[Look] = []

    @property
    def last_ns(self) -> int | None:
        """Time of the last look; `None` before the first."""
        return self._times_ns[-1] if self._times_ns else None

    def take(self, sample: EngineSample) -> None:
        """Take a look later than all others."""
        self._times_ns.append(sample.t_ns)
        self._looks.append(Look(sample.t_ns, sample.cpu_seconds, sample.requests_running))

    def forget_before(self, t_ns: int) -> None:
        """Drop looks that say nothing of any time from `t_ns` on."""
        keep_from = min(bisect_left(self._times_ns, t_ns) - 1, len(self._looks) - 2)
        if keep_from > 0:
            del self._times_ns[:keep_from]
            del self._looks[:keep_from]

    def cores(self, t_ns: int) -> float | None:
        """CPU seconds per second around `t_ns`; beyond the looks, those of the nearest two."""
        before, after = self._around(t_ns)
        if before is None or after is None or before.cpu_seconds is None or after.cpu_seconds is None:
            return None
        used = after.cpu_seconds - before.cpu_seconds
        if used < -ROUNDING_SECONDS:
            used = after.cpu_seconds
        return max(used, 0.0) * NANOSECONDS_PER_SECOND / (after.t_ns - before.t_ns)

    def running(self, t_ns: int) -> float | None:
        """Requests running around `t_ns`, by the gauge of the looks before and after."""
        told = [look.running for look in self._around(t_ns) if look is not None and look.running is not None]
        return sum(told) / len(told) if told else None

    def _around(self, t_ns: int) -> tuple[Look | None, Look | None]:
        looks = self._looks
        if len(looks) < 2:
            return None, looks[0] if looks else None
        right = min(max(bisect_left(self._times_ns, t_ns), 1), len(looks) - 1)
        return looks[right - 1], looks[right]


def by_cpu(activities: Mapping[str, Activity], t_ns: int) -> list[float]:
    """Each engine's share of the host's dynamic energy: by CPU seconds where all tell them, else by requests."""
    return _proportions([activity.cores(t_ns) for activity in activities.values()]) or by_running(activities, t_ns)


def by_running(activities: Mapping[str, Activity], t_ns: int) -> list[float]:
    """Each engine's share by the requests it runs where all tell them; else all engines alike."""
    told = _proportions([activity.running(t_ns) for activity in activities.values()])
    return told or [1.0 / len(activities)] * len(activities)


def nobody_runs(activities: Mapping[str, Activity], t_ns: int) -> bool:
    """Whether every engine says that it ran nothing around `t_ns`."""
    return all(activity.running(t_ns) == 0.0 for activity in activities.values())


def _proportions(amounts: list[float | None]) -> list[float]:
    known = [amount for amount in amounts if amount is not None]
    total = sum(known)
    return [amount / total for amount in known] if len(known) == len(amounts) and total > 0.0 else []
