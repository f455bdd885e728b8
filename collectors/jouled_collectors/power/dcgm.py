"""NVIDIA GPUs by the page of a dcgm-exporter, for where NVML cannot be opened beside it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, cast

import msgspec
from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.dcgm_http import Exporter
from jouled_collectors.power.dcgm_page import METERS, Page, PageGpu, Quantity, parse
from jouled_collectors.power.settings import IntervalSeconds, Watts

DEFAULT_INTERVAL_SECONDS = 5.0
"""The exporter takes new values every 30 s unless told otherwise (its option -c): 5 s find the moment well enough."""

FROZEN_COUNTER_NS = nanoseconds(180)
"""Six of the exporter's intervals: a GPU always uses energy, so a counter that shows none tells of a dead exporter."""

FROZEN_GAUGE_NS = nanoseconds(600)
"""Watts may stay the same for a while; with their six decimals not for so long."""

MISSES_BEFORE_CHANGE = 3
"""A meter is changed for a worse one only when it was missing so many times in a row."""

_MICROJOULES_PER_MILLIJOULE = 1_000


class DcgmSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.dcgm]`."""

    url: Annotated[str, Meta(description="Address of the exporter's page, such as `http://127.0.0.1:9400/metrics`.")]
    interval_seconds: Annotated[
        IntervalSeconds | None, Meta(description="Time between two reads. Unset: 5; the exporter's own default is 30.")
    ] = None
    timeout_seconds: Annotated[float, Meta(gt=0, le=10, description="A page that takes longer counts as failed.")] = 3.0
    hostname: Annotated[
        str, Meta(description="Only rows with this label `Hostname`, of a page that has GPUs of several hosts.")
    ] = ""
    user: Annotated[str, Meta(description="User for HTTP basic authentication.")] = ""
    password_file: Annotated[str, Meta(description="File with the user's password.")] = ""
    token_file: Annotated[str, Meta(description="File with a bearer token; used where no user is set.")] = ""
    ca_file: Annotated[str, Meta(description="Certificates that sign the exporter's. Empty: those of the system.")] = ""
    idle_watts: Annotated[Watts | None, Meta(description="Idle power of each GPU. Unset: it is learned.")] = None
    uplift_watts: Annotated[
        Watts | None, Meta(description="What being busy adds to each GPU before any work. Unset: it is learned.")
    ] = None


