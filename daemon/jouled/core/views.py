"""What is shown of the core: the snapshot for page, API and sinks, and receipts before they are final."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from jouled.core.accounting.account import Account, owners_quality
from jouled.core.accounting.receipts import provisional_receipt
from jouled.core.device_groups import DeviceGroups
from jouled.core.devices import Devices
from jouled.core.efficiency import Efficiency
from jouled.core.engines import Engines
from jouled.core.group_account import compute_uj
from jouled.core.identity import Waiting
from jouled.core.ledger.tree import leaves, meters
from jouled.core.live import LiveMeters
from jouled.core.trust import Gauge, trust_gauges
from jouled.core.wall_offsets import WallOffsets
from jouled.model.device import Device, Quality
from jouled.model.engine import Engine
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent
from jouled.model.snapshot import DeviceView, EngineView, GroupBook, Owner, Snapshot, SourceView
from jouled.model.units import NANOSECONDS_PER_SECOND, joules

RECENT_SHOWN = 30


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Looks at the parts of the core."""

    account: Account
    devices: Devices
    engines: Engines
    groups: DeviceGroups
    live: LiveMeters
    efficiency: Efficiency
    waiting: Waiting
    sources: Mapping[str, SourceView]
    wall: WallOffsets

    def snapshot(self, now_ns: int) -> Snapshot:
        """The picture of this moment; its sequence and sources are filled in by whoever publishes it."""
        group_books = tuple(self.groups.views())
        boundaries = {"compute": compute_uj(group_books)}
        counters = self.account.counters.copy()
        if any(book.quality is not Quality.ESTIMATED for book in group_books):
            counters.setdefault("boundary_energy_joules_total", {})[("compute",)] = boundaries["compute"]
        boundaries.update({labels[0]: int(v) for labels, v in counters.get("boundary_energy_joules_total", {}).items()})
        devices = [meter.device for meter in self.devices.meters.values()]
        gauges: dict[str, dict[tuple[str, ...], float]] = {}
        for name, labels, value in self._gauges(now_ns, group_books):
            if value is not None:
                gauges.setdefault(name, {})[labels] = value
        return Snapshot(
            t_ns=now_ns,
            wall_minus_core_ns=self.wall.at(now_ns),
            node=self.account.parameters.node,
            groups=group_books,
            total=_total(group_books),
            boundaries_uj=boundaries,
            counters=counters,
            gauges=gauges,
            histograms={"request_energy_joules": {(m,): h.view() for m, h in self.account.request_energy.items()}},
            devices=tuple(self._device(device, now_ns) for device in leaves(devices)),
            meters=tuple(self._device(device, now_ns) for device in meters(devices)),
            engines=tuple(self._engine(engine) for engine in self.engines.declared.values()),
            sources=tuple(self.sources.values()),
            recent=self._recent(),
            degraded=tuple(f"engine {name} is quarantined ({why})" for name, why in self.groups.quarantined.items()),
        )

    def provisional(self, request_id: str) -> Receipt | None:
        """A request that ended and is not final, by its id or the X-Request-Id in it; `None` if there is none."""
        event = self.waiting.find(request_id)
        return self._provisional(event) if event is not None else None

    def _provisional(self, event: RequestEvent) -> Receipt | None:
        book = self.groups.books.get(event.engine)
        if book is None:
            return None
        quality = Quality.ESTIMATED if self.groups.is_estimated(event.engine) else Quality.MEASURED
        offset_ns = self.wall.at(event.last_token_ns)
        return provisional_receipt(event, book, self.account.parameters, quality, offset_ns)

    def _recent(self) -> tuple[Receipt, ...]:
        waiting = [self._provisional(event) for event in self.waiting.newest(RECENT_SHOWN // 2)]
        final = list(self.account.recent)[-RECENT_SHOWN:]
        return tuple(reversed([*final, *(receipt for receipt in waiting if receipt is not None)]))

    def _gauges(self, now_ns: int, group_books: Iterable[GroupBook]) -> Iterator[Gauge]:
        yield from self._power(now_ns)
        yield from trust_gauges(self.devices.meters, self.live, now_ns)
        open_uj: dict[str, int] = {}
        for account in group_books:
            quality = owners_quality(account.quality)
            open_uj[quality] = open_uj.get(quality, 0) + account.open_uj
        for quality, microjoules in open_uj.items():
            yield "open_energy_joules", (quality,), joules(microjoules)
        for name, book in self.groups.books.items():
            if book.edge_ns is not None:
                unix_ns = book.edge_ns + self.wall.at(book.edge_ns)
                yield "books_watermark_timestamp_seconds", (name,), unix_ns / NANOSECONDS_PER_SECOND
        yield from self.efficiency.gauges()
        for engine, attainment in self.engines.attainments.items():
            for objective, (lower, upper) in attainment.bounds(now_ns).items():
                model = self.account.model(self.engines.declared[engine].model)
                yield "slo_attainment_lower_bound_ratio", (engine, model, objective), lower
                yield "slo_attainment_upper_bound_ratio", (engine, model, objective), upper
        for name, own in self.engines.own_energy.items():
            yield "engine_energy_check_ratio", (name,), own.ratio

    def _power(self, now_ns: int) -> Iterator[Gauge]:
        by_name = self.devices.meters
        counted = {device.name for device in leaves(meter.device for meter in by_name.values())}
        for name, meter in by_name.items():
            if meter.estimated:
                continue
            if name in counted:
                yield "device_power_watts", (name,), meter.watts(now_ns)
                yield "device_power_peak_watts", (name,), meter.peak_watts(now_ns)
                yield "device_power_limit_watts", (name,), self.devices.limit_watts(name)
            else:
                yield "meter_power_watts", (name, meter.device.kind.value), meter.watts(now_ns)

    def _device(self, device: Device, now_ns: int) -> DeviceView:
        meter = self.devices.meters[device.name]
        return DeviceView(
            device=device,
            energy_uj=meter.measured_uj,
            watts=meter.watts(now_ns),
            peak_watts=meter.peak_watts(now_ns),
            power_limit_watts=self.devices.limit_watts(device.name),
            last_reading_ns=meter.last_seen_ns,
        )

    def _engine(self, engine: Engine) -> EngineView:
        book, sample = self.groups.books.get(engine.name), self.engines.samples.get(engine.name)
        window, own = self.engines.token_windows.get(engine.name), self.engines.own_energy.get(engine.name)
        unreported = self.account.counters.values.get("unreported_tokens_total", {})
        return EngineView(
            engine=self._with_driver(book.engine if book else engine),
            watermark_ns=book.edge_ns if book else None,
            requests_running=sample.requests_running if sample else None,
            requests_waiting=sample.requests_waiting if sample else None,
            coverage=book.lost.coverage if book and not book.by_counters else None,
            generation_tokens_per_second=window.per_second("generation") if window else None,
            unreported_tokens={
                kind: int(tokens) for (name, _, kind), tokens in unreported.items() if name == engine.name
            },
            energy_check_ratio=own.ratio if own else None,
            last_sample_ns=sample.t_ns if sample else None,
        )

    def _with_driver(self, engine: Engine) -> Engine:
        """The engine with the version of its devices' driver, as those tell it."""
        status = self.devices.status
        told = {status[name].driver for name in engine.devices if name in status} - {""}
        return engine if engine.driver or not told else replace(engine, driver=",".join(sorted(told)))


def _total(group_books: Sequence[GroupBook]) -> GroupBook:
    fields = ("measured_uj", *(f"{owner.value}_uj" for owner in Owner), "open_uj")
    return GroupBook(**{field: sum(getattr(book, field) for book in group_books) for field in fields})
