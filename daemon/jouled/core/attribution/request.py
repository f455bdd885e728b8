"""One known request on its way from the first of its cells to a final account."""

from typing import NamedTuple

from jouled.core.attribution.work import Work
from jouled.model.requests import RequestEvent

PREFILL, DECODE, DONE = 0, 1, 2
IN_FLIGHT = "in_flight"
"""Flag of a request that stands in for one whose end is not told yet."""


class Prefix(NamedTuple):
    """Integrals from a range's begin to one instant: ∫λ of the channels 0 to 5, and ∫s·λ of channel 5.

    Channels 4 and 5 are integrated over step time s, the others over seconds.
    """

    resident: float = 0.0
    step: float = 0.0
    prefill: float = 0.0
    attention: float = 0.0
    decode: float = 0.0
    kv: float = 0.0
    kv_moment: float = 0.0


ZERO = Prefix()

Integrals = tuple[float, float, float, float, float, float, float]
"""The values of a `Prefix`; a plain tuple where one is made for every mark of every request."""


class Parts:
    """Microjoules of one request by phase and channel."""

    __slots__ = ("attention", "decode", "decode_step", "kv", "prefill", "prefill_step", "resident")

    def __init__(self) -> None:
        self.resident = self.prefill_step = self.prefill = self.attention = 0.0
        self.decode_step = self.decode = self.kv = 0.0

    @property
    def prefill_total(self) -> float:
        """Channels 1 to 3 up to the first token."""
        return self.prefill_step + self.prefill + self.attention

    @property
    def decode_total(self) -> float:
        """Channels 1, 4 and 5 from the first token on."""
        return self.decode_step + self.decode + self.kv

    @property
    def total(self) -> float:
        """All channels."""
        return self.prefill_total + self.decode_total + self.resident

    def whole_uj(self, most: int) -> tuple[int, int, int]:
        """Prefill, decode and resident as whole microjoules, none below zero, together no more than `most`."""
        prefill = int(self.prefill_step + self.prefill + self.attention)
        decode = int(self.decode_step + self.decode + self.kv)
        resident = int(self.resident)
        if prefill < 0 or decode < 0 or resident < 0 or prefill + decode + resident > most:
            prefill = min(max(prefill, 0), most)
            decode = min(max(decode, 0), most - prefill)
            resident = min(max(resident, 0), most - prefill - decode)
        return prefill, decode, resident

    def add(self, other: "Parts") -> None:
        """Add another account of the same request."""
        for name in Parts.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Request(Parts):
    """A request in the load, with its account; `fold` books what the closed cells gave it since the last time.

    `start_watts`, `end_watts`: mean power per member at service start and at the last token, for the uncertainty of
    both edges.
    In the range that is being closed it makes `tokens_per_pace` tokens per unit of step time, from a context of
    `context_at_origin` tokens, both as if it had decoded since the range's begin. `decoded`: tokens made up to then.
    `unmetered_ns`: how long it was served without any energy being known: in cells closed before, or in a meter's gap.
    """

    __slots__ = (
        "context_at_origin",
        "decoded",
        "end_watts",
        "event",
        "flags",
        "phase",
        "since",
        "start_watts",
        "tokens_per_pace",
        "unmetered_ns",
        "work",
    )

    def __init__(self, event: RequestEvent, work: Work, flags: tuple[str, ...]) -> None:
        self.resident = self.prefill_step = self.prefill = self.attention = 0.0
        self.decode_step = self.decode = self.kv = 0.0
        self.event = event
        self.work = work
        self.flags = flags
        self.phase = PREFILL
        self.since: Integrals = ZERO
        self.start_watts = self.end_watts = 0.0
        self.tokens_per_pace = self.context_at_origin = 0.0
        self.decoded: float | None = None
        self.unmetered_ns = work.begin_ns - work.start_ns

    def fold(self, now: Integrals) -> None:
        """Take the share of everything since the last fold, and start from here."""
        resident0, step0, prefill0, attention0, decode0, kv0, moment0 = self.since
        resident, step, prefill, attention, decode, kv, moment = self.since = now
        self.resident += resident - resident0
        if self.phase == PREFILL:
            work = self.work
            self.prefill_step += step - step0
            self.prefill += work.prefill_rate * (prefill - prefill0)
            self.attention += work.attention_rate * (attention - attention0)
            return
        self.decode_step += step - step0
        rate = self.tokens_per_pace
        if rate:
            self.decode += rate * (decode - decode0)
            self.kv += rate * (self.context_at_origin * (kv - kv0) + rate * (moment - moment0))
