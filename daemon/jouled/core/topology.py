"""Which devices an engine runs on, and which devices share their books."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jouled.core.ledger.tree import leaves
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import Engine

ACCELERATORS = frozenset({DeviceKind.GPU, DeviceKind.MODULE})


class Group(NamedTuple):
    """Devices joined by shared engines; or all compute devices of no engine."""

    devices: tuple[str, ...]
    engines: tuple[str, ...]


def default_devices(devices: Sequence[Device]) -> tuple[str, ...]:
    """Where an only engine runs that does not say: the accelerators, else measured CPU packages, else the estimate."""
    counted = leaves(devices)
    accelerators = [device.name for device in counted if device.kind in ACCELERATORS]
    packages = [device for device in counted if device.kind is DeviceKind.CPU_PACKAGE]
    measured = [device.name for device in packages if device.quality is not Quality.ESTIMATED]
    return tuple(accelerators or measured or [device.name for device in packages])


def groups(devices: Iterable[Device], engines: Iterable[Engine]) -> list[Group]:
    """All groups: engines that share a device share a group; unused accelerators form one, without engines."""
    known = list(devices)
    names = {device.name for device in known}
    parents = {device.name: device.parent for device in known if device.kind is DeviceKind.PARTITION}
    parts: list[tuple[set[str], set[str]]] = []
    for engine in engines:
        own = {parents.get(name, name) for name in engine.devices if name in names} & (names - parents.keys())
        if not own:
            continue
        joined = [part for part in parts if part[0] & own]
        parts = [part for part in parts if not part[0] & own]
        parts.append((own.union(*(p[0] for p in joined)), {engine.name}.union(*(p[1] for p in joined))))
    used = {name for part in parts for name in part[0]}
    unused = [d.name for d in leaves(known) if d.kind in ACCELERATORS and d.name not in used]
    found = [Group(tuple(sorted(part[0])), tuple(sorted(part[1]))) for part in parts]
    if unused:
        found.append(Group(tuple(sorted(unused)), ()))
    return found
