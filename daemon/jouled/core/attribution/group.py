"""The books of one device group: devices joined by shared engines, closed cell by cell, exact in microjoules.

measured = prefill + decode + resident + unreported + idle + unattributed + downtime + open, always: closing a cell
hands all of its energy to an owner or to `held`, finals move whole microjoules out of `held`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from msgspec import Struct

from jouled.core.attribution.cell_rates import Split
from jouled.core.attribution.cells import cell_of, start_of
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.host import HostBook
from jouled.core.attribution.idle import IdlePower
from jouled.core.attribution.interpolation import Lags, Shape, edge_values
from jouled.core.attribution.lag import LONGEST_CELLS, Lag
from jouled.core.attribution.learning import UPLIFT_PRIOR
from jouled.core.attribution.load import Row
from jouled.core.attribution.partitions import User, slice_shares, slices_of
from jouled.core.attribution.request import Request
from jouled.core.attribution.uncertainty import Doubt
from jouled.core.ledger.counters import SILENCE_NS
from jouled.core.ledger.meter import Meter
from jouled.model.device import Device, Quality
from jouled.model.parameters import IdlePolicy
from jouled.model.snapshot import Owner
from jouled.model.units import nanoseconds

RANGE_CELLS = 300
"""Cells of an engine close in ranges of 30 s: the shortest over which lost work can be told from noise."""
APART_NS = nanoseconds(1.0)
"""Amid busy time, events tell better when energy was used than readings that are closer than this (ADR 0009)."""
GAP_CELLS = 3000
"""Five minutes without any energy are a gap."""


_order = attrgetter("event.id", "event.arrival_ns", "event.generation_tokens", "event.answer")
"""The order in which requests of one engine become final, whatever the order in which they came."""

CellEnergy = dict[str, int]
"""Microjoules of each device in one cell."""


class InvariantError(AssertionError):
    """The books of a group do not add up."""


class Final(Struct, frozen=True, gc=False):
    """A request whose last cell has closed, with the whole microjoules it owns."""

    request: Request
    prefill_uj: int
    decode_uj: int
    resident_uj: int
    idle_source: str
    doubt: Doubt
    flags: tuple[str, ...] = ()


class Booking(NamedTuple):
    """Energy that found its owner. `engine` is empty for devices of no engine."""

    engine: str
    owner: Owner
    microjoules: int


class Closed(NamedTuple):
    """What closing some cells found: energy with its owner, and the requests that are final now, in their order."""

    bookings: list[Booking]
    finals: list[Final]


class DeviceGroup:
    """One group: its meters, its engines, and the edge up to which it is closed.

    Without engines its energy goes to one owner: idle, or unattributed under the name of a quarantined engine.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        engines: Sequence[EngineBook],
        policy: IdlePolicy,
        *,
        quarantined: str = "",
        host: HostBook | None = None,
        partitions: Mapping[str, Device] | None = None,
    ) -> None:
        self.quarantined = quarantined
        self.meters = list(meters)
        self.engines = sorted(engines, key=lambda book: book.engine.name)
        self._policy = policy
        self._idle = {meter.device.name: IdlePower(meter.device) for meter in self.meters}
        self._host = host
        self._anchor: int | None = None
        self._next = 0
        self._lag = Lag()
        self._lag_taken_ns = 0
        self.partitions = dict(partitions or {})
        self._slices = [slices_of(book.engine, self.partitions) for book in self.engines]
        self._users = {
            meter.device.name: [
                i
                for i, book in enumerate(self.engines)
                if meter.device.name in book.engine.devices or meter.device.name in self._slices[i]
            ]
            for meter in self.meters
        }
        self._closed_uj = {meter.device.name: 0 for meter in self.meters}
        self._closed_base_uj = 0
        self._late_booked_uj = 0
        self.held = {book.engine.name: 0 for book in self.engines}
        self.booked_uj = 0
        self._measured_base_uj = 0

    @property
    def quality(self) -> Quality:
        """Estimated where any device's energy is a guess: then the whole group's is."""
        return Quality.ESTIMATED if any(meter.estimated for meter in self.meters) else Quality.MEASURED

    @property
    def edge_ns(self) -> int | None:
        """Core time up to which the cells are closed; `None` before the first reading."""
        return None if self._anchor is None else start_of(self._next)

    @property
    def edge_cell(self) -> int | None:
        """The first cell that is not closed; `None` before the first reading."""
        return None if self._anchor is None else self._next

    @property
    def measured_uj(self) -> int:
        """Energy measured since this group began, microjoules."""
        return sum(meter.measured_uj for meter in self.meters) - self._measured_base_uj

    @property
    def open_uj(self) -> int:
        """Energy without an owner yet: of cells not closed and of closed ones held for requests in flight."""
        return self.measured_uj - self.booked_uj

    def begin_at(self, closed: dict[str, int], edge_cell: int) -> None:
        """Go on where other groups left these devices: `closed` is what they booked of each device's curve."""
        self._begin(edge_cell, closed)

    def inherit(self, former: "DeviceGroup") -> None:
        """Take over what another group has learned of the devices and engines that are in both."""
        if [meter.device.name for meter in self.meters] == [meter.device.name for meter in former.meters]:
            self._lag = former._lag  # noqa: SLF001 - the same class
        for name in self._idle.keys() & former._idle.keys():  # noqa: SLF001 - the same class
            self._idle[name] = former._idle[name]  # noqa: SLF001 - the same class
        before = {book.engine.name: book for book in former.engines}
        for book in self.engines:
            old = before.get(book.engine.name)
            if old is not None and old.engine.devices == book.engine.devices:
                book.inherit(old)

    def _begin(self, cell: int, closed: dict[str, int]) -> None:
        """Begin with a cell. What a meter told before, of which no group has taken account, is not this group's."""
        self._anchor = self._next = cell
        for meter in self.meters:
            name = meter.device.name
            meter.take_late()
            self._closed_uj[name] = closed.get(name, meter.curve.value_at(start_of(cell)))
        self._closed_base_uj = sum(self._closed_uj.values())
        told_late = sum(meter.measured_uj - meter.curve.last_uj for meter in self.meters if meter.curve)
        self._measured_base_uj = self._closed_base_uj + told_late
        for book in self.engines:
            book.begin(cell)

    def closed_uj(self) -> dict[str, int]:
        """How much of each device's curve is booked, microjoules."""
        return dict(self._closed_uj)

    # closing

    def advance(self, now_ns: int, *, everything: bool = False) -> Iterator[Closed]:
        """Close all cells that may be; `everything` closes up to the last reading, as a recording's end does.

        What closing finds is handed over piece by piece, while it is at hand; the caller takes all of it.
        """
        closed = Closed([], [])
        if self._anchor is None and not self._find_beginning():
            self._give_up(now_ns, closed, everything=everything)
            yield closed
            return
        late_uj = sum(meter.take_late() for meter in self.meters)
        if late_uj:
            self._late_booked_uj += late_uj
            closed.bookings.append(self._book(self._first_engine(), Owner.UNATTRIBUTED, late_uj))
        self._skip_gap(now_ns, closed, everything=everything)
        yield closed
        while (until := self._next_edge(now_ns, everything=everything)) is not None:
            yield from self._close_range(until, now_ns)
            closed = Closed([], [])
            self._skip_gap(now_ns, closed, everything=everything)
            yield closed
        if everything:
            yield self._finish()

    def _first_engine(self) -> str:
        return self.engines[0].engine.name if self.engines else self.quarantined

    def _find_beginning(self) -> bool:
        known = [meter.curve.first_ns for meter in self.meters if meter.curve]
        if known:
            self._begin(cell_of(min(known)), {})
        return bool(known)

    def _give_up(self, now_ns: int, closed: Closed, *, everything: bool) -> None:
        """No device has ever been read: requests are told all the same, in the end without joules."""
        for book in self.engines:
            requests = book.finish() if everything else book.give_up(now_ns - book.census.horizon_ns(now_ns))
            self._finalise(book, requests, closed)

    def _covered_cell(self, now_ns: int, *, everything: bool) -> int:
        known = [meter for meter in self.meters if meter.curve]
        if not known:
            return self._next
        if everything:
            return max(cell_of(meter.curve.last_ns - 1) + 1 for meter in known)
        read_ns = min(now_ns - SILENCE_NS if m.silent(now_ns) else m.curve.last_ns for m in known)
        return cell_of(read_ns) - (LONGEST_CELLS if self.engines else 0)

    def _next_edge(self, now_ns: int, *, everything: bool) -> int | None:
        covered = self._covered_cell(now_ns, everything=everything)
        if covered <= self._next:
            return None
        if not self.engines:
            return covered
        bound = covered if everything else min(self._bounds(now_ns, covered))
        grid = self._next + RANGE_CELLS - (self._next - (self._anchor or 0)) % RANGE_CELLS
        if len(self.engines) == 1:
            longest = self._next + RANGE_CELLS
            grid = self.engines[0].census.last_look_cell(self._next, longest) or longest
        quiet = [book.census.next_quiet_cell(self._next) for book in self.engines]
        candidates = [grid]
        if all(cell is not None for cell in quiet):
            candidates.append(max(cell for cell in quiet if cell is not None))
        edge = min(candidates)
        if edge <= bound:
            return edge
        return covered if everything else None

    def _bounds(self, now_ns: int, covered: int) -> list[int]:
        """Cells that may close end before all of these: own meters, the host's, and the engines' requests."""
        host = None if self._host is None else self._host.covered_cell(now_ns)
        bounds = [covered, *(book.verified_cell(now_ns) for book in self.engines)]
        return bounds if host is None else [*bounds, host]

    def _close_range(self, until: int, now_ns: int) -> Iterator[Closed]:
        closed = Closed([], [])
        for meter in self.meters:
            if meter.silent(now_ns):
                meter.freeze(start_of(until))
        if not self.engines:
            self._close_idle(until, closed)
            yield closed
            return
        self._refresh_idle()
        rows = [book.sweep(until, now_ns) for book in self.engines]
        begin = self._next
        if self._host is not None:
            for book, engine_rows in zip(self.engines, rows, strict=True):
                self._host.take(book.engine.name, begin, engine_rows, now_ns)
        self._observe_lag(rows, self._energies_as_read(begin, until))
        energies, as_read = self._take_energies(begin, until, rows)
        self._observe_idle(rows, as_read)
        idle_per_cell = {name: idle.per_cell_uj() for name, idle in self._idle.items()}
        self._learn(rows, as_read, idle_per_cell)
        self._tell_gaps(begin, until)
        for offset, energy in enumerate(energies):
            cell_rows = [engine_rows[offset] for engine_rows in rows]
            self._close_cell(begin + offset, cell_rows, energy, idle_per_cell, closed)
            if closed.finals:
                yield closed
                closed = Closed([], [])
        self._settle(closed)
        self._closed(until)
        yield closed

    def _skip_gap(self, now_ns: int, closed: Closed, *, everything: bool) -> None:
        """Pass over a long time in which nothing was measured (a suspended host, a gap in a recording) in one step.

        A device that fell silent has used nothing that is known: it holds up nobody, as where cells close one by one.
        """
        flat_cell = cell_of(self._flat_until_ns(now_ns, everything=everything))
        if not self.engines or flat_cell - self._next < GAP_CELLS:
            return
        until = flat_cell if everything else min(flat_cell, *self._bounds(now_ns, flat_cell))
        if until - self._next < GAP_CELLS:
            return
        for meter in self.meters:
            if meter.silent(now_ns):
                meter.freeze(start_of(until))
        for book in self.engines:
            self._finalise(book, book.skip(until), closed)
        self._next = until

    def _flat_until_ns(self, now_ns: int, *, everything: bool) -> int:
        """The time up to which no device uses anything, as far as is known; silent ones tell of nothing more."""
        found_ns = start_of(self._covered_cell(now_ns, everything=everything))
        for meter in self.meters:
            if meter.curve:
                flat_ns = meter.curve.flat_until(start_of(self._next))
                ended = flat_ns >= meter.curve.last_ns and (everything or meter.silent(now_ns))
                found_ns = found_ns if ended else min(found_ns, flat_ns)
        return found_ns

    def _close_idle(self, until: int, closed: Closed) -> None:
        """Devices of no engine are idle; those of a quarantined one are nobody's."""
        energy_uj = sum(self._take_energy(until).values())
        if energy_uj:
            owner = Owner.UNATTRIBUTED if self.quarantined else Owner.IDLE
            closed.bookings.append(self._book(self.quarantined, owner, energy_uj))
        self._closed(until)

    def _closed(self, until: int) -> None:
        self._next = until
        closed_uj = sum(self._closed_uj.values()) - self._closed_base_uj + self._late_booked_uj
        if closed_uj != self.booked_uj + sum(self.held.values()) or min(self.held.values(), default=0) < 0:
            raise InvariantError(
                f"closed {closed_uj} µJ of {', '.join(self._closed_uj)}, booked {self.booked_uj} and held {self.held}"
            )

    def _take_energy(self, edge_cell: int) -> dict[str, int]:
        """Energy of each device from the last edge taken to the start of `edge_cell`, microjoules."""
        energy = {}
        for meter in self.meters:
            name = meter.device.name
            value = max(meter.curve.value_at(start_of(edge_cell)), self._closed_uj[name])
            energy[name], self._closed_uj[name] = value - self._closed_uj[name], value
        return energy

    def _take_energies(
        self, begin: int, until: int, rows: list[list[Row]]
    ) -> tuple[list[CellEnergy], list[CellEnergy]]:
        """Energy of each device in each cell of a range, microjoules, between readings as power is expected to run.

        First what the cells are closed with, then the same with every reading, of which idle power and ratios are
        learned: energies that follow what is expected would confirm it.
        """
        last_ns = max((meter.curve.last_ns for meter in self.meters if meter.curve), default=0)
        lags = Lags(self._lag_taken_ns, 0 if start_of(until) >= last_ns else self._lag.corrected_ns)
        self._lag_taken_ns = lags.end_ns
        ranges_uj = {
            m.device.name: m.curve.value_at(start_of(until)) - self._closed_uj[m.device.name] for m in self.meters
        }
        shapes: dict[tuple[int, ...], Shape] = {}
        by_device, as_read = {}, {}
        for meter in self.meters:
            name = meter.device.name
            closed_uj, users = self._closed_uj[name], tuple(self._users[name])
            if users not in shapes:
                busy = [any(rows[i][cell].busy >= 1.0 for i in users) for cell in range(until - begin)]
                shapes[users] = Shape(begin, self._expected_power(self._users[name], rows, ranges_uj), busy)
            edges = edge_values(meter.curve, shapes[users], closed_uj, lags, APART_NS)
            every = edge_values(meter.curve, shapes[users], closed_uj, lags)
            self._closed_uj[name] = edges[-1]
            by_device[name] = [after - before for before, after in pairwise((closed_uj, *edges))]
            as_read[name] = [after - before for before, after in pairwise((closed_uj, *every))]
        return _by_cell(by_device, until - begin), _by_cell(as_read, until - begin)

    def _expected_power(self, users: list[int], rows: list[list[Row]], ranges_uj: Mapping[str, int]) -> list[float]:
        """Expected energy in each cell of all devices of some engines, microjoules; `ranges_uj`: of each in all cells.

        One shape for all of them: then many counters and their sum give the same.
        """
        devices = [name for name, others in self._users.items() if others == users]
        idle = {name: self._idle[name].per_cell_uj() for name in devices}
        idle_uj, uplift_uj = sum(idle.values()), sum(self._uplift_uj(name, each) for name, each in idle.items())
        range_uj = sum(ranges_uj[name] for name in devices)
        working = [(self.engines[i], rows[i]) for i in users]
        count = len(rows[0])
        static = [idle_uj + uplift_uj * max((cells[k].busy for _, cells in working), default=0.0) for k in range(count)]
        work = [sum(book.expected_uj(cells[k]) for book, cells in working) for k in range(count)]
        dynamic = max(range_uj - sum(static), 0.0)
        scale = dynamic / sum(work) if sum(work) > 0.0 else 0.0
        least = max(range_uj, 1) / count / 1000
        return [max(s + scale * w, least) for s, w in zip(static, work, strict=True)]

    def _tell_gaps(self, begin: int, until: int) -> None:
        """Tell the engines where a device of theirs told nothing, by its meter's own time."""
        for cell in range(begin, until):
            for meter in self.meters:
                if meter.curve.value_at(start_of(cell)) == meter.curve.value_at(start_of(cell + 1)):
                    for index in self._users[meter.device.name]:
                        self.engines[index].unmetered(cell, cell + 1)

    def _energies_as_read(self, begin: int, until: int) -> list[int]:
        """Energy of all devices in each cell by the meters' own time, microjoules."""
        edges = [sum(m.curve.value_at(start_of(cell)) for m in self.meters) for cell in range(begin, until + 1)]
        return [after - before for before, after in pairwise(edges)]

    def _observe_lag(self, rows: list[list[Row]], measured: list[int]) -> None:
        """Hold the meters' time against the events'."""
        idle_uj = sum(idle.per_cell_uj() for idle in self._idle.values())
        busy = [max(row.busy for row in cell) for cell in zip(*rows, strict=True)]
        work = [
            sum(book.expected_uj(row) for book, row in zip(self.engines, cell, strict=True))
            for cell in zip(*rows, strict=True)
        ]
        above_uj = sum(measured) - idle_uj * len(measured)
        if sum(work) > 0.0 and above_uj > 0.0 and all(measured):
            scale = above_uj / sum(work)
            self._lag.observe(measured, [scale * w + 0.5 * idle_uj * b for w, b in zip(work, busy, strict=True)])

    def _refresh_idle(self) -> None:
        """A device may be described better later on: its limit, its idle power."""
        for meter in self.meters:
            if self._idle[meter.device.name].device != meter.device:
                self._idle[meter.device.name] = IdlePower(meter.device)

    def _observe_idle(self, rows: list[list[Row]], energies: list[dict[str, int]]) -> None:
        busy = [any(engine_rows[i].active for engine_rows in rows) for i in range(len(energies))]
        for i, energy in enumerate(energies):
            near = busy[max(i - 1, 0) : i + 2]
            if any(near) and not busy[i]:
                continue
            for name, microjoules in energy.items():
                if microjoules:  # without any it is a gap, of which nobody knows what was used
                    self._idle[name].observe(microjoules, idle=not busy[i])

    def _learn(self, rows: list[list[Row]], energies: list[dict[str, int]], idle_per_cell: dict[str, float]) -> None:
        """Let an engine that has its devices alone hold its priors against the meter."""
        if len(self.engines) != 1 or not all(sum(energy.values()) for energy in energies):
            return
        told_uj = sum(idle.uplift_uj or 0.0 for idle in self._idle.values())
        idle_uj = sum(idle_per_cell.values())
        unknown_uj = sum(idle_per_cell[name] for name, idle in self._idle.items() if idle.uplift_uj is None)
        above_uj = [
            sum(energy.values()) - idle_uj - told_uj * row.busy for row, energy in zip(rows[0], energies, strict=True)
        ]
        guessed = any(idle.source == "estimated" for idle in self._idle.values())
        self.engines[0].learn(rows[0], above_uj, unknown_uj, idle_guessed=guessed)

    def _close_cell(
        self,
        cell: int,
        rows: list[Row],
        energy: dict[str, int],
        idle_per_cell: dict[str, float],
        closed: Closed,
    ) -> None:
        splits, unused_uj = self._split(rows, energy, idle_per_cell)
        if unused_uj:
            closed.bookings.append(self._book("", Owner.IDLE, unused_uj))
        for book, row, split in zip(self.engines, rows, splits, strict=True):
            name = book.engine.name
            unexplained, requests = book.close(cell, row, split)
            self.held[name] += split.energy - split.idle - unexplained
            if split.idle:
                closed.bookings.append(self._book(name, Owner.IDLE, split.idle))
            if unexplained:
                closed.bookings.append(self._book(name, Owner.UNATTRIBUTED, unexplained))
            ordered = sorted(requests, key=_order) if len(requests) > 1 else requests
            self._finalise(book, ordered, closed)

    def _split(
        self, rows: list[Row], energy: dict[str, int], idle_per_cell: dict[str, float]
    ) -> tuple[list[Split], int]:
        """Each engine's share of the cell: alone on a device it gets all of it; sharers by residency and work.

        The second is what stays idle with slices of partitioned devices that no engine holds.
        """
        unused_uj = 0
        count = len(self.engines)
        total, base, uplift = [0] * count, [0.0] * count, [0.0] * count
        for name, microjoules in energy.items():
            users = self._users[name]
            device_base = idle_per_cell[name]
            device_uplift = self._uplift_uj(name, device_base)
            if all(name in self._slices[i] for i in users):
                unused_uj += self._split_slices(name, rows, microjoules, device_base, total, base, uplift)
                continue
            if len(users) == 1:
                shares: list[tuple[int, int, float]] = [(users[0], microjoules, 1.0)]
            else:
                expected = [self.engines[i].expected_uj(rows[i]) for i in users]
                residency = [rows[i].resident for i in users]
                shares = _shares(users, residency, expected, microjoules, device_base + device_uplift)
            for i, share, part in shares:
                total[i] += share
                base[i] += device_base * part
                uplift[i] += device_uplift * part
        return [self._static(total[i], base[i], uplift[i], rows[i]) for i in range(count)], unused_uj

    def _split_slices(
        self,
        device: str,
        rows: list[Row],
        microjoules: int,
        idle_uj: float,
        total: list[int],
        base: list[float],
        uplift: list[float],
    ) -> int:
        """Add each engine's share of a partitioned device to its sums; returns what stays idle with unused slices."""
        users = [
            User(i, self._slices[i][device], rows[i].resident, self.engines[i].expected_uj(rows[i]))
            for i in self._users[device]
        ]
        uplift_uj = self._uplift_uj(device, idle_uj)
        shares, unused_uj = slice_shares(users, microjoules, idle_uj)
        for share in shares:
            total[share.engine] += share.microjoules
            base[share.engine] += idle_uj * share.idle_part
            uplift[share.engine] += uplift_uj * share.uplift_part
        return unused_uj

    def sharing(self, engine: str) -> tuple[str, ...]:
        """How an engine's energy is told from that of others on its devices; empty where it has them alone."""
        index = next(i for i, book in enumerate(self.engines) if book.engine.name == engine)
        if self._slices[index]:
            return ("partition_estimated",)
        shared = any(index in users and len(users) > 1 for users in self._users.values())
        return ("shared_device",) if shared else ()

    def _uplift_uj(self, device: str, idle_uj: float) -> float:
        """What being busy adds to a device's cell: configured, else learned of its only engine."""
        configured = self._idle[device].uplift_uj
        if configured is not None:
            return configured
        users = self._users[device]
        return idle_uj * (self.engines[users[0]].uplift if len(users) == 1 else UPLIFT_PRIOR)

    def _static(self, energy: int, base: float, uplift: float, row: Row) -> Split:
        """Idle and static part of one engine's cell (attribution.md section 3.4 and the idle policies)."""
        if not row.active:
            return Split(energy, energy, 0.0)
        if self._policy is IdlePolicy.SEPARATE:
            idle = int(min(energy, base))
            return Split(energy, idle, min(energy - idle, uplift) * row.busy)
        return Split(energy, int(min(energy, base) * (1.0 - row.busy)), min(energy, base + uplift) * row.busy)

    def _finalise(self, book: EngineBook, requests: Iterable[Request], closed: Closed) -> None:
        """Requests whose last cell has been closed take their whole microjoules out of what is held for them.

        They are told at the state of the books right after that cell; booked is one sum per owner.
        """
        ended = list(requests)
        if not ended:
            return
        name, idle_source = book.engine.name, self._idle_source(book)
        doubt = book.doubt()._replace(gauge_seconds=max((meter.gauge_seconds for meter in self.meters), default=0.0))
        sharing = self.sharing(name)
        left = self.held[name]
        prefill = decode = resident = 0
        finals = closed.finals
        for request in ended:
            own_prefill, own_decode, own_resident = request.whole_uj(left)
            left -= own_prefill + own_decode + own_resident
            prefill += own_prefill
            decode += own_decode
            resident += own_resident
            finals.append(Final(request, own_prefill, own_decode, own_resident, idle_source, doubt, sharing))
        self.held[name] = left
        for owner, microjoules in ((Owner.PREFILL, prefill), (Owner.DECODE, decode), (Owner.RESIDENT, resident)):
            if microjoules:
                closed.bookings.append(self._book(name, owner, microjoules))

    def _idle_source(self, book: EngineBook) -> str:
        devices = {*book.engine.devices, *slices_of(book.engine, self.partitions)}
        sources = {self._idle[name].source for name in devices if name in self._idle}
        return next((word for word in ("estimated", "learned", "configured") if word in sources), "")

    def _settle(self, closed: Closed) -> None:
        """Hand out work that no event told of, and what the floors left over once nobody can claim it."""
        for book in self.engines:
            name = book.engine.name
            phases = (Owner.PREFILL, Owner.DECODE, Owner.RESIDENT)
            for owner, counted in zip(phases, book.counted.take(), strict=True):
                amount = min(counted, self.held[name])
                if amount:
                    self.held[name] -= amount
                    closed.bookings.append(self._book(name, owner, amount))
            unreported = min(book.take_unreported(), self.held[name])
            if unreported:
                self.held[name] -= unreported
                closed.bookings.append(self._book(name, Owner.UNREPORTED, unreported))
            remainder = self.held[name] - int(book.open_uj()) - 1
            if remainder > 0:
                self.held[name] -= remainder
                closed.bookings.append(self._book(name, Owner.UNATTRIBUTED, remainder))

    def _finish(self) -> Closed:
        closed = Closed([], [])
        for book in self.engines:
            self._finalise(book, book.finish(), closed)
            name = book.engine.name
            unreported = min(book.take_unreported(), self.held[name])
            for owner, amount in ((Owner.UNREPORTED, unreported), (Owner.UNATTRIBUTED, self.held[name] - unreported)):
                if amount:
                    closed.bookings.append(self._book(name, owner, amount))
            self.held[name] = 0
        return closed

    def _book(self, engine: str, owner: Owner, microjoules: int) -> Booking:
        self.booked_uj += microjoules
        return Booking(engine, owner, microjoules)


def _by_cell(by_device: Mapping[str, Sequence[int]], count: int) -> list[CellEnergy]:
    return [{name: cells[i] for name, cells in by_device.items()} for i in range(count)]


def _shares(
    users: list[int], residency: list[float], work: list[float], microjoules: int, static_uj: float
) -> list[tuple[int, int, float]]:
    """One device's cell over its engines: (engine, microjoules, share of static power).

    Static power goes by residency, the rest by expected work; cumulative rounding, the last takes the rest.
    """
    static = min(float(microjoules), static_uj)
    by_residency = [r / sum(residency) if sum(residency) > 0 else 1 / len(users) for r in residency]
    by_work = [w / sum(work) for w in work] if sum(work) > 0 else by_residency
    shares, given, running = [], 0, 0.0
    for position, engine in enumerate(users):
        running += static * by_residency[position] + (microjoules - static) * by_work[position]
        upto = microjoules if position == len(users) - 1 else min(round(running), microjoules)
        shares.append((engine, upto - given, by_residency[position]))
        given = upto
    return shares
