"""Which meters together measure the whole node, level by level, and which level speaks for it now.

An outlet that cannot be read makes its feed incomplete, not low: then the next level below speaks until it is back.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from jouled.core.ledger.meter import Meter
from jouled.model.device import METER_KINDS_HIGHEST_FIRST, Device, DeviceKind, Quality


class Level(NamedTuple):
    """Meters of one kind that together measure the node."""

    kind: DeviceKind
    members: tuple[str, ...]


def levels(devices: Iterable[Device], preferred_sources: Sequence[str] = ()) -> list[Level]:
    """The measured levels, highest first, one of each kind.

    Members of one virtual feed belong together, from whatever source; else those of one source. Where a kind is
    measured twice (a BMC asked by two protocols), the source that stands first in `preferred_sources` counts.
    """
    measured = [device for device in devices if device.quality is not Quality.ESTIMATED]
    found = []
    for kind in METER_KINDS_HIGHEST_FIRST:
        sets: dict[str, list[Device]] = {}
        for device in measured:
            if device.kind is kind:
                sets.setdefault(device.parent or device.source, []).append(device)
        if sets:
            chosen = min(sets.items(), key=lambda each: (_rank(each[1], preferred_sources), each[0]))[1]
            found.append(Level(kind, tuple(sorted(device.name for device in chosen))))
    return found


def speaking(found: Sequence[Level], is_heard: Callable[[str], bool]) -> Level | None:
    """The highest level of which every member is heard."""
    return next((level for level in found if all(map(is_heard, level.members))), None)


class NodeBook:
    """The energy of the whole node, told by one level at a time, up to `edge_ns`.

    Every moment is booked once, by the level that speaks when all its members have told of it; so a level that falls
    silent makes the sum late, not low, and the next one goes on where it stopped. `level`: the last that spoke.
    """

    def __init__(self) -> None:
        self.level: Level | None = None
        self.edge_ns: int | None = None
        self._at_edge_uj: dict[str, int] = {}
        self._aside_uj: dict[str, int] = {}

    def advance(self, speaks: Level | None, by_name: Mapping[str, Meter]) -> int:
        """Book as far as all members of the level have told; returns the energy since the last call, microjoules."""
        aside_uj = {name: meter.total_uj - meter.curve.last_uj for name, meter in by_name.items() if meter.curve}
        before_uj, self._aside_uj = self._aside_uj, aside_uj
        if speaks is None:
            # What a member tells late of its silence still has to be booked, if the same level comes back.
            self._aside_uj = aside_uj | before_uj
            return 0
        goes_on = self.level in {None, speaks}
        members = [by_name[name] for name in speaks.members]
        if not self._takes_over(speaks, members):
            return 0
        edge_ns = min(meter.curve.last_ns for meter in members)
        # Energy of no known moment: of the time away, or told too late.
        grown_uj = sum(aside_uj[name] - before_uj.get(name, 0) for name in speaks.members) if goes_on else 0
        if self.edge_ns is not None and edge_ns > self.edge_ns:
            at_edge_uj = {meter.device.name: meter.curve.value_at(edge_ns) for meter in members}
            grown_uj += sum(max(at_edge_uj[name] - self._at_edge_uj[name], 0) for name in speaks.members)
            self.edge_ns = edge_ns
            self._at_edge_uj = {name: max(told_uj, self._at_edge_uj[name]) for name, told_uj in at_edge_uj.items()}
        return grown_uj

    def _takes_over(self, speaks: Level, members: Sequence[Meter]) -> bool:
        """Whether this level can tell what was used from the edge on."""
        if speaks == self.level:
            return True
        edge_ns = max(meter.curve.first_ns for meter in members) if self.edge_ns is None else self.edge_ns
        at_edge_uj = {meter.device.name: meter.energy_since(edge_ns) for meter in members}
        if None in at_edge_uj.values():
            return False
        self.level, self.edge_ns = speaks, edge_ns
        self._at_edge_uj = {name: told_uj for name, told_uj in at_edge_uj.items() if told_uj is not None}
        return True


def _rank(devices: Sequence[Device], preferred_sources: Sequence[str]) -> int:
    places = {source: place for place, source in enumerate(preferred_sources)}
    return min(places.get(device.source, len(places)) for device in devices)
