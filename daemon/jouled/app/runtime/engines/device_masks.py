"""Which devices a process may use by its environment, for where no driver tells on which it computes.

NVIDIA: CUDA C Programming Guide, "CUDA Environment Variables", and the container toolkit's NVIDIA_VISIBLE_DEVICES. AMD:
"GPU isolation techniques" of the ROCm documentation. A mask says what may be used, not what is.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jouled.model.device import Device, DeviceKind

MASKS = frozenset({"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"})
"""Environment variables that say which accelerators a process may use."""

_ACCELERATORS = frozenset({DeviceKind.GPU, DeviceKind.MODULE})


def devices_by_mask(environ: Mapping[str, str], devices: Sequence[Device], *, in_container: bool) -> tuple[str, ...]:
    """The devices that the environment names; none where it names none, or where its numbers cannot be resolved.

    in_container: a container may be given some of the host's devices; numbers then count among those.
    """
    for vendor, masks in (("nvidia", _nvidia(environ, in_container)), ("amd", _amd(environ))):
        here = sorted(
            (device for device in devices if device.vendor == vendor and device.kind in _ACCELERATORS),
            key=lambda device: device.pci_bus_id,
        )
        parts = [device for device in devices if device.vendor == vendor and device.kind is DeviceKind.PARTITION]
        if here and masks:
            return _resolve(masks, here, parts, counts=_counts(vendor, environ, here, in_container=in_container))
    return ()


class _Mask(NamedTuple):
    """Words of one variable. whole: its numbers are of whole devices, whatever partitions they have."""

    words: str
    whole: bool = False


def _nvidia(environ: Mapping[str, str], in_container: bool) -> list[_Mask]:
    given = environ.get("NVIDIA_VISIBLE_DEVICES", "") if in_container else ""
    outer = [] if given in {"", "all", "none", "void"} else [_Mask(given, whole=True)]
    return outer + [_Mask(environ[name]) for name in ("CUDA_VISIBLE_DEVICES",) if name in environ]


def _amd(environ: Mapping[str, str]) -> list[_Mask]:
    # HIP counts among what ROCr leaves; on AMD it takes CUDA's name as its own.
    inner = next((name for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if name in environ), "")
    return [_Mask(environ[name]) for name in ("ROCR_VISIBLE_DEVICES", inner) if name in environ]


def _counts(vendor: str, environ: Mapping[str, str], here: Sequence[Device], *, in_container: bool) -> bool:
    """Whether ordinals count along the PCI bus of the host."""
    if in_container:
        return vendor == "nvidia" and environ.get("NVIDIA_VISIBLE_DEVICES", "") not in {"", "none", "void"}
    # CUDA puts the fastest first: among equal ones that is the order of the bus.
    return environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({device.product for device in here}) == 1


def _resolve(
    masks: Sequence[_Mask], here: Sequence[Device], parts: Sequence[Device], *, counts: bool
) -> tuple[str, ...]:
    """Apply masks one after the other: ordinals of each count among what the one before has left.

    Where a device of those is partitioned, they count partitions, in an order that only the driver knows.
    """
    left: list[Device] = list(here)
    partitioned = {part.parent for part in parts}
    for mask in masks:
        chosen: list[Device] = []
        are_whole = mask.whole or partitioned.isdisjoint(device.name for device in left)
        for word in mask.words.split(","):
            found = _one(word.strip(), left, parts, counts=counts and are_whole)
            if found is None or found in chosen:
                break  # what follows a device that is not there is not visible either
            chosen.append(found)
        left, counts = chosen, True
    return tuple(device.name for device in left)


def _one(word: str, left: Sequence[Device], parts: Sequence[Device], *, counts: bool) -> Device | None:
    if word.isascii() and word.isdigit():
        return left[int(word)] if counts and len(word) < len("1000") and int(word) < len(left) else None
    # A UUID may be cut short as long as it fits one device only.
    named = [device for device in (*left, *parts) if _bare(word) and _bare(device.uuid).startswith(_bare(word))]
    return named[0] if len(named) == 1 else None


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-")
