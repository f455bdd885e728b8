"""What contains what, and which parts are compared with the node's meter."""

from collections.abc import Collection, Iterable, Mapping

from jouled.core.ledger.meter import Meter
from jouled.model.device import LEAF_KINDS, Device, DeviceKind, Quality

HOST_KINDS = frozenset({DeviceKind.CPU_PACKAGE, DeviceKind.DRAM})


def leaves(devices: Iterable[Device]) -> list[Device]:
    """Devices that are counted one by one: GPUs, packages, DRAM, and a module that replaces its parts.

    A module with no GPU meter of its own inside (superchips that report only the whole) stands for all it contains.
    Packages and memory that name no parent are inside the modules then: superchips have no other processors beside
    them. A device that two sources show is counted once.
    """
    known = _each_once(devices)
    with_gpu = {device.parent for device in known if device.kind is DeviceKind.GPU}
    replacing = {d.name for d in known if d.kind is DeviceKind.MODULE and d.name not in with_gpu}

    def is_inside(device: Device) -> bool:
        return device.parent in replacing or (bool(replacing) and device.kind in HOST_KINDS and not device.parent)

    return [d for d in known if d.name in replacing or (d.kind in LEAF_KINDS and not is_inside(d))]


def _each_once(devices: Iterable[Device]) -> list[Device]:
    """Of a device that several sources show by the same uuid, the one that is read directly."""
    known = list(devices)
    chosen: dict[tuple[DeviceKind, str], str] = {}
    for device in sorted(known, key=lambda each: each.indirect):
        chosen.setdefault((device.kind, device.uuid or device.name), device.name)
    names = set(chosen.values())
    return [device for device in known if device.name in names]


def meters(devices: Iterable[Device]) -> list[Device]:
    """Devices that contain others."""
    known = list(devices)
    counted = {device.name for device in leaves(known)}
    return [device for device in known if device.name not in counted and device.kind not in LEAF_KINDS]


def parts_of(meters_by_name: Mapping[str, Meter]) -> list[Meter]:
    """The measured leaves whose sum is compared with the node's meter."""
    return [
        meters_by_name[device.name]
        for device in leaves(meter.device for meter in meters_by_name.values())
        if is_measured(meters_by_name[device.name])
    ]


def host_of(meters_by_name: Mapping[str, Meter], compute: Collection[str]) -> list[Meter]:
    """The measured CPU packages and memory that no engine computes on."""
    return [
        meter
        for meter in parts_of(meters_by_name)
        if meter.device.kind in HOST_KINDS and meter.device.name not in compute
    ]


def is_measured(meter: Meter) -> bool:
    """Whether neither the device nor its readings say that its energy is a guess."""
    return meter.device.quality is not Quality.ESTIMATED and not meter.estimated