class DcgmCollector:
    """Reads the exporter's page in a thread. It has to be told where the exporter is."""

    name: ClassVar[str] = "dcgm"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = DcgmSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Read the page once, for its GPUs. Raises `SourceError`."""
        options = cast("DcgmSettings", settings)
        exporter = Exporter(
            options.url,
            timeout_seconds=options.timeout_seconds,
            user=options.user,
            password_file=options.password_file,
            token_file=options.token_file,
            ca_file=options.ca_file,
        )
        source = DcgmSource(clock, exporter, options)
        source.read()
        source.forget()
        return source


class DcgmSource:
    """The GPUs of one page.

    parts: each GPU by name, and why it has no reading. A page that stands still is told there too and not raised, for a
    source that is opened again would take the old page for news.
    """

    def __init__(self, clock: Clock, exporter: Exporter, settings: DcgmSettings) -> None:
        self.interval_seconds = settings.interval_seconds or DEFAULT_INTERVAL_SECONDS
        self.parts: Mapping[str, SourceError | None] = {}
        self.devices: Sequence[Device] = ()
        self._clock = clock
        self._exporter = exporter
        self._settings = settings
        self._gpus: dict[int, _Gpu] = {}

    def read(self) -> list[Reading]:
        """Ask for the page. Raises `SourceError` where there is none, or none with a meter."""
        before_ns = self._clock.now_ns()
        page = parse(self._exporter.page(), self._settings.hostname)
        t_ns = (before_ns + self._clock.now_ns()) // 2
        _check(page)
        readings: list[Reading] = []
        for index in sorted(page.gpus.keys() | self._gpus.keys()):
            gpu = self._gpus.setdefault(index, _Gpu(index))
            readings += gpu.take(page.gpus.get(index), t_ns)
        self._tell()
        return readings

    def forget(self) -> None:
        """Take what the next page says for news."""
        for gpu in self._gpus.values():
            gpu.forget()

    def close(self) -> None:
        """Nothing is held between reads."""

    def _tell(self) -> None:
        watts = {"idle_watts": self._settings.idle_watts, "uplift_watts": self._settings.uplift_watts}
        devices = [
            msgspec.structs.replace(gpu.device, **watts) for gpu in self._gpus.values() if gpu.device is not None
        ]
        if devices != self.devices:
            self.devices = devices
        self.parts = {f"gpu{index}": gpu.error for index, gpu in self._gpus.items()}


class _Gpu:
    """One GPU over time: by what it is read, and since when each of its values has stood still."""

    def __init__(self, index: int) -> None:
        self.device: Device | None = None
        self.error: SourceError | None = None
        self._name = f"dcgm-gpu{index}"
        self._meter: Quantity | None = None
        self._misses = 0
        self._seen: dict[Quantity, tuple[float, int]] = {}

    def forget(self) -> None:
        self._seen.clear()

    def take(self, told: PageGpu | None, t_ns: int) -> list[Reading]:
        """What the page tells of it now."""
        self._look(told, t_ns)
        meter = self._choose(told, t_ns)
        if told is None or meter is None:
            return []
        self.error = None
        self.device = _device(self._name, told, meter)
        value, moved_ns = self._seen[meter]
        if meter is not Quantity.ENERGY:
            return [PowerReading(self._name, t_ns, value), _status(self._name, told, t_ns)]
        # A counter that did not move says only that the exporter has not asked again: its energy belongs to no time.
        if moved_ns != t_ns:
            return []
        microjoules = round(value) * _MICROJOULES_PER_MILLIJOULE
        return [EnergyReading(self._name, t_ns, microjoules), _status(self._name, told, t_ns)]

    def _look(self, told: PageGpu | None, t_ns: int) -> None:
        """Notice which values have moved."""
        for meter in METERS:
            value = told.values.get(meter) if told is not None else None
            if value is not None and value != self._seen.get(meter, (None,))[0]:
                self._seen[meter] = value, t_ns

    def _choose(self, told: PageGpu | None, t_ns: int) -> Quantity | None:
        """The meter to read now; a worse one than before is taken only when that one stays away."""
        present = [meter for meter in METERS if told is not None and meter in told.values]
        # Beside a counter watts have to move as it does: a page that stands still as a whole is not gone on from.
        limit_ns = FROZEN_COUNTER_NS if Quantity.ENERGY in present else FROZEN_GAUGE_NS
        alive = [meter for meter in present if t_ns - self._seen[meter][1] < limit_ns]
        if alive and (self._meter is None or METERS.index(alive[0]) <= METERS.index(self._meter)):
            self._meter, self._misses = alive[0], 0
            return self._meter
        if present and not alive:
            self.error = self._frozen(present[0], t_ns)
            return None
        self._misses += 1
        if alive and (self._meter in present or self._misses >= MISSES_BEFORE_CHANGE):
            self._meter, self._misses = alive[0], 0
            return self._meter
        if self._meter is None or self._misses >= MISSES_BEFORE_CHANGE:
            self.error = self._missing()
        return None

    def _missing(self) -> SourceError:
        return SourceError(
            SourceState.DOWN,
            "gpu_missing",
            f"{self._name} has no row of energy or power on the page now",
            mend="Look for a lost GPU: nvidia-smi -L; dcgmi health -c",
        )

    def _frozen(self, meter: Quantity, t_ns: int) -> SourceError:
        minutes = (t_ns - self._seen[meter][1]) // nanoseconds(60)
        return SourceError(
            SourceState.DOWN,
            "frozen",
            f"{self._name} shows the same value since {minutes} minutes",
            mend="Restart the dcgm-exporter and its nv-hostengine",
        )


def _check(page: Page) -> None:
    """Raises `SourceError` for a page that is none, or that nothing can be read from."""
    if page.is_of_several_hosts:
        raise SourceError(
            SourceState.ABSENT,
            "several_hosts",
            f"The page has GPUs of several hosts ({', '.join(sorted(page.hosts)[:3]) or 'by their UUIDs'})",
            mend="Name this one as `hostname` in [power.dcgm], or point `url` at the exporter of this node",
        )
    if not page.rows:
        raise SourceError(
            SourceState.DOWN,
            "no_rows",
            "The page has no row of DCGM; an exporter that has just started has none until its first interval is over",
            mend="Look at the page; correct `url` in [power.dcgm] if it is another program's",
        )
    if not any(meter in gpu.values for gpu in page.gpus.values() for meter in METERS):
        raise SourceError(
            SourceState.ABSENT,
            "no_meter",
            f"The page tells neither energy nor power of a GPU ({page.unreadable} rows could not be read)",
            mend="Add DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION to the exporter's file of counters (its option -f); if"
            " `hostname` is set in [power.dcgm], it must be as on the page",
        )


def _device(name: str, told: PageGpu, meter: Quantity) -> Device:
    return Device(
        name=name,
        kind=DeviceKind.GPU,
        vendor="nvidia",
        product=told.product,
        uuid=told.uuid,
        pci_bus_id=told.pci_bus_id,
        index=told.index,
        source="dcgm",
        method=meter.value,
        quality=Quality.MEASURED if meter is Quantity.ENERGY else Quality.DERIVED,
        max_watts=_limit_watts(told),
        indirect=True,
    )


def _status(name: str, told: PageGpu, t_ns: int) -> DeviceStatus:
    return DeviceStatus(device=name, t_ns=t_ns, power_limit_watts=_limit_watts(told), driver=told.driver)


def _limit_watts(told: PageGpu) -> float | None:
    return told.values.get(Quantity.LIMIT) or told.values.get(Quantity.LIMIT_REQUESTED) or None
