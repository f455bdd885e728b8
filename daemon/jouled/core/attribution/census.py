"""Who ran when, as far as the engine's gauge and the events agree; and how long the books wait for the rest.

A cell may close once every request that ran in it is known (docs/attribution.md, closing rule): an engine's running
gauge says how many there were, the events say which. Where they never agree (a client abort is told by nobody) the
books wait for the horizon.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from math import log2

from jouled.core.attribution.cells import CELL_NS, cell_of, start_of
from jouled.model.engine import EngineSample
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

FIRST_HOUR_NS = nanoseconds(3600.0)
FIRST_HOUR_FACTOR, FIRST_HOUR_MAX_NS = 4.0, nanoseconds(900.0)
"""How long cells wait in the first hour for somebody who may be in flight all the time: so many times the quantile of
those told of yet, of whom the long ones are still to come, and no longer than that (attribution.md section 4)."""
SPAN_BUCKET_NS = nanoseconds(300.0)
SPAN_QUANTILE = 0.999
SPAN_FACTOR = 1.2
SHORTEST_SPAN_NS, LOWEST_BUCKET = nanoseconds(0.001), round(8 * log2(0.001) + 0.5)
RECENT_NS = nanoseconds(60.0)
"""Requests that ended this long ago belong to no look that is still to come."""
RECENT_MAX = 100_000
AWAY_MAX = 100
SKEW_NS = CELL_NS
"""A gauge shows the engine as its last step left it, and a page is dated by when it was asked for: a request that came
or went this shortly before a look may or may not be counted in it."""


class Monotone:
    """A counter that starts over at zero when its process does."""

    def __init__(self) -> None:
        self._raw: int | None = None
        self.total = 0

    def take(self, raw: int | None, departed: int = 0) -> int:
        """Take a reading (`None`: the page lacks it); returns the increase.

        departed: what of the last reading is no longer in this one, although the process is the same.
        """
        if raw is None:
            return 0
        last, self._raw = self._raw, raw
        if last is None:
            return 0
        last = max(last - departed, 0)
        increase = raw - last if raw >= last else raw
        self.total += increase
        return increase


class Look:
    """One sample of an engine's page, with counters made monotone and the residents known then.

    `least` of them were there all the time from `SKEW_NS` before it, `most` at some time of it.
    """

    __slots__ = (
        "cached",
        "generation",
        "least",
        "most",
        "prompt",
        "quiet_since_ns",
        "running",
        "steps",
        "t_ns",
        "unscheduled",
        "waiting",
    )

    def __init__(self, t_ns: int, running: int | None, waiting: int | None) -> None:
        self.t_ns = t_ns
        self.running = running
        self.waiting = waiting
        self.least = self.most = 0
        self.unscheduled = 0
        self.quiet_since_ns: int | None = None
        self.steps: int | None = None
        self.generation: int | None = None
        self.prompt: int | None = None
        self.cached: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all requests there were at this instant are known.

        Residents whose event does not say when they left the queue may still have been in it: with one of them the
        known ones are held against running and waiting together.
        """
        if self.running is None:
            return False
        if not self.unscheduled:
            return self.least <= self.running <= self.most
        return self.waiting is not None and self.least <= self.running + self.waiting <= self.most

    @property
    def is_certain(self) -> bool:
        """Whether nobody can have been there who is not told of yet: those who surely were fill the gauge."""
        if self.quiet_since_ns is not None:
            return True
        there = self.running if not self.unscheduled else (self.running or 0) + (self.waiting or 0)
        return there == self.least

    @property
    def untold(self) -> int | None:
        """How many at least were running of whom no event has told yet; `None` where the page has no gauge."""
        if self.running is None:
            return None
        there = self.running + (self.waiting or 0) if self.unscheduled else self.running
        return min(max(there - self.most, 0), self.running)

    def agrees(self, settled_ns: int) -> bool:
        """Whether events that are told by now account for all that the gauge saw.

        settled_ns: requests that ended before it have been told, if anybody tells of them.
        """
        if self.quiet_since_ns is not None and self.quiet_since_ns <= settled_ns:
            return True
        return self.t_ns <= settled_ns and self.is_complete

    def met(self, start_ns: int, last_ns: int, *, scheduled: bool) -> None:
        """A request was there over [start, last), some of it within the skew before this look."""
        self.most += 1
        self.least += start_ns <= self.t_ns - SKEW_NS and self.t_ns < last_ns
        self.unscheduled += not scheduled

    def unmet(self, start_ns: int, last_ns: int, *, scheduled: bool) -> None:
        """It was not, as its times are known otherwise now."""
        self.most -= 1
        self.least -= start_ns <= self.t_ns - SKEW_NS and self.t_ns < last_ns
        self.unscheduled -= not scheduled


