"""The whole core as one machine: inputs in the order seen, time by `advance`, receipts and snapshots out.

The daemon and `jouled replay` drive the same machine; it has no clock of its own and does no I/O.
"""

from collections.abc import Callable, Iterable
from typing import Any

from jouled.core.absence import Absences
from jouled.core.accounting.account import Account, owners_quality
from jouled.core.accounting.counters import HistogramBook
from jouled.core.attribution.group import DeviceGroup
from jouled.core.attribution.host import HostBook
from jouled.core.books import Books, CounterSeries
from jouled.core.device_groups import DeviceGroups
from jouled.core.devices import Devices
from jouled.core.efficiency import Efficiency
from jouled.core.engines import Engines
from jouled.core.finals import Finals
from jouled.core.identity import Admission, Waiting
from jouled.core.ledger.meter import SILENCE_MAX_NS
from jouled.core.live import LiveMeters
from jouled.core.requests import Requests
from jouled.core.topology import Group
from jouled.core.views import Views
from jouled.core.wall_offsets import WallOffsets
from jouled.model.device import Device, Quality
from jouled.model.engine import Engine, EngineSample
from jouled.model.errors import SourceState
from jouled.model.parameters import Parameters
from jouled.model.readings import ClockStep, DeviceStatus, EnergyReading, PowerReading, SourceReport
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.snapshot import Owner, Snapshot, SourceView
from jouled.model.units import NANOSECONDS_PER_SECOND

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

RESIDUAL_KEEP_NS = SILENCE_MAX_NS + 60 * NANOSECONDS_PER_SECOND
"""A node meter that falls silent holds the knots of the others for no longer than this: until the next level of meters
has gone on from its last word."""


