"""What power sources say. All time stamps are core time: boot time plus the offset fixed at start, nanoseconds."""

from msgspec import Struct

from jouled.model.device import Quality
from jouled.model.errors import SourceState


class EnergyReading(Struct, frozen=True, gc=False, tag="energy"):
    """A cumulative energy counter as the source gives it, in microjoules, stamped at the middle of the read."""

    device: str
    t_ns: int
    microjoules: int
    quality: Quality = Quality.MEASURED


class PowerReading(Struct, frozen=True, gc=False, tag="power"):
    """A power gauge in watts, stamped at the middle of what it averages over; the ledger integrates it."""

    device: str
    t_ns: int
    watts: float
    quality: Quality = Quality.DERIVED


class DeviceStatus(Struct, frozen=True, gc=False, tag="status", kw_only=True):
    """What a device says beside its energy.

    throttle_seconds: cumulative, by reason, as the source counts it. processes: ids of those that compute on it, as the
    host knows them.
    """

    device: str
    t_ns: int
    power_limit_watts: float | None = None
    driver: str = ""
    throttle_seconds: dict[str, float] = {}
    processes: tuple[int, ...] = ()


class SourceReport(Struct, frozen=True, tag="source", kw_only=True):
    """A source changed its state, or failed once more. `mend`: what the operator can do, apart from the message."""

    source: str
    state: SourceState
    t_ns: int
    reason: str = ""
    message: str = ""
    mend: str = ""


class ClockStep(Struct, frozen=True, gc=False, tag="clock"):
    """From core time `t_ns` on, wall time is core time plus `wall_minus_core_ns`."""

    t_ns: int
    wall_minus_core_ns: int
