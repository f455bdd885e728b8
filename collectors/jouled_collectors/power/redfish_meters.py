"""A meter that a BMC offers: which resources hold its value, and how the value becomes a reading. Pure."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, structs

from jouled.api import Reading
from jouled.model.device import Device, DeviceKind
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import microjoules
from jouled_collectors.power.redfish_parse import (
    Document,
    data_source,
    excerpt_joules,
    excerpt_watts,
    report_entry,
    text,
)

Extract = Callable[[Document], float | None]

NEVER_ZERO = frozenset({DeviceKind.NODE, DeviceKind.GPU, DeviceKind.SHELF})
"""What runs this daemon, or feeds it, draws something: 0 W stands for a sensor that does not answer. A supply in
standby and an outlet of the other feed may well draw nothing."""

COUNTER_DISAGREES_AT_MOST = 0.5
"""A counter whose pace differs from the gauge's watts by a larger share is too coarse for this interval, or wrong."""


class Found(Struct, frozen=True, kw_only=True):
    """Meters of one resource by one property each: of the same device, `counter` in joules and `gauge` in watts.

    properties: URIs under which a metric report may carry the gauge.
    """

    uri: str
    gauge: Extract | None = None
    counter: Extract | None = None
    properties: tuple[str, ...] = ()


class Meter(Struct, frozen=True, kw_only=True):
    """One device's meter. uris: the resources that hold its value; of several the values are added up.

    stamp: what the BMC says about when the value was taken; a value with the stamp of the one before is no new one.
    """

    device: Device
    uris: tuple[str, ...]
    extract: Extract
    is_counter: bool = False
    stamp: Callable[[Document], str] | None = None

    def value(self, documents: Mapping[str, Document]) -> float | None:
        """Watts, or joules of a counter; `None` where one of the resources does not tell."""
        total = 0.0
        for uri in self.uris:
            document = documents.get(uri)
            part = None if document is None else self.extract(document)
            if part is None:
                return None
            total += part
        return None if not total and self.device.kind in NEVER_ZERO and not self.is_counter else total

    def stamp_of(self, documents: Mapping[str, Document]) -> str:
        """The BMC's own time of the value; empty where it does not tell."""
        document = documents.get(self.uris[0])
        return self.stamp(document) if self.stamp is not None and document is not None else ""

    def reading(self, value: float, t_ns: int) -> Reading:
        """The value as a reading at this time."""
        if self.is_counter:
            return EnergyReading(self.device.name, t_ns, microjoules(value))
        return PowerReading(self.device.name, t_ns, value)


def environment(uri: str, document: Document) -> Found:
    """What `EnvironmentMetrics` offers; an `Outlet` and `PowerDistributionMetrics` have the same properties."""
    gauge = _watts if _watts(document) is not None else None
    counter = next((each for each in (_joules, _kilowatt_hours) if each(document) is not None), None)
    properties = (f"{uri}#/PowerWatts/Reading", f"{uri}/PowerWatts", data_source(document, "PowerWatts"))
    return Found(uri=uri, gauge=gauge, counter=counter, properties=properties)


def counter_keeps_up(joules: Sequence[float], seconds: float, watts: float) -> bool:
    """Whether a counter seen before and after so many seconds moves as the gauge says.

    `EnergyJoules` of one vendor moves each second, the `EnergykWh` of another each 3.6 MJ.
    """
    expected = watts * seconds
    return expected > 0 and abs(joules[1] - joules[0] - expected) <= COUNTER_DISAGREES_AT_MOST * expected


def from_report(meter: Meter, uri: str, report: Document, properties: Sequence[str]) -> Meter | None:
    """The same device read from a metric report, if that holds it."""

    def watts(document: Document) -> float | None:
        return excerpt_watts(report_entry(document, properties), "MetricValue")

    def stamp(document: Document) -> str:
        return text(report_entry(document, properties), "Timestamp")

    if watts(report) is None:
        return None
    device = structs.replace(meter.device, method="redfish_report")
    return Meter(device=device, uris=(uri,), extract=watts, stamp=stamp)


def _watts(document: Document) -> float | None:
    return excerpt_watts(document, "PowerWatts")


def _joules(document: Document) -> float | None:
    return excerpt_joules(document, "EnergyJoules")


def _kilowatt_hours(document: Document) -> float | None:
    return excerpt_joules(document, "EnergykWh")
