"""What Redfish documents say: any JSON in, a value or its absence out."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.redfish_trees import lenovo

from jouled.model.device import Device, DeviceKind
from jouled_collectors.power.redfish_meters import Meter, counter_keeps_up, environment, from_report
from jouled_collectors.power.redfish_parse import (
    MOST_WATTS,
    excerpt_joules,
    excerpt_watts,
    link,
    links,
    matching_id,
    number,
    numbers_of,
    power_control_watts,
    report_entry,
    sensor_watts,
    supply_indices,
    supply_input_watts,
    uri,
    whole_power_control,
)

KEYS = st.sampled_from(
    [
        *("@odata.id", "Members", "Reading", "ReadingUnits", "PowerWatts", "EnergyJoules", "EnergykWh", "PowerControl"),
        *("PowerConsumedWatts", "Name", "PhysicalContext", "PowerSupplies", "PowerInputWatts", "InputPowerWatts"),
        *("Status", "State", "MetricValues", "MetricProperty", "MetricValue", "Timestamp", "DataSourceUri", "x"),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["5120", "N/A", "0x1", "1e400", "/redfish/v1/Chassis", "W", "kW", "CPU", "Server Power Control"])
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=15
)
DOCUMENTS = st.dictionaries(KEYS, JSON, max_size=6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5120, 5120.0),
        (0, 0.0),
        ("5120", 5120.0),
        (" 812.5 ", 812.5),
        ("1e3", 1000.0),
        ("5120 W", None),
        ("N/A", None),
        ("", None),
        ("1_000", None),
        ("٣", None),
        ("NaN", None),
        ("-1", None),
        (None, None),
        (True, None),
        ([5120], None),
        ({}, None),
        (-1, None),
        (math.nan, None),
        (math.inf, None),
        (0x7FFF, None),
        (0xFFFF, None),
        ("65535", None),
        (4294967295, None),
        (2**64 - 1, None),
        (10**400, None),
    ],
)
def test_a_number_is_a_reading_or_absent(value: object, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("excerpt", "watts"),
    [
        ({"Reading": 812.5}, 812.5),
        ({"Reading": "812.5"}, 812.5),
        (812, 812.0),
        ({"Reading": 812, "ReadingUnits": "W"}, 812.0),
        ({"Reading": 21.5, "ReadingUnits": "kW"}, 21_500.0),
        ({"Reading": 5000, "ReadingUnits": "mW"}, 5.0),
        ({"Reading": 22, "ReadingUnits": "Cel"}, None),
        ({"Reading": 2_000, "ReadingUnits": "kW"}, None),
        ({"Reading": None}, None),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_watts_in_the_units_that_are_told(excerpt: object, watts: float | None) -> None:
    assert excerpt_watts({"PowerWatts": excerpt}, "PowerWatts") == watts


@pytest.mark.parametrize(
    ("key", "excerpt", "joules"),
    [
        ("EnergyJoules", {"Reading": 1234}, 1234.0),
        ("EnergykWh", {"Reading": 1.5}, 5_400_000.0),
        ("EnergykWh", {"Reading": "2"}, 7_200_000.0),
        ("EnergykWh", {"Reading": 1500, "ReadingUnits": "W.h"}, 5_400_000.0),
        ("EnergyJoules", {"Reading": 3, "ReadingUnits": "kJ"}, 3000.0),
        ("EnergyJoules", {"Reading": 3, "ReadingUnits": "W"}, None),
        ("EnergyJoules", {"Reading": 0}, 0.0),
        ("EnergyJoules", {"Reading": None}, None),
    ],
)
def test_joules_in_the_units_that_are_told(key: str, excerpt: object, joules: float | None) -> None:
    assert excerpt_joules({key: excerpt}, key) == joules


def test_a_sensor_tells_its_own_units() -> None:
    assert sensor_watts({"Reading": 7.8, "ReadingUnits": "kW"}) == 7800.0
    assert sensor_watts({"Reading": 40, "ReadingUnits": "Cel"}) is None


def controls(*members: dict[str, Any]) -> dict[str, Any]:
    return {"PowerControl": list(members)}


@pytest.mark.parametrize(
    ("power", "watts"),
    [
        (controls({"PowerConsumedWatts": 640}), 640.0),
        (lenovo()["/redfish/v1/Chassis/1/Power"], 900.0),
        (controls({"Name": "CPU Power", "PowerConsumedWatts": 250}), None),
        (controls({"PhysicalContext": "GPU", "PowerConsumedWatts": 250}), None),
        (controls({"PowerConsumedWatts": 700}, {"Name": "System Power Control", "PowerConsumedWatts": 690}), 690.0),
        (controls({"Name": "Server", "PowerConsumedWatts": None}, {"PowerConsumedWatts": 500}), 500.0),
        (controls({"PowerConsumedWatts": 400}, {"PowerConsumedWatts": 400}), 400.0),
        (controls({"Name": "Server Power Control", "PowerConsumedWatts": "812"}), 812.0),
        ({"PowerControl": {"PowerConsumedWatts": 1}}, None),
        ({"PowerControl": [None, 3, "x"]}, None),
        ({}, None),
    ],
)
def test_one_power_control_stands_for_the_whole_and_none_is_added(power: dict[str, Any], watts: float | None) -> None:
    index = whole_power_control(power)
    assert (None if index is None else power_control_watts(power, index)) == watts


def test_a_supply_that_is_not_there_is_left_out() -> None:
    power = {"PowerSupplies": [{"PowerInputWatts": 400}, {"Status": {"State": "Absent"}}, {"PowerInputWatts": 0}]}
    assert [supply_input_watts(power, index) for index in supply_indices(power)] == [400.0, 0.0]


@pytest.mark.parametrize("path", ["https://evil.example/x", "//evil.example/x", "redfish/v1", "/a b", "/a\nb", "/\\x"])
def test_a_link_to_elsewhere_is_none(path: str) -> None:
    assert uri({"@odata.id": path}) == ""
    assert links({"Members": [{"@odata.id": path}, {"@odata.id": "/ok"}, {"@odata.id": "/ok"}]}, "Members") == ["/ok"]


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        (["PSU.Slot.1", "PSU.Slot.2"], ["1", "2"]),
        (["0", "1"], ["0", "1"]),
        (["GPU_SXM_08", "GPU_SXM_10"], ["8", "10"]),
        (["left", "right"], ["1", "2"]),
        (["A1", "B1"], ["1", "2"]),
        ([], []),
    ],
)
def test_short_names_of_members(ids: list[str], numbers: list[str]) -> None:
    assert numbers_of(ids) == numbers


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("5", "OUTLET5"), ("OUTLET12", "OUTLET12"), ("1", None), ("2", "OUTLET02"), ("99", None), ("", None)],
)
def test_an_outlet_is_meant_by_its_id_or_its_number(wanted: str, found: str | None) -> None:
    assert matching_id(wanted, ["OUTLET5", "OUTLET12", "OUTLET02", "A1", "B1"]) == found


def test_the_last_entry_of_a_report_is_its_newest() -> None:
    entry = {"MetricProperty": "/redfish/v1/Chassis/A/Sensors/P#/Reading", "MetricValue": "1"}
    other = {"MetricProperty": "/redfish/v1/Chassis/B/Sensors/P", "MetricValue": "3"}
    report = {"MetricValues": [entry, {**entry, "MetricValue": "2"}, other, None]}
    assert report_entry(report, ["", "/redfish/v1/Chassis/A/Sensors/P"])["MetricValue"] == "2"
    assert report_entry(report, ["/redfish/v1/Chassis/C"]) == {}


@pytest.mark.parametrize(
    ("moved", "watts", "keeps_up"),
    [
        (2000, 1000, True),
        (1100, 1000, True),
        (0, 1000, False),
        (3_600_000, 1000, False),
        (-5, 1000, False),
        (0, 0, False),
    ],
)
def test_a_counter_is_taken_only_if_it_moves_as_the_gauge_says(moved: float, watts: float, keeps_up: bool) -> None:
    assert counter_keeps_up((1e9, 1e9 + moved), 2.0, watts) is keeps_up


@pytest.mark.parametrize(("kind", "value"), [(DeviceKind.NODE, None), (DeviceKind.PSU, 0.0), (DeviceKind.OUTLET, 0.0)])
def test_zero_watts_are_absent_where_something_must_run(kind: DeviceKind, value: float | None) -> None:
    meter = Meter(device=Device(name="a", kind=kind), uris=("/x",), extract=lambda _: 0.0)
    assert meter.value({"/x": {}}) == value


def test_a_sum_with_a_missing_part_is_absent() -> None:
    meter = Meter(
        device=Device(name="a", kind=DeviceKind.SHELF), uris=("/x", "/y"), extract=lambda d: number(d.get("w"))
    )
    assert meter.value({"/x": {"w": 1}, "/y": {"w": 2}}) == 3.0
    assert meter.value({"/x": {"w": 1}}) is None
    assert meter.value({"/x": {"w": 1}, "/y": {"w": None}}) is None


PARSERS: list[Callable[[dict[str, Any]], float | None]] = [
    lambda d: excerpt_watts(d, "PowerWatts"),
    lambda d: excerpt_joules(d, "EnergyJoules"),
    lambda d: excerpt_joules(d, "EnergykWh"),
    sensor_watts,
    lambda d: power_control_watts(d, whole_power_control(d) or 0),
    lambda d: next((supply_input_watts(d, index) for index in supply_indices(d)), None),
]


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS)
def test_any_json_is_a_plausible_value_or_absent(document: dict[str, Any]) -> None:
    for parse in PARSERS:
        value = parse(document)
        assert value is None or (math.isfinite(value) and value >= 0)
    for path in [link(document, "PowerWatts"), *links(document, "Members")]:
        assert not path or (path.startswith("/") and not path.startswith("//"))
    watts = excerpt_watts(document, "PowerWatts")
    assert watts is None or watts <= MOST_WATTS


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS)
def test_any_json_makes_meters_that_tell_or_are_absent(document: dict[str, Any]) -> None:
    found = environment("/x", document)
    device = Device(name="a", kind=DeviceKind.NODE)
    for extract, is_counter in ((found.gauge, False), (found.counter, True)):
        if extract is not None:
            meter = Meter(device=device, uris=("/x",), extract=extract, is_counter=is_counter)
            value = meter.value({"/x": document})
            if value is not None:
                meter.reading(value, 1)
            reported = from_report(meter, "/r", document, [*found.properties, "x"])
            assert reported is None or reported.extract(document) is not None


@given(st.text(max_size=30))
def test_any_text_as_a_number(value: str) -> None:
    found = number(value)
    assert found is None or json.loads(json.dumps(found)) >= 0
