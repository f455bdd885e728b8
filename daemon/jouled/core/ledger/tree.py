"""What contains what, which level speaks for the node, and what is left between a meter and its parts."""

from collections.abc import Iterable, Mapping

from jouled.core.ledger.meter import Meter
from jouled.model.device import LEAF_KINDS, METER_KINDS_HIGHEST_FIRST, Device, DeviceKind, Quality
from jouled.model.units import nanoseconds

RESIDUAL_WINDOW_NS = nanoseconds(60.0)
"""Residuals are booked over settled windows: a PDU or BMC lags the boards by seconds (attribution.md section 5)."""


def leaves(devices: Iterable[Device]) -> list[Device]:
    """Devices that are counted one by one: GPUs, packages, DRAM, and a module that replaces its parts.

    A module with no GPU meter of its own inside (superchips that report only the whole) stands for all it contains.
    """
    known = list(devices)
    with_gpu = {device.parent for device in known if device.kind is DeviceKind.GPU}
    replacing = {d.name for d in known if d.kind is DeviceKind.MODULE and d.name not in with_gpu}
    return [d for d in known if d.name in replacing or (d.kind in LEAF_KINDS and d.parent not in replacing)]


def meters(devices: Iterable[Device]) -> list[Device]:
    """Devices that contain others."""
    known = list(devices)
    counted = {device.name for device in leaves(known)}
    return [device for device in known if device.name not in counted and device.kind not in LEAF_KINDS]


def node_level(devices: Iterable[Device]) -> list[Device]:
    """The devices that together measure the whole node: all of the single highest measured level; may be empty."""
    measured = [device for device in devices if device.quality is not Quality.ESTIMATED]
    for kind in METER_KINDS_HIGHEST_FIRST:
        level = [device for device in measured if device.kind is kind]
        if level:
            return level
    return []


class ResidualBook:
    """Node minus its parts, as two counters that never fall, booked window by window."""

    def __init__(self) -> None:
        self.residual_uj = 0
        self.deficit_uj = 0
        self._members: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._edge_ns: int | None = None
        self._edge_uj = 0

    def advance(self, node: list[Meter], parts: list[Meter]) -> None:
        """Book all windows that every member's curve covers."""
        everyone = [*node, *parts]
        if not node or not parts or not all(meter.curve for meter in everyone):
            return
        members = (tuple(m.device.name for m in node), tuple(m.device.name for m in parts))
        covered_ns = min(meter.curve.last_ns for meter in everyone)
        if members != self._members or self._edge_ns is None:
            self._members = members
            self._edge_ns = max(meter.curve.first_ns for meter in everyone)
            self._edge_uj = self._difference(node, parts, self._edge_ns)
        while self._edge_ns + RESIDUAL_WINDOW_NS <= covered_ns:
            self._edge_ns += RESIDUAL_WINDOW_NS
            difference = self._difference(node, parts, self._edge_ns)
            change, self._edge_uj = difference - self._edge_uj, difference
            self.residual_uj += max(change, 0)
            self.deficit_uj += max(-change, 0)

    @property
    def needed_from_ns(self) -> int | None:
        """The curves must keep their knots from here on."""
        return self._edge_ns

    @staticmethod
    def _difference(node: list[Meter], parts: list[Meter], t_ns: int) -> int:
        return sum(m.curve.value_at(t_ns) for m in node) - sum(m.curve.value_at(t_ns) for m in parts)


def parts_of(meters_by_name: Mapping[str, Meter]) -> list[Meter]:
    """The measured leaves whose sum is compared with the node's meter."""
    devices = [meter.device for meter in meters_by_name.values()]
    return [meters_by_name[d.name] for d in leaves(devices) if d.quality is not Quality.ESTIMATED]
