"""The device groups there are now: arranged anew as devices and engines come and go, each closed on its own."""

from collections.abc import Mapping

from jouled.core.accounting.account import Account
from jouled.core.attribution.cells import cell_of
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.group import Booking, DeviceGroup
from jouled.core.devices import Devices
from jouled.core.engines import Engines
from jouled.core.finals import Finals
from jouled.core.group_account import GroupAccounts
from jouled.core.ledger.tree import host_of
from jouled.core.topology import Group, groups
from jouled.model.device import Device, Quality
from jouled.model.engine import Engine
from jouled.model.receipt import Receipt
from jouled.model.snapshot import GroupBook, Owner
from jouled.model.units import NANOSECONDS_PER_SECOND


class DeviceGroups:
    """living: the groups. books: their engines' books, by name. quarantined: why, by the engine's name."""

    def __init__(self, account: Account, devices: Devices, engines: Engines, finals: Finals) -> None:
        self.accounts = GroupAccounts()
        self.living: dict[Group, DeviceGroup] = {}
        self.books: dict[str, EngineBook] = {}
        self.quarantined: dict[str, str] = {}
        self._owed: list[Receipt] = []
        self._hardware_ns: dict[Group, int] = {}
        self._account = account
        self._devices = devices
        self._engines = engines
        self._finals = finals
        self._host = finals.host

    # which groups there are

    def arrange(self, now_ns: int) -> None:
        """Follow what has changed of devices and engines."""
        if not (self._devices.changed or self._engines.changed):
            return
        self._devices.changed = self._engines.changed = False
        engines = {engine.name: engine for engine in self._engines.placed(self._devices.meters.values())}
        known = [*(meter.device for meter in self._devices.meters.values()), *self._devices.partitions.values()]
        wanted = groups(known, engines.values())
        kept = {group: self.living[group] for group in wanted if self._stays(group, engines)}
        for living in kept.values():
            for book in living.engines:
                book.describe(engines[book.engine.name])
        closed: dict[str, int] = {}
        edges: dict[str, int] = {}
        for key in [key for key in self.living if key not in kept]:
            self._retire(key, closed, edges, now_ns)
        if self._host.edge_cell is not None:
            edges.update(dict.fromkeys(self._host.closed_uj(), self._host.edge_cell))
            closed.update(self._host.closed_uj())
        for key in wanted:
            if key not in kept:
                kept[key] = self._found(key, engines, closed, edges)
        self.living = kept
        self.books = {book.engine.name: book for living in kept.values() for book in living.engines}
        compute = {name for group in kept for name in group.devices}
        self._host.arrange(host_of(self._devices.meters, compute), list(self.books), closed)

    def _stays(self, group: Group, engines: Mapping[str, Engine]) -> bool:
        """Whether a group goes on: there is one of these devices and engines, and each engine is where it was."""
        living = self.living.get(group)
        if living is None or living.partitions != self._partitions_of(engines, group):
            return False
        return all(b.engine.devices == engines[b.engine.name].devices for b in living.engines)

    def _partitions_of(self, engines: Mapping[str, Engine], group: Group) -> dict[str, Device]:
        """The partitions that the engines of a group run on."""
        named = {name for engine in group.engines for name in engines[engine].devices}
        return {name: device for name, device in self._devices.partitions.items() if name in named}

    def _retire(self, group: Group, closed: dict[str, int], edges: dict[str, int], now_ns: int) -> None:
        """Close a group whose devices or engines change, up to its last reading."""
        self._close(group, self._owed, now_ns, everything=True)
        old = self.living[group]
        self._hardware_ns.pop(group, None)
        closed.update(old.closed_uj())
        if old.edge_cell is not None:
            edges.update(dict.fromkeys(group.devices, old.edge_cell))
        self.accounts.of(group).measured_uj += old.measured_uj

    def _found(
        self, group: Group, engines: Mapping[str, Engine], closed: Mapping[str, int], edges: Mapping[str, int]
    ) -> DeviceGroup:
        books = [EngineBook(engines[name], self._account.parameters) for name in group.engines]
        quarantined = next((name for name in group.engines if name in self.quarantined), "")
        found = DeviceGroup(
            [self._devices.meters[name] for name in group.devices],
            [] if quarantined else books,
            self._account.parameters.idle_policy,
            quarantined=quarantined,
            host=self._host,
            partitions=self._partitions_of(engines, group),
        )
        for former in self.living.values():
            found.inherit(former)
        before = [edges[name] for name in group.devices if name in edges]
        if before and any(meter.curve for meter in found.meters):
            found.begin_at({name: closed[name] for name in group.devices if name in closed}, max(before))
        self.accounts.merge(group, found.quality)
        return found

    def is_estimated(self, engine: str) -> bool:
        """Whether the energy of an engine's devices is a guess."""
        book = self.books.get(engine)
        return any(group.quality is Quality.ESTIMATED for group in self.living.values() if book in group.engines)

    def views(self) -> list[GroupBook]:
        """All accounts with the energy of the living groups, by devices and engines."""
        return self.accounts.views(self.living)

    # closing

    def close(self, now_ns: int, *, everything: bool) -> list[Receipt]:
        """Close what can be closed of all groups; returns the receipts that are final now, each once."""
        receipts, self._owed = self._owed, []
        for group, books in list(self.living.items()):
            self._settle_downtime(group, books)
            self._close(group, receipts, now_ns, everything=everything)
            self._book_hardware(group, books)
        return receipts

    def _settle_downtime(self, group: Group, books: DeviceGroup) -> None:
        away_uj = sum(meter.take_downtime() for meter in books.meters)
        if away_uj:
            self.accounts.of(group).measured_uj += away_uj
            self._book(group, books, Booking(group.engines[0] if group.engines else "", Owner.DOWNTIME, away_uj))

    def _close(self, group: Group, receipts: list[Receipt], now_ns: int, *, everything: bool) -> None:
        """Close what can be closed of a group and book it; receipts go to the end of `receipts`."""
        books = self.living[group]
        try:
            for bookings, finals in books.advance(now_ns, everything=everything):
                sums: dict[tuple[str, Owner], int] = {}
                for engine, owner, microjoules in bookings:
                    sums[engine, owner] = sums.get((engine, owner), 0) + microjoules
                for (engine, owner), microjoules in sums.items():
                    self._book(group, books, Booking(engine, owner, microjoules))
                if finals:
                    receipts += self._finals.receipts(books, finals)
        except Exception as error:  # noqa: BLE001 - metering goes on when the attribution of one engine fails
            self._quarantine(group, error, now_ns)

    def _book(self, group: Group, books: DeviceGroup, booking: Booking) -> None:
        engine, owner, microjoules = booking
        account, quality = self.accounts.of(group), books.quality
        account.quality = quality
        account.owners[owner] += microjoules
        model = self._engines.declared[engine].model if engine in self._engines.declared else ""
        self._account.book_energy(engine, model, owner, quality, microjoules)

    def quarantine_engine(self, engine: str, error: Exception, now_ns: int) -> None:
        """An engine's attribution failed as it took an input."""
        for group in [group for group in self.living if engine in group.engines]:
            self._quarantine(group, error, now_ns)

    def _quarantine(self, group: Group, error: Exception, now_ns: int) -> None:
        """A bug in the attribution of a group: all it holds, and all it measures from now on, is unattributed.

        Raises the error where there is no engine: then the ledger itself is wrong.
        """
        books = self.living[group]
        if not group.engines or books.quarantined:
            raise error
        account = self.accounts.of(group)
        account.measured_uj += books.measured_uj
        for meter in books.meters:
            meter.take_late()
        left_uj = account.measured_uj - account.booked_uj
        self._book(group, books, Booking(group.engines[0], Owner.UNATTRIBUTED, left_uj))
        living = DeviceGroup(books.meters, [], self._account.parameters.idle_policy, quarantined=group.engines[0])
        living.begin_at({m.device.name: m.curve.last_uj for m in books.meters if m.curve}, cell_of(now_ns) + 1)
        self.living[group] = living
        reason = f"{type(error).__name__}: {error}"
        for engine in group.engines:
            self.books.pop(engine, None)
            self._host.drop(engine)
            self.quarantined[engine] = reason
            self._finals.waiting.remove_engine(engine)

    def _book_hardware(self, group: Group, books: DeviceGroup) -> None:
        """Book a measured group's share of the node's hours, by its devices."""
        edge_ns = books.edge_ns
        if edge_ns is None or books.quality is Quality.ESTIMATED:
            return
        hours = (edge_ns - self._hardware_ns.get(group, edge_ns)) / NANOSECONDS_PER_SECOND / 3600.0
        self._hardware_ns[group] = edge_ns
        compute = sum(len(other.devices) for other in self.living)
        models = [book.engine.model for book in books.engines] or [""]
        for model in models:
            self._account.book_hardware(model, hours * len(group.devices) / compute / len(models))
