"""What has a meter, and how devices contain one another."""

from enum import StrEnum

from msgspec import Struct


class DeviceKind(StrEnum):
    """Kinds of devices, from the leaves up: facility ⊃ shelf/feed ⊃ outlet ⊃ psu ⊃ node ⊃ module ⊃ leaves."""

    GPU = "gpu"
    CPU_PACKAGE = "cpu_package"
    DRAM = "dram"
    PARTITION = "partition"
    MODULE = "module"
    NODE = "node"
    PSU = "psu"
    OUTLET = "outlet"
    FEED = "feed"
    SHELF = "shelf"


LEAF_KINDS = frozenset({DeviceKind.GPU, DeviceKind.CPU_PACKAGE, DeviceKind.DRAM})
"""Kinds that are counted one by one; a module joins them where it replaces its parts."""

METER_KINDS_HIGHEST_FIRST = (DeviceKind.FEED, DeviceKind.OUTLET, DeviceKind.PSU, DeviceKind.NODE)
"""Levels that can stand for the whole node; the headline takes the highest one that is measured."""


class Quality(StrEnum):
    """How a reading came about: read from a sensor, computed from one, or guessed from load."""

    MEASURED = "measured"
    DERIVED = "derived"
    ESTIMATED = "estimated"


class Device(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device with a meter. `name` is stable over restarts and stands in every label.

    Watts are of the whole device. `idle_watts`: powered, the model loaded, nobody served; `uplift_watts`: what being
    busy adds before any work is counted; `max_watts`: the enforced limit, against which readings are judged.
    `wrap_microjoules`: the counter's range, if a decrease may be a wrap. `parent`: name of the device that contains
    this one. Members of one virtual feed (a node's A and B outlets) name that feed as parent. `fraction`: of a
    partition, which has no meter, its share of the parent (MIG: its slices over all slices). `indirect`: told by
    another daemon or by the BMC; it does not count where a source reads the same device (kind and uuid) itself.
    """

    name: str
    kind: DeviceKind
    parent: str = ""
    vendor: str = ""
    product: str = ""
    uuid: str = ""
    pci_bus_id: str = ""
    index: int | None = None
    source: str = ""
    method: str = ""
    quality: Quality = Quality.MEASURED
    idle_watts: float | None = None
    uplift_watts: float | None = None
    max_watts: float | None = None
    wrap_microjoules: int | None = None
    fraction: float | None = None
    indirect: bool = False
