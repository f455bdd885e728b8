"""The owners' totals of device groups, over regrouping and restarts."""

from collections.abc import Iterable, Mapping

from jouled.core.accounting.account import owners_quality
from jouled.core.attribution.group import DeviceGroup
from jouled.core.topology import Group
from jouled.model.device import Quality
from jouled.model.snapshot import GroupBook, Owner


class GroupAccount:
    """Whole microjoules per owner. `measured_uj`: energy of former groups, downtime and earlier runs."""

    def __init__(self, devices: tuple[str, ...], engines: tuple[str, ...]) -> None:
        self.devices = devices
        self.engines = engines
        self.quality = Quality.MEASURED
        self.owners = dict.fromkeys(Owner, 0)
        self.measured_uj = 0

    @property
    def booked_uj(self) -> int:
        """Energy that has an owner."""
        return sum(self.owners.values())

    def absorb(self, other: "GroupAccount") -> None:
        """Take over the account of a group that this one contains; both are of one quality."""
        self.measured_uj += other.measured_uj
        for owner, microjoules in other.owners.items():
            self.owners[owner] += microjoules

    def view(self, books: DeviceGroup | None) -> GroupBook:
        """The account with the living group's energy; without one, nothing is open."""
        if books is not None:
            self.quality = books.quality
        owners = {f"{owner.value}_uj": microjoules for owner, microjoules in self.owners.items()}
        measured = self.measured_uj + (books.measured_uj if books else 0)
        return GroupBook(
            devices=self.devices,
            engines=self.engines,
            quality=self.quality,
            measured_uj=measured,
            open_uj=measured - self.booked_uj,
            **owners,
        )

    def restore(self, book: GroupBook) -> None:
        """Go on from a committed view; what was open then is unattributed now."""
        self.quality = book.quality
        self.measured_uj = book.measured_uj
        for owner in Owner:
            self.owners[owner] = getattr(book, f"{owner.value}_uj")
        self.owners[Owner.UNATTRIBUTED] += book.open_uj


class GroupAccounts:
    """The accounts of all groups there are, and of those that there were and that no other contains."""

    def __init__(self) -> None:
        self._accounts: dict[Group, GroupAccount] = {}

    def of(self, group: Group) -> GroupAccount:
        """The account of a group; it begins when it is asked for."""
        found = self._accounts.get(group)
        if found is None:
            found = self._accounts[group] = GroupAccount(group.devices, group.engines)
        return found

    def merge(self, group: Group, quality: Quality) -> None:
        """Accounts of groups that this one contains live on in it; guesses and measurements are never merged."""
        account = self.of(group)
        for key, other in list(self._accounts.items()):
            contained = set(key.devices) <= set(group.devices) and set(key.engines) <= set(group.engines)
            if contained and other is not account and owners_quality(other.quality) == owners_quality(quality):
                account.absorb(self._accounts.pop(key))

    def views(self, living: Mapping[Group, DeviceGroup]) -> list[GroupBook]:
        """All accounts with the energy of the living groups, by devices and engines."""
        for group in living:
            self.of(group)
        return [account.view(living.get(group)) for group, account in sorted(self._accounts.items())]

    def restore(self, books: Iterable[GroupBook]) -> None:
        """Go on from committed views."""
        for book in books:
            self.of(Group(book.devices, book.engines)).restore(book)

    @property
    def booked_uj(self) -> int:
        """Energy that has an owner, of groups that are not estimated; microjoules."""
        accounts = self._accounts.values()
        return sum(account.booked_uj for account in accounts if account.quality is not Quality.ESTIMATED)


def compute_uj(books: Iterable[GroupBook]) -> int:
    """The compute boundary: everything measured in groups that are not estimated, microjoules."""
    return sum(book.measured_uj for book in books if book.quality is not Quality.ESTIMATED)
