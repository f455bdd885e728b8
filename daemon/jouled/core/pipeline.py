"""The whole core as one machine: inputs in the order seen, time by `advance`, receipts and snapshots out.

The daemon and `jouled replay` drive the same machine; it has no clock of its own and does no I/O.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from jouled.core.absence import KEEP_NS, Absences
from jouled.core.accounting.account import Account, owners_quality
from jouled.core.accounting.attainment import Attainment
from jouled.core.accounting.components import Components, components_of
from jouled.core.accounting.counters import HistogramBook
from jouled.core.accounting.receipts import Receipts, provisional_receipt
from jouled.core.accounting.windows import AT_FINISH_WINDOW_NS, WINDOW_NS, History, RatioWindow
from jouled.core.attribution.cells import cell_of
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.group import Booking, DeviceGroup, Final
from jouled.core.attribution.host import HostBook
from jouled.core.attribution.roles import FRONTEND_ROLE, counts_generation, counts_prompt
from jouled.core.attribution.unreported import KINDS, UnreportedTokens
from jouled.core.books import Books, CounterSeries, RawCounter
from jouled.core.group_account import GroupAccount
from jouled.core.identity import CONFLICT, DUPLICATE, TOLD_OTHERWISE, Admission, Waiting
from jouled.core.ledger.meter import SILENCE_MAX_NS, Meter
from jouled.core.ledger.own_energy import OwnEnergy
from jouled.core.ledger.tree import host_of, leaves, meters
from jouled.core.live import ForwardTimer, LiveMeters, LiveTokens, downtime_uj
from jouled.core.topology import Group, default_devices, groups
from jouled.core.trust import trust_gauges
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import Engine, EngineSample
from jouled.model.errors import SourceState
from jouled.model.parameters import Parameters
from jouled.model.readings import ClockStep, DeviceStatus, EnergyReading, PowerReading, SourceReport
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.snapshot import DeviceView, EngineView, GroupBook, Owner, Snapshot, SourceView
from jouled.model.units import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, joules

Input = (
    Device
    | Engine
    | EnergyReading
    | PowerReading
    | DeviceStatus
    | EngineSample
    | RequestEvent
    | RequestStart
    | SourceReport
    | ClockStep
)

Gauges = dict[str, dict[tuple[str, ...], float]]

RECENT_SHOWN = 30
LOWEST_COVERAGE = 0.9
"""Of an engine's tokens that request events must tell of for a ratio of goodput; below it something samples them."""
RESIDUAL_KEEP_NS = SILENCE_MAX_NS + 60 * NANOSECONDS_PER_SECOND
"""A node meter that falls silent holds the knots of the others for no longer than this: until the next level of meters
has gone on from its last word."""


