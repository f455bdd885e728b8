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


def complete(found: Sequence[Level], is_heard: Callable[[str], bool]) -> list[Level]:
    """The levels of which every member is heard; the highest one of them is to speak."""
    return [level for level in found if all(map(is_heard, level.members))]


class NodeBook:
    """The energy of the whole node, told by one level at a time, up to `edge_ns`.

    Every moment is booked once, by the level that speaks when all its members have told of it; so a level that falls
    silent makes the sum late, not low, and the next one goes on where it stopped. What was used while the daemon was
    away may be told by several levels, one after the other; it is booked once. `level`: the last that spoke; `None` too
    where one of its members is no more. `left_ns`: the edge when the daemon went away.
    """

    def __init__(self) -> None:
        self.level: Level | None = None
        self.edge_ns: int | None = None
        self.left_ns: int | None = None
        self._at_edge_uj: dict[str, int] = {}
        self._late_uj: dict[str, int] = {}
        self._away_before_uj: dict[str, int] = {}
        self._since_return_uj: int | None = None

    def was_away(self, by_name: Mapping[str, Meter]) -> None:
        """The daemon was away: what meters tell of that time is still to come."""
        for name, meter in by_name.items():
            if self._since_return_uj is not None or not self._tells(meter):
                self._away_before_uj[name] = meter.downtime_uj
        self.left_ns, self._since_return_uj = self.edge_ns or self.left_ns, None

    def forget(self, name: str) -> None:
        """A meter is no more. If it comes back it counts from zero again, and its level takes over anew."""
        self._late_uj.pop(name, None)
        self._away_before_uj.pop(name, None)
        if self.level is not None and name in self.level.members:
            self.level = None

    def advance(self, complete: Sequence[Level], by_name: Mapping[str, Meter]) -> int:
        """Book as far as all members of a complete level have told; returns the energy since then, microjoules."""
        before = self.level
        speaks = self._speaking(complete, by_name)
        if speaks is None:
            return 0
        goes_on = before in {None, speaks}
        members = [by_name[name] for name in speaks.members]
        # Of no known moment: told too late, perhaps while no level spoke.
        late_uj = {name: meter.measured_uj - meter.curve.last_uj for name, meter in by_name.items() if meter.curve}
        before_uj, self._late_uj = self._late_uj, late_uj
        is_first = self._since_return_uj is None or before != speaks
        grown_uj = self._away_uj(members) if is_first else 0
        if goes_on:
            grown_uj += sum(late_uj[name] - before_uj.get(name, late_uj[name]) for name in speaks.members)
        edge_ns = min(meter.curve.last_ns for meter in members)
        if self.edge_ns is not None and edge_ns > self.edge_ns:
            at_edge_uj = {meter.device.name: meter.curve.value_at(edge_ns) for meter in members}
            grown_uj += sum(max(at_edge_uj[name] - self._at_edge_uj[name], 0) for name in speaks.members)
            self.edge_ns = edge_ns
            self._at_edge_uj = {name: max(told_uj, self._at_edge_uj[name]) for name, told_uj in at_edge_uj.items()}
        self._since_return_uj = (self._since_return_uj or 0) + grown_uj
        return grown_uj

    def _away_uj(self, members: Sequence[Meter]) -> int:
        """What these tell of the last time away, up to their first readings, beyond what others have booked since."""
        away_uj = [m.downtime_uj - self._away_before_uj.get(m.device.name, 0) for m in members if self._tells(m)]
        return max(sum(away_uj) - (self._since_return_uj or 0), 0)

    def _tells(self, meter: Meter) -> bool:
        """Whether this meter's downtime is of no time that was booked before: it was heard to the last."""
        return self.left_ns is None or (meter.away_from_ns or 0) >= self.left_ns

    def _speaking(self, complete: Sequence[Level], by_name: Mapping[str, Meter]) -> Level | None:
        """The highest complete level; the present one goes on where a counter of that stands still."""
        if not complete or complete[0] == self.level:
            return complete[0] if complete else None
        members = [by_name[name] for name in complete[0].members]
        edge_ns = max(meter.curve.first_ns for meter in members) if self.edge_ns is None else self.edge_ns
        if min(meter.curve.last_ns for meter in members) < edge_ns:
            return None  # a slow meter's next reading will tell of time that another level has booked as well
        at_edge_uj = {meter.device.name: meter.energy_since(edge_ns) for meter in members}
        if None in at_edge_uj.values():
            return self.level if self.level in complete else None
        self.level, self.edge_ns = complete[0], edge_ns
        self._at_edge_uj = {name: told_uj for name, told_uj in at_edge_uj.items() if told_uj is not None}
        return self.level


def _rank(devices: Sequence[Device], preferred_sources: Sequence[str]) -> int:
    places = {source: place for place, source in enumerate(preferred_sources)}
    return min(places.get(device.source, len(places)) for device in devices)
