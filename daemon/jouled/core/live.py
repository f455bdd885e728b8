"""Live counters: what meters and engine pages say, as soon as they say it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from jouled.core.accounting.counters import CounterTable
from jouled.core.attribution.census import Monotone
from jouled.core.attribution.roles import counts_generation, counts_prompt
from jouled.core.books import RawCounter
from jouled.core.ledger.counters import plausible_watts
from jouled.core.ledger.levels import Level, NodeBook, complete, levels
from jouled.core.ledger.meter import Meter
from jouled.core.ledger.residual import ResidualBook
from jouled.core.ledger.tree import is_measured, leaves, meters, parts_of
from jouled.model.device import Device, Quality
from jouled.model.engine import CounterSemantics, EngineSample
from jouled.model.parameters import Price
from jouled.model.readings import DeviceStatus


class LiveMeters:
    """Energy counters of devices, meters and boundaries, as increases since the last look at each meter.

    node: which meters speak for the node. residual: the books of what they tell beyond its parts. losses: the same
    between two levels of meters, by the upper and the lower kind.
    """

    def __init__(self, counters: CounterTable, price: Price, preferred_sources: Sequence[str] = ()) -> None:
        self._counters = counters
        self._price = price
        self.preferred_sources = preferred_sources
        self._seen_uj: dict[str, int] = {}
        self._throttle: dict[tuple[str, str], float] = {}
        self._gaps: dict[tuple[str, str], int] = {}
        self.node = NodeBook()
        self.residual = ResidualBook()
        self.losses: dict[tuple[str, str], ResidualBook] = {}
        self._booked: dict[tuple[str, str], tuple[int, int]] = {}

    def advance(self, by_name: Mapping[str, Meter], now_ns: int) -> None:
        """Book what every meter told since the last call."""
        devices = [meter.device for meter in by_name.values()]
        counted = {device.name for device in leaves(devices)}
        above = {device.name for device in meters(devices)}
        of_source = Counter(device.source for device in devices)
        for name, meter in by_name.items():
            self._book_coverage(meter, of_source[meter.device.source])
            if not meter.curve or meter.estimated:
                continue
            grown_uj = self._grown(name, meter.total_uj)
            if name in counted:
                self._counters.add("device_energy_joules_total", (name, meter.device.kind.value), grown_uj)
            elif name in above:
                self._counters.add("meter_energy_joules_total", (name, meter.device.kind.value), grown_uj)

        def is_heard(name: str) -> bool:
            meter = by_name[name]
            return bool(meter.curve) and is_measured(meter) and not meter.silent(now_ns)

        heard = complete(levels(devices, self.preferred_sources), is_heard)
        self._book_node(self.node.advance(heard, by_name))
        if self.node.level is not None:
            self._book_beyond(self.residual, self.node.level, parts_of(by_name), by_name)
        self._book_losses(heard, by_name)

    def _book_node(self, grown_uj: int) -> None:
        if self.node.level is None:
            return
        self._counters.add("boundary_energy_joules_total", ("node",), grown_uj)
        if self._price.pue is not None:
            self._counters.add("boundary_energy_joules_total", ("facility",), round(grown_uj * self._price.pue))

    def _book_beyond(self, book: ResidualBook, level: Level, parts: list[Meter], by_name: Mapping[str, Meter]) -> None:
        book.advance([by_name[name] for name in level.members], parts)
        self._count(book, "residual_energy_joules_total", "residual_deficit_joules_total", ())

    def _book_losses(self, heard: Sequence[Level], by_name: Mapping[str, Meter]) -> None:
        """What is lost on the way from one level to the next: mostly the conversion in power supplies."""
        for upper, lower in pairwise(heard):
            between = (upper.kind.value, lower.kind.value)
            book = self.losses.setdefault(between, ResidualBook())
            book.advance([by_name[name] for name in upper.members], [by_name[name] for name in lower.members])
            self._count(book, "conversion_loss_joules_total", "conversion_deficit_joules_total", between)

    def _count(self, book: ResidualBook, above: str, below: str, labels: tuple[str, ...]) -> None:
        key = (above, "/".join(labels))
        residual_uj, deficit_uj = self._booked.get(key, (0, 0))
        self._counters.add(above, labels, book.residual_uj - residual_uj)
        self._counters.add(below, labels, book.deficit_uj - deficit_uj)
        self._booked[key] = (book.residual_uj, book.deficit_uj)

    @property
    def needed_from_ns(self) -> int | None:
        """The curves must keep their knots from here on."""
        edges = [self.node.edge_ns, *(book.needed_from_ns for book in (self.residual, *self.losses.values()))]
        return min((edge for edge in edges if edge is not None), default=None)

    def forget(self, name: str) -> None:
        """A device is gone; if it comes back, it begins anew."""
        self._seen_uj.pop(name, None)
        self.node.forget(name)
        for key in [key for key in self._gaps if key[0] == name]:
            del self._gaps[key]

    def _grown(self, name: str, total_uj: int) -> int:
        grown, self._seen_uj[name] = total_uj - self._seen_uj.get(name, 0), total_uj
        return grown

    def _book_coverage(self, meter: Meter, devices: int) -> None:
        """A source's seconds are the mean of its devices'."""
        name, source = meter.device.name, meter.device.source
        spans = {"covered": meter.covered_ns, **meter.gap_ns}
        for reason, span_ns in spans.items():
            grown_ns = span_ns - self._gaps.get((name, reason), 0)
            self._gaps[name, reason] = span_ns
            if reason == "covered":
                self._counters.add("source_covered_seconds_total", (source,), grown_ns / 1e9 / devices)
            elif grown_ns:
                self._counters.add("source_gap_seconds_total", (source, reason), grown_ns / 1e9 / devices)
        for reason, count in meter.rejected.items():
            self._counters.add("source_errors_total", (source, reason), count)
        meter.rejected.clear()

    def status(self, status: DeviceStatus) -> None:
        """Book what a device says of being throttled; the source's own counters may start over."""
        for reason, seconds in status.throttle_seconds.items():
            last = self._throttle.get((status.device, reason))
            self._throttle[status.device, reason] = seconds
            grown = 0.0 if last is None else seconds - last if seconds >= last else seconds
            self._counters.add("device_throttle_seconds_total", (status.device, reason), grown)


