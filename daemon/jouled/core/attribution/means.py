"""What an engine's work cost lately and how its requests were, for all of which no better is known."""

from collections.abc import Sequence
from typing import NamedTuple

from jouled.core.attribution.load import Row
from jouled.core.attribution.request import Prefix, Request
from jouled.core.attribution.roles import Served
from jouled.core.attribution.work import Work
from jouled.model.units import NANOSECONDS_PER_SECOND

MEAN_DECAY = 0.999


class Means(NamedTuple):
    """Mean figures of an engine's reported requests, where one is missing."""

    computed: float
    prefill_seconds: float
    tpot_seconds: float
    context: float


class Lately:
    """What the last cells closed with. spent: microjoules per channel, static first."""

    def __init__(self) -> None:
        self.spent = [0.0] * 6
        self._worked = [0.0] * 6

    def take(self, row: Row, residents: float, spent: Sequence[float]) -> None:
        """A cell has closed."""
        for channel, microjoules in enumerate(spent):
            self.spent[channel] = MEAN_DECAY * self.spent[channel] + microjoules
        for index, work in enumerate((residents, row.prefill, row.attention, row.kv, row.decode, row.decoders)):
            self._worked[index] = MEAN_DECAY * self._worked[index] + work

    def rates(self) -> Prefix | None:
        """Mean microjoules per unit of work; `None` before anything ran."""
        worked = self._worked
        if worked[0] <= 0.0:
            return None
        units = (worked[0], worked[0], worked[1], worked[2], worked[4], worked[3])
        return Prefix(*(s / w if w > 0.0 else 0.0 for s, w in zip(self.spent, units, strict=True)))

    def means(self, mean_computed: float, mean_prefill_seconds: float, rows: Sequence[Row]) -> Means:
        """Decode as it closed lately; before anything did, as in the range that is being swept."""
        _, _, _, kv, decode, decoders = self._worked
        if decode <= 1.0:
            kv, decode = sum(row.kv for row in rows), sum(row.decode for row in rows)
            decoders = sum(row.decoders for row in rows)
        return Means(
            computed=mean_computed,
            prefill_seconds=max(mean_prefill_seconds, 0.001),
            tpot_seconds=decoders / decode if decode > 1.0 else 0.03,
            context=kv / decode if decode > 1.0 else mean_computed,
        )


def outline(part: Served, rates: Prefix) -> Request:
    """A request's share at an engine's mean rates, as if nothing else were known of it."""
    event, start_ns = part.event, part.earliest_ns
    first_ns = max(event.first_token_ns, start_ns + 1)
    computed, last_ns = event.prompt_tokens - part.cached, max(part.last_ns, first_ns)
    work = Work(start_ns, first_ns, last_ns, computed, part.cached, event.prompt_tokens, part.generated, start_ns)
    request = Request(event, work, ())
    prefill_seconds = (first_ns - start_ns) / NANOSECONDS_PER_SECOND
    decode_seconds = (last_ns - first_ns) / NANOSECONDS_PER_SECOND
    decoded = work.decode_rate * decode_seconds
    request.resident = rates.resident * (prefill_seconds + decode_seconds)
    request.prefill_step = rates.step * prefill_seconds
    request.prefill = rates.prefill * computed
    request.attention = rates.attention * work.attention_rate * prefill_seconds
    request.decode_step = rates.step * decode_seconds
    request.decode = rates.decode * decoded
    request.kv = rates.kv * decoded * (work.prompt + decoded / 2)
    return request