class Pipeline:
    """The books of one node."""

    def __init__(self, parameters: Parameters, restored: Books | None = None) -> None:
        self._now_ns = 0
        self._sources: dict[str, SourceView] = {}
        self._wall = WallOffsets()
        self._absences = Absences()
        self._admission, self._waiting = Admission(), Waiting()
        self._account = account = Account(parameters)
        self._live = live = LiveMeters(account.counters, parameters.price, parameters.node_meters)
        self.host = HostBook(parameters.idle_policy)
        finals = Finals(account, self.host, live.residual, self._waiting, self._absences, self._wall)
        self._devices = devices = Devices(account, live, self._absences)
        self._engines = engines = Engines(account, self._absences, self._sources)
        self._groups = groups = DeviceGroups(account, devices, engines, finals)
        self._requests = Requests(account, engines, groups, self._admission, self._waiting)
        self._efficiency = efficiency = Efficiency(account, engines, groups)
        self._views = Views(
            account, devices, engines, groups, live, efficiency, self._waiting, self._sources, self._wall
        )
        self._take: dict[type, Callable[[Any], str]] = {
            Device: devices.take,
            Engine: engines.take,
            EnergyReading: devices.energy,
            PowerReading: devices.power,
            DeviceStatus: devices.tell,
            EngineSample: self._engine_sample,
            RequestEvent: self._request,
            RequestStart: self._request_start,
            SourceReport: self._source,
            ClockStep: self._clock,
        }
        if restored is not None:
            self._restore(restored)

    # inputs

    def feed(self, item: Input) -> str:
        """Take one input. Returns an empty string, or the short reason for which it was refused (also counted)."""
        try:
            reason = self._take[type(item)](item)
        except Exception as error:
            if not isinstance(item, EngineSample | RequestEvent | RequestStart):
                raise
            self._groups.quarantine_engine(item.engine, error, self._now_ns)
            reason = "quarantined"
        if reason and isinstance(item, RequestEvent | RequestStart):
            self._account.counters.add("rejected_events_total", (reason,), 1)
        return reason

    def feed_again(self, item: Input, reason: str) -> None:
        """Take an input as it was taken before a restart.

        Requests that were refused then are refused again, for what they repeated is not remembered any more.
        """
        if reason and isinstance(item, RequestEvent):
            self._groups.arrange(self._now_ns)
            self._account.counters.add("rejected_events_total", (reason,), 1)
        else:
            self.feed(item)

    def feed_readings(self, readings: Iterable[EnergyReading | PowerReading | DeviceStatus]) -> None:
        """Take many readings; what is refused is counted with the device."""
        meters = self._devices.meters
        for reading in readings:
            meter = meters.get(reading.device)
            if type(reading) is EnergyReading and meter is not None and not meter.is_new:
                meter.energy(reading)
            else:
                self.feed(reading)

    def _engine_sample(self, sample: EngineSample) -> str:
        reason = self._engines.sample(sample, estimated=self._groups.is_estimated(sample.engine))
        if reason:
            return reason
        self._groups.arrange(self._now_ns)
        self.host.sample(sample)
        book = self._groups.books.get(sample.engine)
        if book is not None:
            book.sample(sample)
        return ""

    def _request(self, event: RequestEvent) -> str:
        return self._requests.ended(event, self._now_ns)

    def _request_start(self, start: RequestStart) -> str:
        return self._requests.started(start, self._now_ns)

    def _source(self, report: SourceReport) -> str:
        view = SourceView(
            source=report.source, state=report.state, reason=report.reason, message=report.message, mend=report.mend
        )
        if self._engines.is_gone(report.source) is not (report.state is SourceState.ABSENT):
            self._engines.changed = True
        self._sources[report.source] = view
        if report.reason:
            self._account.counters.add("source_errors_total", (report.source, report.reason), 1)
        return ""

    def _clock(self, step: ClockStep) -> str:
        self._wall.take(step, self._now_ns)
        return ""

    # time

    def advance(self, now_ns: int) -> list[Receipt]:
        """Close what can be closed at `now_ns`; returns the receipts that are final now, each once."""
        return self._advance(now_ns, everything=False)

    def finish(self) -> list[Receipt]:
        """The end of a recording: everything closes, up to the last reading."""
        for meter in self._devices.meters.values():
            meter.settle()
        receipts = self._advance(self._now_ns, everything=True)
        self.host.finish()
        return receipts

    def _advance(self, now_ns: int, *, everything: bool) -> list[Receipt]:
        now_ns = self._now_ns = max(now_ns, self._now_ns)
        gone_devices, gone_engines = self._absences.gone(now_ns)
        self._devices.drop(gone_devices)
        self._engines.drop(gone_engines)
        self._groups.arrange(now_ns)
        self._live.advance(self._devices.meters, now_ns)
        self.host.take_late()
        receipts = self._groups.close(now_ns, everything=everything)
        self._engines.settle(self._groups.books, self._devices.meters, now_ns)
        self._forget_readings()
        self._efficiency.observe(now_ns)
        self._admission.forget_before(now_ns)
        return receipts

    def _forget_readings(self) -> None:
        """Drop what no open cell and no residual window needs of the meters' curves."""
        living = self._groups.living
        edges = {name: books.edge_ns for group, books in living.items() for name in group.devices}
        slowest = [books.edge_ns for group, books in living.items() if group.engines and books.edge_ns is not None]
        edges.update(dict.fromkeys(self.host.closed_uj(), min(slowest, default=self._now_ns)))
        residual_ns = self._live.needed_from_ns
        for name, meter in self._devices.meters.items():
            edge_ns = edges.get(name, self._now_ns)
            if edge_ns is not None:
                meter.curve.forget_before(min(edge_ns, max(residual_ns or edge_ns, self._now_ns - RESIDUAL_KEEP_NS)))

    # what is shown

    def snapshot(self, now_ns: int) -> Snapshot:
        """The picture of this moment; its sequence and sources are filled in by whoever publishes it."""
        return self._views.snapshot(now_ns)

    def provisional(self, request_id: str) -> Receipt | None:
        """A request that ended and is not final, by its id or the X-Request-Id in it; `None` if there is none."""
        return self._views.provisional(request_id)

    def forget(self, tenant: str) -> None:
        """Do not show final receipts of a tenant any more; its requests that are not final yet get theirs."""
        self._account.forget(tenant)

    @property
    def parameters(self) -> Parameters:
        """By what this core was made."""
        return self._account.parameters

    @property
    def now_ns(self) -> int:
        """The last moment that it was told of, core time."""
        return self._now_ns

    @property
    def clock_steps(self) -> tuple[tuple[int, int], ...]:
        """Steps of the wall clock so far: (core time, wall time less core time from then on)."""
        return tuple(self._wall.steps)

    @property
    def is_degraded(self) -> bool:
        """Whether an engine is quarantined."""
        return bool(self._groups.quarantined)

    # restart

    def remember(self, receipts: Iterable[Receipt]) -> None:
        """Requests that had their final receipt before a restart; telling of them again is a duplicate."""
        for receipt in receipts:
            self._admission.remember(self._wall.in_core_time(receipt))

    def remember_waiting(self) -> None:
        """Requests that ended before a restart and are not final; telling of them again is a duplicate."""
        for event in self._waiting:
            self._admission.remember(event)

    def come_back(self, now_ns: int) -> None:
        """Go on at `now_ns` from the state of an earlier moment: the daemon was away in between.

        What meters tell next begins anew where they stand: the difference is downtime where it can be known.
        """
        meters = self._devices.meters
        self._devices.before = self._devices.raw_counters()
        self._live.node.was_away(meters)
        for meter in meters.values():
            meter.leave()
        left_ns = [meter.left_ns for meter in meters.values() if meter.left_ns is not None]
        last_ns = min(max(left_ns, default=self._now_ns), self._now_ns)
        self._sources.clear()
        self._absences.begin(last_ns, now_ns, set(meters), set(self._engines.declared))
        for book in self._groups.books.values():
            book.census.was_away(last_ns, now_ns)

    def hardware_restarted(self) -> None:
        """The machine was booted meanwhile: its counters began anew, what they show is no difference to before."""
        self._absences.hardware_went_on = False

    def books(self) -> Books:
        """Everything that one commit must hold to go on after a restart."""
        group_books = self._groups.views()
        counters = self._account.counters.values
        return Books(
            counters={name: [CounterSeries(k, v) for k, v in series.items()] for name, series in counters.items()},
            histograms={"request_energy_joules": [((m,), h.view()) for m, h in self._account.request_energy.items()]},
            groups=group_books,
            open_by_engine=[
                opened for group, books in self._groups.living.items() for opened in _open_of(group, books)
            ],
            device_raw=self._devices.raw_counters(),
            engine_raw=dict(self._engines.raw),
            node_edge_ns=self._live.node.edge_ns or self._live.node.left_ns,
        )

    def _restore(self, books: Books) -> None:
        """Go on from committed books: what was open then has lost its requests and is unattributed."""
        for name, series in books.counters.items():
            for entry in series:
                self._account.counters.add(name, entry.labels, entry.value)
        for labels, histogram in books.histograms.get("request_energy_joules", ()):
            self._account.request_energy.setdefault(labels[0], HistogramBook()).restore(histogram)
        self._groups.accounts.restore(books.groups)
        for _, engine, quality, open_uj in books.open_by_engine:
            self._account.book_energy(engine, _model_of(books, engine), Owner.UNATTRIBUTED, Quality(quality), open_uj)
        self._devices.before = dict(books.device_raw)
        self._engines.raw = dict(books.engine_raw)
        self._live.node.left_ns = books.node_edge_ns
        stopped_ns = max((raw.t_ns for raw in books.device_raw.values()), default=0)
        for entry in books.counters.get("requests_total", ()):
            self._engines.attainment(entry.labels[0]).told_ns = stopped_ns


def _model_of(books: Books, engine: str) -> str:
    """The model under which an engine's energy was booked before; empty if none was."""
    series = books.counters.get("energy_joules_total", ())
    return next((entry.labels[1] for entry in series if entry.labels[0] == engine), "")


def _open_of(group: Group, books: DeviceGroup) -> list[tuple[tuple[str, ...], str, str, int]]:
    engine = group.engines[0] if group.engines else ""
    return [(group.devices, engine, owners_quality(books.quality), books.open_uj)] if books.open_uj else []