CATEGORIES_MAX = 16
"""SGLang has some eight kinds of steps (ForwardMode)."""


class ForwardTimer:
    """An engine's own timer of its accelerators: cumulative seconds by kind of step, each of which may start over."""

    def __init__(self) -> None:
        self._raw: dict[str, float] = {}

    def take(self, told: Mapping[str, float]) -> dict[str, float]:
        """Take a reading; returns the seconds since the last one, of `CATEGORIES_MAX` kinds at most.

        A kind that comes up later has begun since.
        """
        grown, is_first = {}, not self._raw
        for category, seconds in told.items():
            if category not in self._raw and len(self._raw) >= CATEGORIES_MAX:
                continue
            before = self._raw.get(category, seconds if is_first else 0.0)
            self._raw[category] = seconds
            grown[category] = seconds - before if seconds >= before else seconds
        return grown


class LiveTokens:
    """One engine's token counters, continued over restarts of the engine and of the daemon."""

    def __init__(self, semantics: CounterSemantics, raw: Mapping[str, int] | None = None) -> None:
        self._semantics = semantics
        self._counters = {"prompt": Monotone(), "cached": Monotone(), "generation": Monotone()}
        self.raw: dict[str, int] = {}
        for name, value in (raw or {}).items():
            if name in self._counters:
                self._counters[name].take(value)
                self.raw[name] = value
        self.generation = 0
        self._cached_ahead = 0

    def describe(self, semantics: CounterSemantics) -> None:
        """The page turned out to count otherwise."""
        self._semantics = semantics

    def take(self, sample: EngineSample, role: str = "") -> dict[str, int]:
        """Take a sample; returns the increase by kind (prompt_computed, prompt_cached, generation).

        Of an engine that serves a half of its requests only the kinds that are counted with it.
        """
        told = {
            "prompt": sample.prompt_tokens,
            "cached": sample.cached_prompt_tokens,
            "generation": sample.generation_tokens,
        }
        self.raw.update({name: value for name, value in told.items() if value is not None})
        departed = sample.departed_counts
        grown = {
            name: self._counters[name].take(value, departed.get(name, 0))
            for name, value in told.items()
            if value is not None
        }
        if not counts_prompt(role):
            grown = {name: amount for name, amount in grown.items() if name == "generation"}
        if not counts_generation(role):
            grown.pop("generation", None)
        self.generation += grown.get("generation", 0)
        kinds: dict[str, int] = {}
        if "prompt" in grown:
            cached = grown.get("cached", 0)
            computed = grown["prompt"] - cached if self._semantics.prompt == "total" else grown["prompt"]
            computed += self._cached_ahead
            self._cached_ahead = min(computed, 0)
            kinds["prompt_computed"] = max(computed, 0)
        if "cached" in grown:
            kinds["prompt_cached"] = grown["cached"]
        if "generation" in grown:
            kinds["generation"] = grown["generation"]
        return kinds


def downtime_uj(device: Device, stored: RawCounter, raw_uj: int, t_ns: int) -> int | None:
    """Energy used while the daemon was away, by the hardware counter; `None` where it cannot tell.

    The counter must be the same device's and have gone on (or wrapped) at a plausible mean power.
    """
    if stored.uuid != device.uuid or t_ns <= stored.t_ns or device.quality is Quality.ESTIMATED:
        return None
    grown = raw_uj - stored.microjoules
    if grown < 0 and device.wrap_microjoules is not None:
        grown += device.wrap_microjoules
    limit = plausible_watts(device) * (t_ns - stored.t_ns + 1_000_000_000) / 1000
    return grown if 0 <= grown <= limit else None