class Spans:
    """The 99.9th percentile of how long requests stayed untold (seen minus service start) over the last hour."""

    def __init__(self) -> None:
        self._windows: deque[tuple[int, dict[int, int]]] = deque()

    def add(self, seen_ns: int, span_ns: int) -> None:
        """Count one request."""
        windows, window = self._windows, seen_ns // SPAN_BUCKET_NS
        if not windows or windows[-1][0] < window:
            windows.append((window, {}))
            while windows[0][0] <= window - FIRST_HOUR_NS // SPAN_BUCKET_NS:
                windows.popleft()
        counts = windows[-1][1]
        bucket = (
            round(8 * log2(span_ns / NANOSECONDS_PER_SECOND) + 0.5) if span_ns > SHORTEST_SPAN_NS else LOWEST_BUCKET
        )
        counts[bucket] = counts.get(bucket, 0) + 1

    def quantile_ns(self) -> int:
        """The quantile, rounded up to the next eighth of an octave; 0 without requests."""
        merged: dict[int, int] = {}
        for _, counts in self._windows:
            for bucket, count in counts.items():
                merged[bucket] = merged.get(bucket, 0) + count
        left = (1 - SPAN_QUANTILE) * sum(merged.values())
        for bucket in sorted(merged, reverse=True):
            left -= merged[bucket]
            if left < 0:
                return nanoseconds(2 ** (bucket / 8))
        return 0


