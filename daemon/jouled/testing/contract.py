"""What the daemon relies on in every power source, as assertions that say what is wrong."""

from collections.abc import Callable, Sequence
from math import isfinite

from msgspec import Struct

from jouled.api import PowerCollector, PowerSettings, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.testing.clock import ManualClock
from jouled.testing.trial import Trial, trial

READS = 5
LONGEST_WINDOW_NS = 60_000_000_000
"""A gauge is stamped at the middle of what it averages over; no meter averages over two minutes."""


def hold_to_contract(
    collector: PowerCollector, settings: PowerSettings, tick: Callable[[int], None] = lambda _: None
) -> Trial:
    """Open a source that works, read it, close it, do that again, and check everything the daemon relies on.

    tick: called with the number of each read before it, to let the fake meter go on. Returns the first trial.

    Raises:
        AssertionError: the collector breaks the contract; the message says how.
    """
    _check_collector(collector, settings)
    clock = ManualClock()
    begun_ns = clock.time_ns
    first = trial(collector, settings, clock, reads=READS, between=tick)
    assert first.state is SourceState.OK, f"it does not work: {first.state.value} ({first.reason}): {first.message}"
    _check_devices(first.devices)
    assert any(first.reads), "it told nothing in all reads"
    for readings in first.reads:
        _check_readings(readings, first.devices, begun_ns, clock.time_ns)
    _check_time_goes_on(first.reads)
    again = trial(collector, settings, clock, reads=READS, between=tick)
    assert [device.name for device in again.devices] == [device.name for device in first.devices], (
        "after it was closed and opened again its devices have other names; names must be stable"
    )
    return first


def _check_collector(collector: PowerCollector, settings: PowerSettings) -> None:
    assert collector.name.isidentifier(), f"`{collector.name}` is no name for a table [power.NAME]"
    assert collector.isolation in {"thread", "process"}, f"its isolation is {collector.isolation!r}"
    assert isinstance(settings, collector.settings_type), f"these are no {collector.settings_type.__name__}"
    kind: type[Struct] = collector.settings_type
    assert kind.__struct_config__.forbid_unknown_fields, "its settings take unknown keys: misspelt ones go unnoticed"


def _check_devices(devices: Sequence[Device]) -> None:
    names = [device.name for device in devices]
    assert devices, "it has no device"
    assert all(names), "a device has no name"
    assert len(set(names)) == len(names), f"two devices have one name: {sorted(names)}"
    for device in devices:
        assert device.source, f"{device.name} does not say its source"
        assert device.max_watts is None or device.max_watts > 0, f"the limit of {device.name} is no power"
        assert device.parent != device.name, f"{device.name} contains itself"


def _check_readings(readings: Sequence[Reading], devices: Sequence[Device], begun_ns: int, ended_ns: int) -> None:
    known = {device.name for device in devices}
    for reading in readings:
        assert reading.device in known, f"it tells of `{reading.device}`, which is none of its devices"
        assert begun_ns - LONGEST_WINDOW_NS <= reading.t_ns <= ended_ns, (
            f"{reading.device} is stamped {(reading.t_ns - ended_ns) / 1e9:+.3f} s from the end of the read: use the"
            " clock that was given, and the middle of what the value is of"
        )
        if isinstance(reading, EnergyReading):
            assert isinstance(reading.microjoules, int), f"the counter of {reading.device} is no whole number"
            assert reading.microjoules >= 0, f"the counter of {reading.device} is negative"
        if isinstance(reading, PowerReading):
            assert isfinite(reading.watts), f"{reading.device} tells {reading.watts} W: absent is absent"
            assert reading.watts >= 0, f"{reading.device} tells {reading.watts} W: leave out what is no power"


def _check_time_goes_on(reads: Sequence[Sequence[Reading]]) -> None:
    last: dict[tuple[str, type], int] = {}
    for readings in reads:
        for reading in readings:
            key = (reading.device, type(reading))
            assert reading.t_ns > last.get(key, -1), f"two readings of {reading.device} have one time, or go back"
            last[key] = reading.t_ns
