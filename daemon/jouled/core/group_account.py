"""The owners' totals of one device group, over regrouping and restarts."""

from jouled.core.attribution.group import DeviceGroup
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
            self.quality = Quality.ESTIMATED if books.estimated else Quality.MEASURED
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
