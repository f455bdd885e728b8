"""When prompts were computed: the time between two moments at which a prefill began or ended."""

from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from jouled.core.attribution.request import Request
from jouled.core.attribution.service_start import SAME_STEP_NS
from jouled.model.units import NANOSECONDS_PER_SECOND


class Stretch(NamedTuple):
    """A time in which the same prompts were computed, and how many of their tokens."""

    from_ns: int
    until_ns: int
    tokens: float

    def steps(self, chunk_tokens: float) -> float:
        """Steps in it, if one takes so many tokens at most."""
        return max(1.0, self.tokens / chunk_tokens)


def stretches_of(requests: Iterable[Request], begin_ns: int, end_ns: int) -> list[Stretch]:
    """The stretches of a range of time, in order; between them no prompt of a known request is computed."""
    turns: list[tuple[int, int, float]] = []
    for request in requests:
        work = request.work
        from_ns = work.begin_ns if work.begin_ns > begin_ns else begin_ns
        until_ns = work.first_ns if work.first_ns < end_ns else end_ns
        if work.prefill_rate > 0.0 and until_ns > from_ns:
            turns += ((from_ns, 1, work.prefill_rate), (until_ns, -1, -work.prefill_rate))
    turns.sort(key=itemgetter(0))
    found: list[Stretch] = []
    since_ns, count, rate = begin_ns, 0, 0.0
    for t_ns, sign, change in turns:
        if count and t_ns - since_ns > SAME_STEP_NS:
            found.append(Stretch(since_ns, t_ns, rate * (t_ns - since_ns) / NANOSECONDS_PER_SECOND))
            since_ns = t_ns
        elif not count:
            since_ns = t_ns
        count += sign
        rate = rate + change if count else 0.0
    return found
