"""The immutable picture of the daemon that pages, API and sinks see; replaced by one assignment, never changed."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from jouled.model.device import Device, Quality
from jouled.model.engine import Engine
from jouled.model.errors import SourceState
from jouled.model.receipt import Receipt

Labels = tuple[str, ...]
"""Label values of one series, in the order in which the metric catalogue names them."""


class Owner(StrEnum):
    """The seven owners of measured energy."""

    PREFILL = "prefill"
    DECODE = "decode"
    RESIDENT = "resident"
    UNREPORTED = "unreported"
    IDLE = "idle"
    UNATTRIBUTED = "unattributed"
    DOWNTIME = "downtime"


class GroupBook(Struct, frozen=True, kw_only=True):
    """The books of one device group, whole microjoules: measured = the seven owners + open, always."""

    devices: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    quality: Quality = Quality.MEASURED
    measured_uj: int = 0
    prefill_uj: int = 0
    decode_uj: int = 0
    resident_uj: int = 0
    unreported_uj: int = 0
    idle_uj: int = 0
    unattributed_uj: int = 0
    downtime_uj: int = 0
    open_uj: int = 0


class DeviceView(Struct, frozen=True, kw_only=True):
    """One device or meter now. Watts are `None` while it is silent."""

    device: Device
    energy_uj: int
    watts: float | None = None
    peak_watts: float | None = None
    power_limit_watts: float | None = None
    last_reading_ns: int | None = None


class EngineView(Struct, frozen=True, kw_only=True):
    """One engine now.

    coverage: tokens of request events over tokens of the engine's counter, over the last settled ranges; below 0.9
    something samples or drops the events. Tokens per second are of the last 60 s, or of the last 10 min where the
    engine counts them at finish. unreported_tokens: by kind, that no event told of. energy_check_ratio: energy by the
    engine's own meter over that of its devices' meters.
    """

    engine: Engine
    watermark_ns: int | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    coverage: float | None = None
    generation_tokens_per_second: float | None = None
    unreported_tokens: Mapping[str, int] = {}
    energy_check_ratio: float | None = None
    last_sample_ns: int | None = None


class SourceView(Struct, frozen=True, kw_only=True):
    """One source (power collector or engine page) now."""

    source: str
    state: SourceState
    reason: str = ""
    message: str = ""
    mend: str = ""


class Histogram(Struct, frozen=True, kw_only=True):
    """A cumulative histogram: `counts[i]` observations ≤ `bounds[i]`, the last one of all.

    exemplars: per bucket (value, trace_id, Unix seconds) of a recent observation, or `None`.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[tuple[float, str, float] | None, ...] = ()


class Snapshot(Struct, frozen=True, kw_only=True):
    """Everything that may be shown. Keys of the mappings are metric names of the catalogue without `jouled_`.

    counters: whole numbers in the catalogue's base unit (microjoules for energy, tokens, requests) or floats where
    the catalogue says so. gauges: floats in the unit of the name. t_ns, watermarks: core time; wall_minus_core_ns
    turns them into Unix time. sequence: number of the commit that holds these books, 0 before the first.
    """

    sequence: int = 0
    t_ns: int = 0
    wall_minus_core_ns: int = 0
    node: str = ""
    groups: tuple[GroupBook, ...] = ()
    total: GroupBook = GroupBook()
    boundaries_uj: Mapping[str, int] = {}
    counters: Mapping[str, Mapping[Labels, float]] = {}
    gauges: Mapping[str, Mapping[Labels, float]] = {}
    histograms: Mapping[str, Mapping[Labels, Histogram]] = {}
    devices: tuple[DeviceView, ...] = ()
    meters: tuple[DeviceView, ...] = ()
    engines: tuple[EngineView, ...] = ()
    sources: tuple[SourceView, ...] = ()
    recent: tuple[Receipt, ...] = ()
    degraded: tuple[str, ...] = ()