class Census:
    """The looks at one engine and the requests known at each of them."""

    def __init__(self, *, wait_ns: int, horizon_min_ns: int, horizon_max_ns: int) -> None:
        self._wait_ns = wait_ns
        self._horizon_min_ns = horizon_min_ns
        self._horizon_max_ns = horizon_max_ns
        self._first_hour_max_ns = min(FIRST_HOUR_MAX_NS, horizon_max_ns)
        self._first_ns: int | None = None
        self._spans = Spans()
        self._recent: deque[tuple[int, int, bool]] = deque(maxlen=RECENT_MAX)
        self._undone: deque[tuple[int, int, bool]] = deque(maxlen=RECENT_MAX)
        self._counters = {name: Monotone() for name in ("steps", "generation", "prompt", "cached")}
        self._away: deque[tuple[int, int]] = deque(maxlen=AWAY_MAX)
        self.looks: list[Look] = []
        self._times: list[int] = []

    def sample(self, sample: EngineSample) -> dict[str, int]:
        """Take a sample of the page; returns what its counters grew by. One older than the last is ignored."""
        if self._times and sample.t_ns <= self._times[-1]:
            return {}
        counters, departed = self._counters, sample.departed_counts.get
        grown = {
            "steps": counters["steps"].take(sample.steps, departed("steps", 0)),
            "generation": counters["generation"].take(sample.generation_tokens, departed("generation", 0)),
            "prompt": counters["prompt"].take(sample.prompt_tokens, departed("prompt", 0)),
            "cached": counters["cached"].take(sample.cached_prompt_tokens),
        }
        look = Look(sample.t_ns, sample.requests_running, sample.requests_waiting)
        look.steps = counters["steps"].total if sample.steps is not None else None
        look.generation = counters["generation"].total if sample.generation_tokens is not None else None
        look.prompt = counters["prompt"].total if sample.prompt_tokens is not None else None
        look.cached = counters["cached"].total if sample.cached_prompt_tokens is not None else None
        last = self.looks[-1] if self.looks else None
        nobody = look.running == 0 and not sample.requests_waiting
        if nobody and last is not None and last.running == 0 and not any(grown.values()):
            look.quiet_since_ns = last.t_ns if last.quiet_since_ns is None else last.quiet_since_ns
        for start_ns, last_ns, scheduled in self._recent:
            if start_ns <= look.t_ns < last_ns + SKEW_NS:
                look.met(start_ns, last_ns, scheduled=scheduled)
        for start_ns, last_ns, scheduled in self._undone:
            if start_ns <= look.t_ns < last_ns + SKEW_NS:
                look.unmet(start_ns, last_ns, scheduled=scheduled)
        self.looks.append(look)
        self._times.append(look.t_ns)
        return grown

    def known(self, start_ns: int, last_ns: int, seen_ns: int, *, scheduled: bool = True) -> None:
        """A request that was there over [start, last) has become known.

        scheduled: start is when it left the queue; else it is its arrival.
        """
        times, end_ns = self._times, last_ns + SKEW_NS
        last_look_ns = times[-1] if times else 0
        index = bisect_left(times, start_ns)
        while index < len(times) and times[index] < end_ns:
            self.looks[index].met(start_ns, last_ns, scheduled=scheduled)
            index += 1
        recent, undone = self._recent, self._undone
        if end_ns > last_look_ns:
            recent.append((start_ns, last_ns, scheduled))
        needed_ns = seen_ns - RECENT_NS if seen_ns - RECENT_NS > last_look_ns else last_look_ns
        while recent and recent[0][1] + SKEW_NS <= needed_ns:
            recent.popleft()
        while undone and undone[0][1] + SKEW_NS <= needed_ns:
            undone.popleft()

    def untold(self, start_ns: int, last_ns: int, *, scheduled: bool) -> None:
        """A request that has become known is known otherwise now: undo what `known` did with these times.

        For looks still to come it is noted, not sought among the recent ones: there may be thousands, and as many of
        them told twice.
        """
        times, end_ns = self._times, last_ns + SKEW_NS
        index = bisect_left(times, start_ns)
        while index < len(times) and times[index] < end_ns:
            self.looks[index].unmet(start_ns, last_ns, scheduled=scheduled)
            index += 1
        if end_ns > (times[-1] if times else 0):
            self._undone.append((start_ns, last_ns, scheduled))

    def waited(self, start_ns: int, seen_ns: int) -> None:
        """A request that began then was told of for the first time."""
        if self._first_ns is not None and start_ns >= self._first_ns:
            self._spans.add(seen_ns, seen_ns - start_ns)

    def began(self, t_ns: int) -> None:
        """The books of this engine begin: its first hour starts."""
        self._first_ns = t_ns

    def horizon_ns(self, now_ns: int) -> int:
        """How long a cell waits for requests that nobody told of (attribution.md section 4)."""
        wanted = max(self._wait_ns, round(SPAN_FACTOR * self._spans.quantile_ns()))
        return min(max(wanted, self._horizon_min_ns if self._in_first_hour(now_ns) else 0), self._horizon_max_ns)

    def _in_first_hour(self, now_ns: int) -> bool:
        return self._first_ns is None or now_ns - self._first_ns < FIRST_HOUR_NS

    def _nobody_untold_ns(self, settled_ns: int) -> int:
        """The last settled look at which nobody untold of was seen; where the page has no gauge, the last of all."""
        for look in reversed(self.looks):
            if look.t_ns <= settled_ns and not look.untold:
                return look.t_ns
        return self.looks[0].t_ns if self.looks else settled_ns

    def was_away(self, begin_ns: int, end_ns: int) -> None:
        """Nobody listened over this time: it is no part of what requests had to be told of."""
        self._away.append((begin_ns, end_ns))

    def given_up_ns(self, now_ns: int, *, starts_told: bool = False) -> int:
        """Up to here the horizon has passed; a time in which nobody listened does not count.

        In the first hour nobody knows yet how long requests take. Where somebody untold of was there at every look
        since, that may be one and the same, still in flight: then cells wait longer, unless starts are told as well.
        """
        given_up_ns = now_ns - self.horizon_ns(now_ns)
        if self._in_first_hour(now_ns) and not starts_told:
            longest_ns = min(round(FIRST_HOUR_FACTOR * self._spans.quantile_ns()), self._first_hour_max_ns)
            nobody_ns = self._nobody_untold_ns(now_ns - self._wait_ns)
            given_up_ns = min(given_up_ns, max(nobody_ns, now_ns - longest_ns))
        for begin_ns, end_ns in reversed(self._away):
            if given_up_ns < end_ns:
                given_up_ns -= end_ns - begin_ns
        return given_up_ns

    def verified_ns(self, now_ns: int, closed_ns: int) -> int:
        """Up to here gauge and events agree at every look beyond `closed_ns`; 0 if not even at the first.

        One at which they do not saw a request that may yet be told of: no later look tells how long it was there, so
        what lies behind waits for it, or for the horizon.
        """
        verified_ns, settled_ns = 0, now_ns - self._wait_ns
        for index in range(bisect_right(self._times, closed_ns), len(self.looks)):
            look = self.looks[index]
            if not look.agrees(settled_ns):
                break
            if look.is_certain:
                verified_ns = self._times[index]
        return verified_ns

    def next_quiet_cell(self, after_cell: int) -> int | None:
        """The first cell edge beyond `after_cell` at which the engine was seen doing nothing."""
        for look in self.looks:
            if look.quiet_since_ns is not None and cell_of(look.t_ns) > after_cell:
                return cell_of(look.t_ns)
        return None

    def last_look_cell(self, after_cell: int, until_cell: int) -> int | None:
        """The last cell edge beyond `after_cell` and up to `until_cell` at which the page was looked at."""
        index = bisect_left(self._times, start_of(until_cell + 1)) - 1
        if index < 0 or cell_of(self._times[index]) <= after_cell:
            return None
        return cell_of(self._times[index])

    def forget_before(self, t_ns: int) -> None:
        """Drop looks that no open cell needs; the one before stays, for interpolation."""
        keep_from = bisect_right(self._times, t_ns) - 1
        if keep_from > 0:
            del self.looks[:keep_from]
            del self._times[:keep_from]

    @property
    def last_look_ns(self) -> int:
        """When the page was looked at last; 0: never."""
        return self._times[-1] if self._times else 0

    @property
    def counts_steps(self) -> bool:
        """Whether the engine's page has a step counter."""
        return bool(self.looks) and self.looks[-1].steps is not None

    @property
    def counts_cached(self) -> bool:
        """Whether the engine's page has a counter of cached prompt tokens."""
        return bool(self.looks) and self.looks[-1].cached is not None

    def between(self, begin_ns: int, end_ns: int) -> list[Look]:
        """Looks inside an interval, both ends included."""
        return self.looks[bisect_left(self._times, begin_ns) : bisect_right(self._times, end_ns)]

    def around(self, begin_ns: int, end_ns: int) -> list[Look]:
        """Looks inside an interval, with the last one before it and the first one after it."""
        low = max(bisect_right(self._times, begin_ns) - 1, 0)
        return self.looks[low : bisect_left(self._times, end_ns) + 1]

    def counter_near(self, name: str, cell: int) -> float | None:
        """A counter's value where a cell begins: what a look inside the cell said, else as `counter_at`.

        What is counted between two looks is then exact, and nothing of it leaks into idle cells beside them.
        """
        index = bisect_left(self._times, start_of(cell))
        if index < len(self._times) and self._times[index] < start_of(cell + 1):
            value: float | None = getattr(self.looks[index], name)
            return value
        return self.counter_at(name, start_of(cell))

    def counter_at(self, name: str, t_ns: int) -> float | None:
        """A counter's monotone value at `t_ns`, linear between looks; `None` outside them or without that counter."""
        right = bisect_right(self._times, t_ns)
        if right == 0:
            return None
        before = self.looks[right - 1]
        value: float | None = getattr(before, name)
        if value is None or before.t_ns == t_ns:
            return value
        if right == len(self.looks):
            return None
        after = self.looks[right]
        later: float | None = getattr(after, name)
        return None if later is None else value + (later - value) * (t_ns - before.t_ns) / (after.t_ns - before.t_ns)
