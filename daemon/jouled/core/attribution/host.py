"""The host's books: energy of CPU packages and memory that no engine computes on, cell by cell, exact in microjoules.

measured = attributed + idle + unattributed + open, always. A cell's energy is parted between the engines as soon as
its meters are known, and between an engine's requests when that engine's cell closes.
"""

from collections.abc import Mapping, Sequence

from jouled.core.attribution.activity import Activity, by_cpu, by_running, nobody_runs
from jouled.core.attribution.cells import CELL_NS, cell_of, start_of
from jouled.core.attribution.host_share import HostShare
from jouled.core.attribution.idle import IdlePower
from jouled.core.attribution.load import Row
from jouled.core.attribution.request import Request
from jouled.core.ledger.counters import SILENCE_NS
from jouled.core.ledger.meter import Meter
from jouled.model.engine import EngineSample
from jouled.model.parameters import IdlePolicy

GAP_CELLS = 3000
"""Nobody's cells for longer than five minutes are passed over in one step."""


class HostBook:
    """The host of one node, over all its engines. Energies are whole microjoules of this run."""

    def __init__(self, policy: IdlePolicy) -> None:
        self.attributed_uj = 0
        self.idle_uj = 0
        self.unattributed_uj = 0
        self._policy = policy
        self._meters: dict[str, Meter] = {}
        self._idle: dict[str, IdlePower] = {}
        self._closed_uj: dict[str, int] = {}
        self._activities: dict[str, Activity] = {}
        self._shares: dict[str, HostShare] = {}
        self._next: int | None = None

    # who takes part

    def arrange(self, meters: Sequence[Meter], engines: Sequence[str], closed: Mapping[str, int]) -> None:
        """Set who takes part. `closed`: how much of a meter's curve other books have booked, microjoules."""
        for engine in self._shares.keys() - set(engines):
            self.drop(engine)
        for engine in sorted(engines):
            self._shares.setdefault(engine, HostShare())
        self._meters = {meter.device.name: meter for meter in meters}
        self._idle = {name: self._idle_of(meter) for name, meter in self._meters.items()}
        self._closed_uj = {name: self._closed_uj.get(name, closed.get(name, 0)) for name in self._meters}

    def _idle_of(self, meter: Meter) -> IdlePower:
        known = self._idle.get(meter.device.name)
        return known if known is not None and known.device == meter.device else IdlePower(meter.device)

    def drop(self, engine: str) -> None:
        """An engine is gone, or its attribution failed: nobody can claim its part."""
        self._activities.pop(engine, None)
        share = self._shares.pop(engine, None)
        if share is not None:
            self.unattributed_uj += share.skip() + share.release()

    def sample(self, sample: EngineSample) -> None:
        """Take a look at an engine."""
        activity = self._activities.setdefault(sample.engine, Activity())
        activity.take(sample)
        if sample.engine not in self._shares or not self._reads:
            activity.forget_before(sample.t_ns)  # nothing is parted, so nothing else would

    @property
    def _reads(self) -> bool:
        """Whether there is energy to be parted."""
        return any(meter.curve for meter in self._meters.values())

    # what is closed

    @property
    def edge_cell(self) -> int | None:
        """The first cell whose energy is not parted; `None` before the first range."""
        return self._next

    def closed_uj(self) -> dict[str, int]:
        """How much of each meter's curve is taken, microjoules."""
        return dict(self._closed_uj)

    @property
    def open_uj(self) -> int:
        """Measured and nobody's yet: not parted, waiting for an engine's rows, or held for requests in flight."""
        untaken = sum(max(m.curve.last_uj - self._closed_uj[name], 0) for name, m in self._meters.items() if m.curve)
        return untaken + sum(share.waiting_uj + share.held_uj for share in self._shares.values())

    @property
    def idle_source(self) -> str:
        """Where the idle power comes from, the worst of all meters; empty without a meter."""
        sources = {idle.source for name, idle in self._idle.items() if self._meters[name].curve}
        return next((word for word in ("estimated", "learned", "configured") if word in sources), "")

    def covered_cell(self, now_ns: int) -> int | None:
        """Cells before this one may be parted: meters and engines' looks reach it or are silent; `None`: any."""
        known = [now_ns - SILENCE_NS if m.silent(now_ns) else m.curve.last_ns for m in self._meters.values() if m.curve]
        if not known:
            return None
        if len(self._shares) > 1:
            looks = [self._activities[name].last_ns for name in self._shares if name in self._activities]
            known += [last_ns for last_ns in looks if last_ns is not None and now_ns - last_ns <= SILENCE_NS]
        return cell_of(min(known))

    def take(self, engine: str, begin: int, rows: Sequence[Row], now_ns: int) -> None:
        """An engine closes a range of cells: part the host's energy up to its end and give its residents theirs."""
        share = self._shares.get(engine)
        if share is None or not self._reads:
            return
        self._advance(begin, begin + len(rows), now_ns)
        idle_uj, unattributed_uj = share.take(begin, rows)
        self.idle_uj += idle_uj
        self.unattributed_uj += unattributed_uj

    def claim(self, engine: str, request: Request) -> int | None:
        """A final request takes its part, whole microjoules; `None` where there is no meter or it was not seen."""
        share = self._shares.get(engine)
        if share is None or not share.owes:
            return None
        whole_uj = share.claim(request)
        self.attributed_uj += whole_uj or 0
        return whole_uj

    def finish(self) -> None:
        """The end of a recording: what is left is nobody's."""
        for share in self._shares.values():
            self.idle_uj += share.skip()
            self.unattributed_uj += share.release()
        for name, meter in self._meters.items():
            if meter.curve:
                rest_uj = meter.curve.last_uj - self._closed_uj[name]
                self.idle_uj += rest_uj
                self._closed_uj[name] += rest_uj
        self.take_late()

    def take_late(self) -> None:
        """What meters told after their cells had been closed without them."""
        self.unattributed_uj += sum(meter.take_late() for meter in self._meters.values())

    # parting

    def _advance(self, begin: int, until: int, now_ns: int) -> None:
        for meter in self._meters.values():
            if meter.silent(now_ns):
                meter.freeze(start_of(until))
        if self._next is None or begin - self._next > GAP_CELLS:
            self._jump(begin)
        if self._next is None or until <= self._next:
            return
        cells = range(self._next, until)
        energies = [self._take_energy(cell + 1) for cell in cells]
        self._observe_idle(cells, energies)
        idle_per_cell = {name: idle.per_cell_uj() for name, idle in self._idle.items()}
        for cell, energy in zip(cells, energies, strict=True):
            static_uj = sum(int(min(microjoules, idle_per_cell[name])) for name, microjoules in energy.items())
            self._part(cell, static_uj, sum(energy.values()) - static_uj)
        self._next = until
        for activity in self._activities.values():
            activity.forget_before(start_of(until))

    def _jump(self, cell: int) -> None:
        """Begin with `cell`, or go on there after a gap: what was used before is nobody's."""
        self.idle_uj += sum(share.skip() for share in self._shares.values()) + sum(self._take_energy(cell).values())
        self._next = cell

    def _take_energy(self, edge_cell: int) -> dict[str, int]:
        """Energy of each meter from the last edge taken to the start of `edge_cell`, microjoules."""
        edge_ns = start_of(edge_cell)
        energy = {}
        for name, meter in self._meters.items():
            value = max(meter.curve.value_at(edge_ns), self._closed_uj[name])
            energy[name], self._closed_uj[name] = value - self._closed_uj[name], value
        return energy

    def _observe_idle(self, cells: range, energies: Sequence[Mapping[str, int]]) -> None:
        engines = self._known_activities()
        for cell, energy in zip(cells, energies, strict=True):
            idle = nobody_runs(engines, start_of(cell) + CELL_NS // 2)
            for name, microjoules in energy.items():
                if self._meters[name].curve:
                    self._idle[name].observe(microjoules, idle=idle)

    def _known_activities(self) -> dict[str, Activity]:
        return {name: self._activities.get(name, Activity()) for name in self._shares}

    def _part(self, cell: int, static_uj: int, dynamic_uj: int) -> None:
        """One cell over the engines; cumulative rounding, the last takes the rest."""
        if self._policy is IdlePolicy.SEPARATE:
            self.idle_uj += static_uj
            static_uj = 0
        if len(self._shares) == 1:
            [only] = self._shares.values()
            only.grant(cell, static_uj, dynamic_uj)
            return
        engines, middle_ns = self._known_activities(), start_of(cell) + CELL_NS // 2
        active = by_cpu(engines, middle_ns)
        present = active if self._policy is IdlePolicy.DYNAMIC else by_running(engines, middle_ns)
        statics, dynamics = _whole_parts(static_uj, present), _whole_parts(dynamic_uj, active)
        for share, static, dynamic in zip(self._shares.values(), statics, dynamics, strict=True):
            share.grant(cell, static, dynamic)


def _whole_parts(amount_uj: int, shares: Sequence[float]) -> list[int]:
    parts, given, running = [], 0, 0.0
    for position, share in enumerate(shares):
        running += share
        upto = amount_uj if position == len(shares) - 1 else min(round(amount_uj * running), amount_uj)
        parts.append(upto - given)
        given = upto
    return parts
