"""What a sampler hands to the daemon, at most about once a second."""

from msgspec import Struct

from jouled.api import Reading
from jouled.model.device import Device
from jouled.model.readings import SourceReport


class Batch(Struct, kw_only=True, omit_defaults=True):
    """Everything one source said since its last batch; an empty one is a sign of life.

    To be taken in the order of the fields. boot_ns, wall_ns: both clocks when the batch was closed. read_seconds: how
    long each read took. lateness_seconds: how long after its tick each read began; ticks that were missed altogether
    are one observation, from the first of them.
    """

    source: str
    boot_ns: int
    wall_ns: int
    devices: list[Device] = []
    readings: list[Reading] = []
    reports: list[SourceReport] = []
    read_seconds: list[float] = []
    lateness_seconds: list[float] = []
