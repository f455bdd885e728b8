"""What the snapshot says of how far the meters can be trusted: validity, completeness of levels, calibration."""

from collections.abc import Iterator, Mapping

from jouled.core.ledger.calibration import calibrate
from jouled.core.ledger.levels import levels
from jouled.core.ledger.meter import Meter
from jouled.core.ledger.tree import is_measured
from jouled.core.live import LiveMeters
from jouled.model.snapshot import Labels

Gauge = tuple[str, Labels, float | None]
"""A metric's name, its labels and its value; `None`: not known, so there is no series."""


def trust_gauges(by_name: Mapping[str, Meter], live: LiveMeters, now_ns: int) -> Iterator[Gauge]:
    """All of them."""
    for name, meter in by_name.items():
        yield from _of_meter(name, meter, now_ns)
    for level in levels((meter.device for meter in by_name.values()), live.preferred_sources):
        heard = sum(not by_name[name].silent(now_ns) and is_measured(by_name[name]) for name in level.members)
        yield "node_meters_expected", (level.kind.value,), float(len(level.members))
        yield "node_meters_heard", (level.kind.value,), float(heard)
        speaks = heard == len(level.members) and live.node.level is not None and live.node.level.kind is level.kind
        yield "node_level_speaks", (level.kind.value,), float(speaks)
    watts = [by_name[name].watts(now_ns) for name in live.node.level.members] if live.node.level else []
    told = [value for value in watts if value is not None]
    if told and len(told) == len(watts):
        yield "node_power_watts", (), sum(told)
    fit = calibrate(live.residual.alike)
    if fit is not None:
        yield "calibration_offset_watts", (), fit.offset_watts
        yield "calibration_slope_ratio", (), fit.slope_ratio
        yield "calibration_band_ratio", (), fit.band_ratio


def _of_meter(name: str, meter: Meter, now_ns: int) -> Iterator[Gauge]:
    validity = meter.validity(now_ns)
    if validity is None or meter.estimated:
        return
    yield "device_valid", (name, validity.reason), float(validity.reason == "ok")
    yield "device_known_ratio", (name,), validity.known_ratio
    yield "device_largest_gap_seconds", (name,), validity.largest_gap_seconds
    if meter.check is not None:
        yield "device_energy_check_ratio", (name,), meter.check.ratio
