"""No permutation of faults of meters makes a total go down, or lets energy appear twice.

A board, a package, two outlets and a BMC of one node with known true power; each is read as its faults allow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START

from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.readings import EnergyReading, PowerReading

RANGE_UJ = 262_143_328_850
WATTS = {"gpu0": 600, "cpu0": 200, "a": 500, "b": 500, "bmc": 950}
DEVICES = (
    Device(name="gpu0", kind=DeviceKind.GPU, source="nvml", max_watts=700.0),
    Device(name="cpu0", kind=DeviceKind.CPU_PACKAGE, source="rapl", max_watts=400.0, wrap_microjoules=RANGE_UJ),
    Device(name="a", kind=DeviceKind.OUTLET, source="snmp_pdu", parent="feed", max_watts=3000.0),
    Device(name="b", kind=DeviceKind.OUTLET, source="snmp_pdu", parent="feed", max_watts=3000.0),
    Device(name="bmc", kind=DeviceKind.NODE, source="redfish", max_watts=3000.0),
)
JUMP_UJ = 38 * RANGE_UJ + 200 * 10**9
"""More than anything could have used in the longest silence of a plan, also of a counter that wraps."""
FAULTS = ("absent", "frozen", "sentinel", "reset", "jumping", "wrapping", "flapping", "repeated", "late", "gauge")
SENTINELS = (0xFFFFFFFF * 1000, 2**63 - 1)


@dataclass
class Meter:
    """One meter with a true counter; a fault changes what is read of it."""

    name: str
    true_uj: int = 0
    offset_uj: int = 0
    frozen_uj: int | None = None
    late: list[EnergyReading] = field(default_factory=list)

    def readings(  # noqa: PLR0911 - one for each fault
        self, second: int, fault: str
    ) -> list[EnergyReading | PowerReading]:
        t_ns = START + second * SECOND
        self.true_uj += WATTS[self.name] * 10**6
        raw_uj = self.true_uj + self.offset_uj
        told = EnergyReading(self.name, t_ns, raw_uj % RANGE_UJ if self.name == "cpu0" else raw_uj)
        if fault != "frozen":
            self.frozen_uj = None
        match fault:
            case "absent":
                return []
            case "frozen":
                self.frozen_uj = told.microjoules if self.frozen_uj is None else self.frozen_uj
                return [change(told, microjoules=self.frozen_uj)]
            case "sentinel":
                return [change(told, microjoules=SENTINELS[second % len(SENTINELS)])]
            case "wrapping" if second % 10 == 0 and self.name == "cpu0":
                self.offset_uj += RANGE_UJ - raw_uj % RANGE_UJ
                return [change(told, microjoules=0)]
            case "reset" | "wrapping" if second % 10 == 0:
                self.offset_uj = -self.true_uj
                return [change(told, microjoules=0)]
            case "jumping" if second % 10 == 0:
                self.offset_uj += JUMP_UJ
                return [change(told, microjoules=told.microjoules + JUMP_UJ)]
            case "flapping":
                return [told] if second % 2 else []
            case "repeated":
                return [told, told]
            case "late":
                self.late.append(told)
                return []
            case "gauge":
                return [told, PowerReading(self.name, t_ns, float(WATTS[self.name]))]
        held, self.late = self.late, []
        return [*held, told]


def watch(faults: dict[str, list[tuple[str, int]]], seconds: int, look: Callable[[int, dict], None]) -> Pipeline:
    """Feed every second and look at all counters."""
    pipeline = Pipeline(PARAMETERS)
    for device in DEVICES:
        pipeline.feed(device)
    by_name = {name: Meter(name) for name in WATTS}
    plan = {name: [fault for fault, long in faults.get(name, []) for _ in range(long)] for name in WATTS}
    for second in range(seconds):
        told = [
            reading
            for name, meter in by_name.items()
            for reading in meter.readings(second, plan[name][second] if second < len(plan[name]) else "")
        ]
        pipeline.feed_readings(told)
        pipeline.advance(START + second * SECOND + SECOND // 2)
        look(second, pipeline.snapshot(START + second * SECOND + SECOND // 2).counters)
    return pipeline


PLANS = st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(1, 40)), max_size=5)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.fixed_dictionaries(dict.fromkeys(WATTS, PLANS)))
def test_no_total_goes_down_and_no_joule_appears_twice(faults):
    seen: dict[tuple[str, tuple[str, ...]], float] = {}
    freezes = sum(fault == "frozen" for name in ("a", "b", "bmc") for fault, _ in faults[name])

    def look(second: int, counters: dict) -> None:
        for name, series in counters.items():
            for labels, value in series.items():
                assert value >= seen.get((name, labels), 0), (name, labels, second)
                seen[name, labels] = value
        for (device, _), energy_uj in counters.get("device_energy_joules_total", {}).items():
            assert energy_uj <= WATTS[device] * (second + 1) * 10**6, device
        for (device, _), energy_uj in counters.get("meter_energy_joules_total", {}).items():
            assert energy_uj <= WATTS[device] * (second + 1) * 10**6, device
        node_uj = counters.get("boundary_energy_joules_total", {}).get(("node",), 0)
        # A counter that froze less than 15 s before its level takes over cannot be told from one that stands still.
        assert node_uj <= 1000 * (second + 1 + 15 * freezes) * 10**6

    seconds = max([sum(long for _, long in plan) for plan in faults.values()]) + 30
    pipeline = watch(faults, seconds, look)
    assert pipeline.snapshot(START + seconds * SECOND).total.measured_uj >= 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WATTS)
def test_after_a_fault_a_meter_counts_on_at_its_true_power(name, fault):
    at: dict[int, float] = {}
    family = "device_energy_joules_total" if name in {"gpu0", "cpu0"} else "meter_energy_joules_total"

    def look(second: int, counters: dict) -> None:
        at[second] = sum(value for labels, value in counters[family].items() if labels[0] == name) if second else 0

    watch({name: [("", 20), (fault, 35)]}, 120, look)
    assert at[119] - at[90] == 29 * WATTS[name] * 10**6
    assert at[19] == 19 * WATTS[name] * 10**6