class Pipeline:
    """The books of one node."""

    def __init__(self, parameters: Parameters, restored: Books | None = None) -> None:
        self._parameters = parameters
        self._account = Account(parameters)
        self._device_changes = {change.name: change for change in parameters.device_changes}
        self._meters: dict[str, Meter] = {}
        self._partitions: dict[str, Device] = {}
        self._status: dict[str, DeviceStatus] = {}
        self._declared: dict[str, Engine] = {}
        self._books: dict[str, EngineBook] = {}
        self._tokens: dict[str, LiveTokens] = {}
        self._unreported: dict[str, UnreportedTokens] = {}
        self._own_energy: dict[str, OwnEnergy] = {}
        self._forward_timers: dict[str, ForwardTimer] = {}
        self._samples: dict[str, EngineSample] = {}
        self._attainments: dict[str, Attainment] = {}
        self._groups: dict[Group, DeviceGroup] = {}
        self._accounts: dict[tuple[tuple[str, ...], tuple[str, ...]], GroupAccount] = {}
        self._live = LiveMeters(self._account.counters, parameters.price, parameters.node_meters)
        self.host = HostBook(parameters.idle_policy)
        self._admission = Admission()
        self._waiting = Waiting()
        self._owed: list[Receipt] = []
        self._generation = 0
        self._sources: dict[str, SourceView] = {}
        self._steps: list[tuple[int, int]] = []
        self._live_window = RatioWindow()
        self._book_window = RatioWindow()
        self._token_windows: dict[str, RatioWindow] = {}
        self._history = History()
        self._hardware_ns: dict[Group, int] = {}
        self._absences = Absences()
        self._device_raw: dict[str, RawCounter] = {}
        self._engine_raw: dict[str, dict[str, int]] = {}
        self._quarantined: dict[str, str] = {}
        self._changed = False
        self._now_ns = 0
        self._take: dict[type, Callable[[Any], str]] = {
            Device: self._device,
            Engine: self._engine,
            EnergyReading: self._energy,
            PowerReading: self._power,
            DeviceStatus: self._device_status,
            EngineSample: self._engine_sample,
            RequestEvent: self._request,
            RequestStart: self._request_start,
            SourceReport: self._source,
            ClockStep: self._clock,
        }
        if restored is not None:
            self._restore(restored)

    def remember(self, receipts: Iterable[Receipt]) -> None:
        """Requests that had their final receipt before a restart; telling of them again is a duplicate."""
        for receipt in receipts:
            self._admission.remember(self._in_core_time(receipt))

    # inputs

    def feed(self, item: Input) -> str:
        """Take one input. Returns an empty string, or the short reason for which it was refused (also counted)."""
        try:
            reason = self._take[type(item)](item)
        except Exception as error:
            if not isinstance(item, EngineSample | RequestEvent | RequestStart):
                raise
            reason = self._quarantine_engine(item.engine, error)
        if reason and isinstance(item, RequestEvent | RequestStart):
            self._account.counters.add("rejected_events_total", (reason,), 1)
        return reason

    def feed_again(self, item: Input, reason: str) -> None:
        """Take an input as it was taken before a restart.

        Requests that were refused then are refused again, for what they repeated is not remembered any more.
        """
        if reason and isinstance(item, RequestEvent):
            self._regroup()
            self._account.counters.add("rejected_events_total", (reason,), 1)
        else:
            self.feed(item)

    def feed_readings(self, readings: Iterable[EnergyReading | PowerReading | DeviceStatus]) -> None:
        """Take many readings; what is refused is counted with the device."""
        meters = self._meters
        for reading in readings:
            meter = meters.get(reading.device)
            if type(reading) is EnergyReading and meter is not None and not meter.is_new:
                meter.energy(reading)
            else:
                self.feed(reading)

    def _device(self, device: Device) -> str:
        change = self._device_changes.get(device.name)
        if change is not None:
            if change.ignore:
                return "ignored"
            told = {key: getattr(change, key) for key in ("parent", "max_watts")}
            device = replace(device, **{key: value for key, value in told.items() if value is not None})
        if device.kind is DeviceKind.PARTITION:
            self._changed = self._changed or self._partitions.get(device.name) != device
            self._partitions[device.name] = device
            return ""
        self._absences.named_device(device.name)
        known = self._meters.get(device.name)
        if known is None:
            self._meters[device.name] = Meter(device)
            self._changed = True
        elif known.device != device:
            self._changed = self._changed or known.device.kind is not device.kind
            known.describe(device)
        return ""

    def _engine(self, engine: Engine) -> str:
        known, is_read = self._declared.get(engine.name), engine.name in self._samples
        engine = self._declared[engine.name] = self._absences.named_engine(engine, known, is_read=is_read)
        self._changed = True
        if engine.name in self._unreported:
            self._unreported[engine.name].describe(engine.counter_semantics)
        if engine.name in self._tokens:
            self._tokens[engine.name].describe(engine.counter_semantics)
        return ""

    def _energy(self, reading: EnergyReading) -> str:
        meter = self._meters.get(reading.device)
        if meter is None:
            return "unknown_device"
        if meter.is_new:
            meter.quality = reading.quality
            self._book_downtime(meter, reading.t_ns, reading.microjoules)
            self._changed = self._changed or reading.quality is Quality.ESTIMATED
        return meter.energy(reading)

    def _book_downtime(self, meter: Meter, t_ns: int, raw_uj: int | None) -> None:
        """What a device used while the daemon was away, where its counter went on; else that time is a gap."""
        self._absences.metered_again(t_ns)
        stored = self._device_raw.pop(meter.device.name, None)
        before_ns = stored.t_ns if stored is not None else meter.left_ns
        if before_ns is None:
            return
        away_uj = None
        if stored is not None and raw_uj is not None and self._absences.hardware_went_on:
            away_uj = downtime_uj(meter.device, stored, raw_uj, t_ns)
        if away_uj is None:
            gap_seconds = max(t_ns - before_ns, 0) / NANOSECONDS_PER_SECOND
            self._account.counters.add("source_gap_seconds_total", (meter.device.source, "downtime"), gap_seconds)
            return
        meter.downtime_uj += away_uj
        meter.away_from_ns = before_ns

    def _power(self, reading: PowerReading) -> str:
        meter = self._meters.get(reading.device)
        if meter is None:
            return "unknown_device"
        if meter.is_new:
            meter.quality = reading.quality
            self._book_downtime(meter, reading.t_ns, None)
        return meter.power(reading)

    def _device_status(self, status: DeviceStatus) -> str:
        if status.device not in self._meters:
            return "unknown_device"
        self._status[status.device] = status
        self._live.status(status)
        return ""

    def _engine_sample(self, sample: EngineSample) -> str:
        named = self._absences.read_engine(sample.engine)
        if named is not None:
            self._engine(named)
        engine = self._declared.get(sample.engine)
        if engine is None:
            return "unknown_engine"
        last = self._samples.get(sample.engine)
        if last is not None and sample.t_ns <= last.t_ns:
            return "out_of_order"
        self._samples[sample.engine] = sample
        tokens = self._tokens.get(sample.engine)
        if tokens is None:
            tokens = LiveTokens(engine.counter_semantics, self._engine_raw.get(sample.engine))
            self._tokens[sample.engine] = tokens
        model = self._account.model(engine.model)
        for kind, grown in tokens.take(sample, engine.role).items():
            if kind == "generation" and not self._is_estimated(engine.name):
                self._generation += grown
            self._account.counters.add("engine_tokens_total", (engine.name, model, kind), grown)
        self._engine_raw[sample.engine] = dict(tokens.raw)
        self._unreported_of(engine).sample(sample)
        self._attainment(sample.engine).take(sample)
        self._own_meters(sample)
        window = self._token_windows.setdefault(sample.engine, RatioWindow())
        window.span_ns = _window_ns(engine)
        window.add(sample.t_ns, {"generation": tokens.generation})
        self._regroup()
        self.host.sample(sample)
        book = self._books.get(sample.engine)
        if book is not None:
            book.sample(sample)
        return ""

    def _own_meters(self, sample: EngineSample) -> None:
        """What an engine meters and times itself is shown beside the books."""
        if sample.reported_energy_joules is not None:
            own = self._own_energy.setdefault(sample.engine, OwnEnergy())
            grown_uj = own.take(sample.t_ns, sample.reported_energy_joules)
            self._account.counters.add("engine_reported_energy_joules_total", (sample.engine,), grown_uj)
        if sample.forward_seconds:
            timer = self._forward_timers.setdefault(sample.engine, ForwardTimer())
            for category, seconds in timer.take(sample.forward_seconds).items():
                self._account.counters.add("engine_forward_seconds_total", (sample.engine, category), seconds)

    def _request(self, event: RequestEvent) -> str:
        if self._changed:
            self._regroup()
        book = self._books.get(event.engine)
        if book is None:
            return self._why_no_book(event.engine)
        now_ns = event.seen_ns if event.seen_ns > self._now_ns else self._now_ns
        reason = self._admission.refuse(event, now_ns)
        if reason in {TOLD_OTHERWISE, CONFLICT}:
            known = self._waiting.told_again(event)
            if known is not None:
                return self._told_again(book, known, event)
            if reason == TOLD_OTHERWISE:
                return DUPLICATE
            if not self._waiting.tried_before(event):
                return CONFLICT
            self._admission.remember(event)
        elif reason:
            return reason
        self._attainment(event.engine).told_ns = now_ns
        self._waiting.add(event)
        self._unreported_of(book.engine).tell(event)
        late = book.ended(event)
        if late:
            self._account.counters.add("late_events_total", (late,), 1)
        return ""

    def _told_again(self, book: EngineBook, known: RequestEvent, event: RequestEvent) -> str:
        """One more telling of a request that is not final: what it adds is taken."""
        amended = book.amended(known, event)
        self._waiting.replace(known, amended)
        self._unreported_of(book.engine).untell(known)
        self._unreported_of(book.engine).tell(amended)
        self._admission.remember(event)
        self._account.counters.add("merged_events_total", (event.engine,), 1)
        return ""

    def _unreported_of(self, engine: Engine) -> UnreportedTokens:
        found = self._unreported.get(engine.name)
        if found is None:
            found = self._unreported[engine.name] = UnreportedTokens(engine.counter_semantics)
        return found

    def _attainment(self, engine: str) -> Attainment:
        found = self._attainments.get(engine)
        if found is None:
            found = self._attainments[engine] = Attainment(self._parameters.slos)
        return found

    def _why_no_book(self, engine: str) -> str:
        if engine in self._quarantined:
            return "quarantined"
        return "engine_without_devices" if engine in self._declared else "unknown_engine"

    def _request_start(self, start: RequestStart) -> str:
        self._regroup()
        book = self._books.get(start.engine)
        if book is None:
            return self._why_no_book(start.engine)
        reason = self._admission.refuse_start(start, max(self._now_ns, start.seen_ns))
        if not reason and not self._admission.has_ended(start):
            book.started(start)
        return reason

    def _source(self, report: SourceReport) -> str:
        view = SourceView(
            source=report.source, state=report.state, reason=report.reason, message=report.message, mend=report.mend
        )
        self._changed = self._changed or self._is_gone(report.source) is not (report.state is SourceState.ABSENT)
        self._sources[report.source] = view
        if report.reason:
            self._account.counters.add("source_errors_total", (report.source, report.reason), 1)
        return ""

    def _clock(self, step: ClockStep) -> str:
        self._steps.append((step.t_ns, step.wall_minus_core_ns))
        self._steps.sort()
        kept_from = bisect_right(self._steps, (self._now_ns - KEEP_NS, 1 << 80)) - 1
        del self._steps[: max(kept_from, 0)]
        return ""

    def _wall_offset_ns(self, core_ns: int) -> int:
        steps = self._steps
        if len(steps) < 2:
            return steps[0][1] if steps else 0
        index = bisect_right(steps, (core_ns, 1 << 80)) - 1
        return steps[max(index, 0)][1]

    # groups

    def _resolved_engines(self) -> list[Engine]:
        """The declared engines with their devices; an only engine that names none gets the default.

        One that is gone makes none of the others less the only one: it may have moved to another port.
        """
        declared = [engine for engine in self._declared.values() if engine.role != FRONTEND_ROLE]
        there = [engine for engine in declared if not self._is_gone(engine.name)] or declared
        if len(there) == 1 and not there[0].devices:
            devices = default_devices([meter.device for meter in self._meters.values()])
            return [replace(there[0], devices=devices)] if devices else []
        return declared

    def _is_gone(self, engine: str) -> bool:
        view = self._sources.get(engine)
        return view is not None and view.state is SourceState.ABSENT

    def _regroup(self) -> None:
        if not self._changed:
            return
        self._changed = False
        engines = {engine.name: engine for engine in self._resolved_engines()}
        known = [*(meter.device for meter in self._meters.values()), *self._partitions.values()]
        wanted = groups(known, engines.values())
        kept = {group: self._groups[group] for group in wanted if self._stays(group, engines)}
        for living in kept.values():
            for book in living.engines:
                book.describe(engines[book.engine.name])
        closed: dict[str, int] = {}
        edges: dict[str, int] = {}
        for key, old in self._groups.items():
            if key not in kept:
                self._retire(key, old, closed, edges)
        if self.host.edge_cell is not None:
            edges.update(dict.fromkeys(self.host.closed_uj(), self.host.edge_cell))
            closed.update(self.host.closed_uj())
        for key in wanted:
            if key not in kept:
                kept[key] = self._found(key, engines, closed, edges)
        self._groups = kept
        self._books = {book.engine.name: book for living in kept.values() for book in living.engines}
        compute = {name for group in kept for name in group.devices}
        self.host.arrange(host_of(self._meters, compute), list(self._books), closed)

    def _stays(self, group: Group, engines: dict[str, Engine]) -> bool:
        """Whether a group goes on: there is one of these devices and engines, and each engine is where it was."""
        living = self._groups.get(group)
        if living is None or living.partitions != self._partitions_of(engines, group):
            return False
        return all(b.engine.devices == engines[b.engine.name].devices for b in living.engines)

    def _partitions_of(self, engines: dict[str, Engine], group: Group) -> dict[str, Device]:
        """The partitions that the engines of a group run on."""
        named = {name for engine in group.engines for name in engines[engine].devices}
        return {name: device for name, device in self._partitions.items() if name in named}

    def _retire(self, group: Group, old: DeviceGroup, closed: dict[str, int], edges: dict[str, int]) -> None:
        """Close a group whose devices or engines change, up to its last reading."""
        try:
            self._close(group, old, self._owed, everything=True)
        except Exception as error:  # noqa: BLE001 - as in _advance
            self._quarantine(group, old, error)
            old = self._groups[group]
        self._hardware_ns.pop(group, None)
        closed.update(old.closed_uj())
        if old.edge_cell is not None:
            edges.update(dict.fromkeys(group.devices, old.edge_cell))
        account = self._account_of(group)
        account.measured_uj += old.measured_uj

    def _found(
        self, group: Group, engines: dict[str, Engine], closed: dict[str, int], edges: dict[str, int]
    ) -> DeviceGroup:
        books = [EngineBook(engines[name], self._parameters) for name in group.engines]
        quarantined = next((name for name in group.engines if name in self._quarantined), "")
        found = DeviceGroup(
            [self._meters[name] for name in group.devices],
            [] if quarantined else books,
            self._parameters.idle_policy,
            quarantined=quarantined,
            host=self.host,
            partitions=self._partitions_of(engines, group),
        )
        for former in self._groups.values():
            found.inherit(former)
        before = [edges[name] for name in group.devices if name in edges]
        if before and any(meter.curve for meter in found.meters):
            found.begin_at({name: closed[name] for name in group.devices if name in closed}, max(before))
        self._merge_accounts(group, owners_quality(Quality.ESTIMATED if found.estimated else Quality.MEASURED))
        return found

    def _account_of(self, group: Group) -> GroupAccount:
        key = (group.devices, group.engines)
        found = self._accounts.get(key)
        if found is None:
            found = self._accounts[key] = GroupAccount(group.devices, group.engines)
        return found

    def _merge_accounts(self, group: Group, quality: str) -> None:
        """Accounts of groups that this one contains live on in it; guesses and measurements are never merged."""
        account = self._account_of(group)
        for key, other in list(self._accounts.items()):
            contained = set(key[0]) <= set(group.devices) and set(key[1]) <= set(group.engines)
            if contained and other is not account and owners_quality(other.quality) == quality:
                account.absorb(self._accounts.pop(key))

    # time

    def advance(self, now_ns: int) -> list[Receipt]:
        """Close what can be closed at `now_ns`; returns the receipts that are final now, each once."""
        return self._advance(now_ns, everything=False)

    def finish(self) -> list[Receipt]:
        """The end of a recording: everything closes, up to the last reading."""
        for meter in self._meters.values():
            meter.settle()
        receipts = self._advance(self._now_ns, everything=True)
        self.host.finish()
        return receipts

    def _advance(self, now_ns: int, *, everything: bool) -> list[Receipt]:
        self._now_ns = max(now_ns, self._now_ns)
        self._drop_what_is_gone()
        self._regroup()
        self._live.advance(self._meters, self._now_ns)
        self.host.take_late()
        receipts, self._owed = self._owed, []
        for group, books in list(self._groups.items()):
            self._settle_downtime(group, books)
            try:
                self._close(group, books, receipts, everything=everything)
            except Exception as error:  # noqa: BLE001 - metering goes on when the attribution of one engine fails
                self._quarantine(group, books, error)
            self._book_hardware(group, books)
        self._book_unreported_tokens()
        self._check_own_energy()
        self._forget()
        self._observe_windows()
        self._admission.forget_before(self._now_ns)
        return receipts

    def _forget(self) -> None:
        """Drop what no open cell and no residual window needs of the meters' curves."""
        edges = {name: books.edge_ns for group, books in self._groups.items() for name in group.devices}
        slowest = [
            books.edge_ns for group, books in self._groups.items() if group.engines and books.edge_ns is not None
        ]
        edges.update(dict.fromkeys(self.host.closed_uj(), min(slowest, default=self._now_ns)))
        residual_ns = self._live.needed_from_ns
        for name, meter in self._meters.items():
            edge_ns = edges.get(name, self._now_ns)
            if edge_ns is not None:
                meter.curve.forget_before(min(edge_ns, max(residual_ns or edge_ns, self._now_ns - RESIDUAL_KEEP_NS)))

    def _quarantine_engine(self, engine: str, error: Exception) -> str:
        for group, books in list(self._groups.items()):
            if engine in group.engines:
                self._quarantine(group, books, error)
        return "quarantined"

    def _quarantine(self, group: Group, books: DeviceGroup, error: Exception) -> None:
        """A bug in the attribution of a group: all it holds, and all it measures from now on, is unattributed.

        Raises the error where there is no engine: then the ledger itself is wrong.
        """
        if not group.engines or books.quarantined:
            raise error
        account = self._account_of(group)
        account.measured_uj += books.measured_uj
        for meter in books.meters:
            meter.take_late()
        left_uj = account.measured_uj - account.booked_uj
        self._book(group, books, Booking(group.engines[0], Owner.UNATTRIBUTED, left_uj))
        living = DeviceGroup(books.meters, [], self._parameters.idle_policy, quarantined=group.engines[0])
        living.begin_at({m.device.name: m.curve.last_uj for m in books.meters if m.curve}, cell_of(self._now_ns) + 1)
        self._groups[group] = living
        reason = f"{type(error).__name__}: {error}"
        for engine in group.engines:
            self._books.pop(engine, None)
            self.host.drop(engine)
            self._quarantined[engine] = reason
            self._waiting.remove_engine(engine)

    def _settle_downtime(self, group: Group, books: DeviceGroup) -> None:
        away_uj = sum(meter.take_downtime() for meter in books.meters)
        if away_uj:
            account = self._account_of(group)
            account.measured_uj += away_uj
            self._book(group, books, Booking(group.engines[0] if group.engines else "", Owner.DOWNTIME, away_uj))

    def _close(self, group: Group, books: DeviceGroup, receipts: list[Receipt], *, everything: bool) -> None:
        """Close what can be closed of a group and book it; receipts go to the end of `receipts`."""
        for bookings, finals in books.advance(self._now_ns, everything=everything):
            sums: dict[tuple[str, Owner], int] = {}
            for engine, owner, microjoules in bookings:
                sums[engine, owner] = sums.get((engine, owner), 0) + microjoules
            for (engine, owner), microjoules in sums.items():
                self._book(group, books, Booking(engine, owner, microjoules))
            if finals:
                receipts += self._finals(books, finals)

    def _finals(self, books: DeviceGroup, finals: Iterable[Final]) -> list[Receipt]:
        """Receipts of requests that became final together, in their order; counted as they are made."""
        quality, idle_source = Quality.ESTIMATED if books.estimated else Quality.MEASURED, self.host.idle_source
        by_engine = {book.engine.name: Receipts(book, self._parameters, quality, idle_source) for book in books.engines}
        book_request, was_away = self._account.book_request, self._absences.any
        receipts = []
        for final in finals:
            request, event = final.request, final.request.event
            if was_away and self._absences.interrupted(request.work.start_ns, event.last_token_ns):
                request.flags = (*request.flags, "interrupted")
            components = self._components(final, estimated=quality is Quality.ESTIMATED)
            receipt = by_engine[event.engine].final(final, components, self._wall_offset_ns(event.last_token_ns))
            self._waiting.remove(event)
            book_request(event, receipt, components)
            receipts.append(receipt)
        return receipts

    def _book(self, group: Group, books: DeviceGroup, booking: Booking) -> None:
        quality = Quality.ESTIMATED if books.estimated else Quality.MEASURED
        account = self._account_of(group)
        account.quality = quality
        account.owners[booking.owner] += booking.microjoules
        model = self._declared[booking.engine].model if booking.engine in self._declared else ""
        self._account.book_energy(booking.engine, model, booking.owner, quality, booking.microjoules)

    def _components(self, final: Final, *, estimated: bool) -> Components:
        """What a final request owns of its devices, the host and the rest of the node; a guess has no residual."""
        request, compute_uj = final.request, final.prefill_uj + final.decode_uj + final.resident_uj
        host_uj = self.host.claim(request.event.engine, request)
        residual, residual_uj = self._live.residual, None
        if residual.is_known and not estimated:
            work = request.work
            residual_uj = residual.claim(compute_uj + (host_uj or 0), work.start_ns, work.last_ns)
        return components_of(self._parameters.price, compute_uj, host_uj, residual_uj)

    def _book_unreported_tokens(self) -> None:
        for name, book in self._books.items():
            unreported = self._unreported.get(name)
            if unreported is None:
                continue
            model, role = self._account.model(book.engine.model), book.engine.role
            # Where no device has ever been read no cell closes: looks are settled when requests are given up.
            given_up_ns = self._now_ns - book.census.horizon_ns(self._now_ns)
            tokens = unreported.settle(given_up_ns if book.edge_ns is None else book.edge_ns)
            for kind, counts, amount in zip(KINDS, (counts_prompt(role), counts_generation(role)), tokens, strict=True):
                if counts:
                    self._account.counters.add("unreported_tokens_total", (name, model, kind), amount)

    def _check_own_energy(self) -> None:
        for engine, own in self._own_energy.items():
            book = self._books.get(engine)
            names = book.engine.devices if book is not None else ()
            own.compare([self._meters[name] for name in names if name in self._meters])

    def _book_hardware(self, group: Group, books: DeviceGroup) -> None:
        edge_ns = books.edge_ns
        if edge_ns is None or books.estimated:
            return
        hours = (edge_ns - self._hardware_ns.get(group, edge_ns)) / NANOSECONDS_PER_SECOND / 3600.0
        self._hardware_ns[group] = edge_ns
        compute = sum(len(other.devices) for other in self._groups)
        models = [book.engine.model for book in books.engines] or [""]
        for model in models:
            self._account.book_hardware(model, hours * len(group.devices) / compute / len(models))

    def _observe_windows(self) -> None:
        measured = [group for group in self._groups.values() if not group.estimated]
        live: dict[str, float] = {"generation": self._generation, "compute": float(self._compute_uj())}
        boundaries = self._account.counters.values.get("boundary_energy_joules_total", {})
        live.update({labels[0]: value for labels, value in boundaries.items()})
        self._live_window.span_ns = max(
            (_window_ns(self._declared[name]) for name in self._counting()), default=WINDOW_NS
        )
        self._live_window.add(self._now_ns, live)
        self._history.add(self._now_ns, {labels[0]: int(value) for labels, value in boundaries.items()})
        edges = [group.edge_ns for group in measured if group.engines and group.edge_ns is not None]
        if edges:
            self._observe_book_window(min(edges))

    def _counting(self) -> list[str]:
        """The engines whose counters make up the live tokens."""
        return [name for name in self._tokens if name in self._declared and not self._is_estimated(name)]

    def _observe_book_window(self, watermark_ns: int) -> None:
        values: dict[str, float] = {
            "compute": float(sum(a.booked_uj for a in self._accounts.values() if a.quality is not Quality.ESTIMATED))
        }
        for boundary in ("node", "facility"):
            known = self._history.at(watermark_ns, boundary)
            if known is not None:
                values[boundary] = float(known)
        values.update({f"good {slo}": float(tokens) for slo, tokens in self._account.good_tokens.items()})
        self._book_window.add(watermark_ns, values)

    def _is_estimated(self, engine: str) -> bool:
        return any(
            group.estimated for group in self._groups.values() if any(b.engine.name == engine for b in group.engines)
        )

    # views

    def provisional(self, request_id: str) -> Receipt | None:
        """A request that ended and is not final, by its id or the X-Request-Id in it; `None` if there is none."""
        event = self._waiting.find(request_id)
        return self._provisional(event) if event is not None else None

    def _provisional(self, event: RequestEvent) -> Receipt | None:
        book = self._books.get(event.engine)
        if book is None:
            return None
        quality = Quality.ESTIMATED if self._is_estimated(event.engine) else Quality.MEASURED
        return provisional_receipt(event, book, self._parameters, quality, self._wall_offset_ns(event.last_token_ns))

    def _compute_uj(self) -> int:
        """The compute boundary: everything measured in groups that are not estimated, microjoules."""
        books = self._group_books()
        return sum(book.measured_uj for book in books if book.quality is not Quality.ESTIMATED)

    def _group_books(self) -> list[GroupBook]:
        now = {(group.devices, group.engines): books for group, books in self._groups.items()}
        for group in self._groups:
            self._account_of(group)
        return [account.view(now.get(key)) for key, account in sorted(self._accounts.items())]

    def snapshot(self, now_ns: int) -> Snapshot:
        """The picture of this moment; its sequence and sources are filled in by whoever publishes it."""
        group_books = tuple(self._group_books())
        boundaries = {"compute": sum(b.measured_uj for b in group_books if b.quality is not Quality.ESTIMATED)}
        counters = self._account.counters.copy()
        if any(book.quality is not Quality.ESTIMATED for book in group_books):
            counters.setdefault("boundary_energy_joules_total", {})[("compute",)] = boundaries["compute"]
        boundaries.update({labels[0]: int(v) for labels, v in counters.get("boundary_energy_joules_total", {}).items()})
        devices = [meter.device for meter in self._meters.values()]
        return Snapshot(
            t_ns=now_ns,
            wall_minus_core_ns=self._wall_offset_ns(now_ns),
            node=self._parameters.node,
            groups=group_books,
            total=_total(group_books),
            boundaries_uj=boundaries,
            counters=counters,
            gauges=self._gauges(now_ns, group_books),
            histograms={"request_energy_joules": {(m,): h.view() for m, h in self._account.request_energy.items()}},
            devices=tuple(self._device_view(d, now_ns) for d in leaves(devices)),
            meters=tuple(self._device_view(d, now_ns) for d in meters(devices)),
            engines=tuple(self._engine_view(engine) for engine in self._declared.values()),
            sources=tuple(self._sources.values()),
            recent=self._recent(),
            degraded=tuple(f"engine {name} is quarantined ({why})" for name, why in self._quarantined.items()),
        )

    def forget(self, tenant: str) -> None:
        """Do not show final receipts of a tenant any more; its requests that are not final yet get theirs."""
        self._account.forget(tenant)

    def _recent(self) -> tuple[Receipt, ...]:
        waiting = [self._provisional(event) for event in self._waiting.newest(RECENT_SHOWN // 2)]
        final = list(self._account.recent)[-RECENT_SHOWN:]
        return tuple(reversed([*final, *(receipt for receipt in waiting if receipt is not None)]))

    def _gauges(self, now_ns: int, group_books: Iterable[GroupBook]) -> Gauges:
        gauges: Gauges = {}
        self._put_power(gauges, now_ns)
        for name, labels, value in trust_gauges(self._meters, self._live, now_ns):
            _put(gauges, name, labels, value)
        open_uj: dict[str, int] = {}
        for account in group_books:
            quality = owners_quality(account.quality)
            open_uj[quality] = open_uj.get(quality, 0) + account.open_uj
        for quality, microjoules in open_uj.items():
            _put(gauges, "open_energy_joules", (quality,), joules(microjoules))
        for name, book in self._books.items():
            if book.edge_ns is not None:
                unix_ns = book.edge_ns + self._wall_offset_ns(book.edge_ns)
                _put(gauges, "books_watermark_timestamp_seconds", (name,), unix_ns / NANOSECONDS_PER_SECOND)
        for boundary in ("compute", "node", "facility"):
            _put(gauges, "tokens_per_joule", (boundary,), _per_joule(self._live_window, "generation", boundary))
            for objective in self._parameters.slos:
                ratio = _per_joule(self._book_window, f"good {objective.name}", boundary)
                if self._knows_goodput():
                    _put(gauges, "good_tokens_per_joule", (boundary, objective.name), ratio)
        self._put_attainments(gauges, now_ns)
        for name, own in self._own_energy.items():
            _put(gauges, "engine_energy_check_ratio", (name,), own.ratio)
        return gauges

    def _knows_goodput(self) -> bool:
        """Whether request events tell of most tokens: goodput of a sample would be too low by what is left out."""
        books = [book for name, book in self._books.items() if not self._is_estimated(name)]
        covered = [0.0 if book.by_counters else book.lost.coverage for book in books]
        return all(coverage is None or coverage >= LOWEST_COVERAGE for coverage in covered)

    def _put_attainments(self, gauges: Gauges, now_ns: int) -> None:
        for engine, attainment in self._attainments.items():
            for objective, (lower, upper) in attainment.bounds(now_ns).items():
                model = self._account.model(self._declared[engine].model)
                _put(gauges, "slo_attainment_lower_bound_ratio", (engine, model, objective), lower)
                _put(gauges, "slo_attainment_upper_bound_ratio", (engine, model, objective), upper)

    def _put_power(self, gauges: Gauges, now_ns: int) -> None:
        counted = {device.name for device in leaves(meter.device for meter in self._meters.values())}
        for name, meter in self._meters.items():
            if meter.estimated:
                continue
            if name in counted:
                _put(gauges, "device_power_watts", (name,), meter.watts(now_ns))
                _put(gauges, "device_power_peak_watts", (name,), meter.peak_watts(now_ns))
                _put(gauges, "device_power_limit_watts", (name,), self._limit_watts(name))
            else:
                _put(gauges, "meter_power_watts", (name, meter.device.kind.value), meter.watts(now_ns))

    def _limit_watts(self, name: str) -> float | None:
        status = self._status.get(name)
        if status is not None and status.power_limit_watts is not None:
            return status.power_limit_watts
        return self._meters[name].device.max_watts

    def _device_view(self, device: Device, now_ns: int) -> DeviceView:
        meter = self._meters[device.name]
        return DeviceView(
            device=device,
            energy_uj=meter.measured_uj,
            watts=meter.watts(now_ns),
            peak_watts=meter.peak_watts(now_ns),
            power_limit_watts=self._limit_watts(device.name),
            last_reading_ns=meter.last_seen_ns,
        )

    def _engine_view(self, engine: Engine) -> EngineView:
        book, sample, window = (
            self._books.get(engine.name),
            self._samples.get(engine.name),
            self._token_windows.get(engine.name),
        )
        tokens = window.increase("generation") if window else None
        own = self._own_energy.get(engine.name)
        unreported = self._account.counters.values.get("unreported_tokens_total", {})
        return EngineView(
            engine=self._with_driver(book.engine if book else engine),
            watermark_ns=book.edge_ns if book else None,
            requests_running=sample.requests_running if sample else None,
            requests_waiting=sample.requests_waiting if sample else None,
            coverage=book.lost.coverage if book and not book.by_counters else None,
            generation_tokens_per_second=tokens / window.seconds()
            if window and tokens is not None and window.seconds()
            else None,
            unreported_tokens={
                kind: int(tokens) for (name, _, kind), tokens in unreported.items() if name == engine.name
            },
            energy_check_ratio=own.ratio if own else None,
            last_sample_ns=sample.t_ns if sample else None,
        )

    def _with_driver(self, engine: Engine) -> Engine:
        """The engine with the version of its devices' driver, as those tell it."""
        told = {self._status[name].driver for name in engine.devices if name in self._status} - {""}
        return engine if engine.driver or not told else replace(engine, driver=",".join(sorted(told)))

    # restart

    def remember_waiting(self) -> None:
        """Requests that ended before a restart and are not final; telling of them again is a duplicate."""
        for event in self._waiting:
            self._admission.remember(event)

    def come_back(self, now_ns: int) -> None:
        """Go on at `now_ns` from the state of an earlier moment: the daemon was away in between.

        What meters tell next begins anew where they stand: the difference is downtime where it can be known.
        """
        self._device_raw |= self._raw_counters()
        self._live.node.was_away(self._meters)
        for meter in self._meters.values():
            meter.leave()
        left_ns = [meter.left_ns for meter in self._meters.values() if meter.left_ns is not None]
        last_ns = min(max(left_ns, default=self._now_ns), self._now_ns)
        self._sources.clear()
        self._absences.begin(last_ns, now_ns, set(self._meters), set(self._declared))
        for book in self._books.values():
            book.census.was_away(last_ns, now_ns)

    def hardware_restarted(self) -> None:
        """The machine was booted meanwhile: its counters began anew, what they show is no difference to before."""
        self._absences.hardware_went_on = False

    @property
    def parameters(self) -> Parameters:
        """By what this core was made."""
        return self._parameters

    @property
    def now_ns(self) -> int:
        """The last moment that it was told of, core time."""
        return self._now_ns

    @property
    def clock_steps(self) -> tuple[tuple[int, int], ...]:
        """Steps of the wall clock so far: (core time, wall time less core time from then on)."""
        return tuple(self._steps)

    @property
    def is_degraded(self) -> bool:
        """Whether an engine is quarantined."""
        return bool(self._quarantined)

    def _drop_what_is_gone(self) -> None:
        """Devices and engines of before a restart that nobody has named since are not there any more."""
        devices, engines = self._absences.gone(self._now_ns)
        for name in engines & self._declared.keys():
            del self._declared[name]
            self._samples.pop(name, None)
        for name in devices & self._meters.keys():
            del self._meters[name]
            self._live.forget(name)
        self._changed = self._changed or bool(devices or engines)

    def _in_core_time(self, receipt: Receipt) -> Receipt:
        steps = reversed(self._steps)
        offset_ns = next((by for since, by in steps if receipt.last_token_ns - by >= since), 0)
        if not offset_ns:
            return receipt
        moved = ("arrival_ns", "first_token_ns", "last_token_ns")
        return replace(receipt, **{name: getattr(receipt, name) - offset_ns for name in moved})

    def books(self) -> Books:
        """Everything that one commit must hold to go on after a restart."""
        group_books = self._group_books()
        counters = self._account.counters.values
        return Books(
            counters={name: [CounterSeries(k, v) for k, v in series.items()] for name, series in counters.items()},
            histograms={"request_energy_joules": [((m,), h.view()) for m, h in self._account.request_energy.items()]},
            groups=group_books,
            open_by_engine=[opened for group, books in self._groups.items() for opened in _open_of(group, books)],
            device_raw=self._device_raw | self._raw_counters(),
            engine_raw=dict(self._engine_raw),
            node_edge_ns=self._live.node.edge_ns or self._live.node.left_ns,
        )

    def _raw_counters(self) -> dict[str, RawCounter]:
        return {
            name: RawCounter(meter.last_raw_uj, meter.last_seen_ns, meter.device.uuid)
            for name, meter in self._meters.items()
            if meter.last_raw_uj is not None and meter.last_seen_ns is not None
        }

    def _restore(self, books: Books) -> None:
        """Go on from committed books: what was open then has lost its requests and is unattributed."""
        for name, series in books.counters.items():
            for entry in series:
                self._account.counters.add(name, entry.labels, entry.value)
        for labels, histogram in books.histograms.get("request_energy_joules", ()):
            self._account.request_energy.setdefault(labels[0], HistogramBook()).restore(histogram)
        for book in books.groups:
            account = GroupAccount(book.devices, book.engines)
            account.restore(book)
            self._accounts[book.devices, book.engines] = account
        for _, engine, quality, open_uj in books.open_by_engine:
            self._account.book_energy(engine, books_model(books, engine), Owner.UNATTRIBUTED, Quality(quality), open_uj)
        self._device_raw = dict(books.device_raw)
        self._engine_raw = dict(books.engine_raw)
        self._live.node.left_ns = books.node_edge_ns
        stopped_ns = max((raw.t_ns for raw in books.device_raw.values()), default=0)
        for entry in books.counters.get("requests_total", ()):
            self._attainment(entry.labels[0]).told_ns = stopped_ns


def books_model(books: Books, engine: str) -> str:
    """The model under which an engine's energy was booked before; empty if none was."""
    series = books.counters.get("energy_joules_total", ())
    return next((entry.labels[1] for entry in series if entry.labels[0] == engine), "")


def _open_of(group: Group, books: DeviceGroup) -> list[tuple[tuple[str, ...], str, str, int]]:
    quality = owners_quality(Quality.ESTIMATED if books.estimated else Quality.MEASURED)
    engine = group.engines[0] if group.engines else ""
    return [(group.devices, engine, quality, books.open_uj)] if books.open_uj else []


def _put(gauges: Gauges, name: str, labels: tuple[str, ...], value: float | None) -> None:
    """Absent is absent: a value that is not known makes no series."""
    if value is not None:
        gauges.setdefault(name, {})[labels] = value


def _window_ns(engine: Engine) -> int:
    """Over how long the rate of an engine's tokens means something."""
    return WINDOW_NS if engine.counter_semantics.moves == "live" else AT_FINISH_WINDOW_NS


def _per_joule(window: RatioWindow, tokens: str, boundary: str) -> float | None:
    ratio = window.ratio(tokens, boundary)
    return None if ratio is None else ratio * MICROJOULES_PER_JOULE


def _total(group_books: Iterable[GroupBook]) -> GroupBook:
    fields = ("measured_uj", *(f"{owner.value}_uj" for owner in Owner), "open_uj")
    listed = list(group_books)
    return GroupBook(**{field: sum(getattr(book, field) for book in listed) for field in fields})
