"""What Redfish resources say, read with suspicion: any JSON in, a value or its absence out. Pure.

Property names are those of DMTF's schemas (DSP8010: EnvironmentMetrics, Power, PowerSupplyMetrics, Outlet,
PowerDistributionMetrics, MetricReport). Firmware writes numbers as strings, nulls, sentinels and other units.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jouled.model.units import JOULES_PER_KILOWATT_HOUR

Document = Mapping[str, Any]

MOST_WATTS = 1_000_000.0
"""More than any shelf or outlet carries (a rack of today takes some 150 kW)."""

MOST_JOULES = (2**63 - 1) // 10**6
"""Of which the books hold the microjoules: 300 years at 1 kW."""

SENTINELS = frozenset(float(2**bits - 1) for bits in (15, 16, 31, 32, 63, 64))
"""Registers with all bits set, which firmware passes on for a sensor that does not answer (kepler#1344)."""

_WATTS_PER_UNIT = {"": 1.0, "W": 1.0, "Watts": 1.0, "kW": 1e3, "KW": 1e3, "mW": 1e-3, "MW": 1e6}
"""By `ReadingUnits` (UCUM codes, where `mW` and `MW` differ in case only)."""

_JOULES_PER_UNIT = {
    "J": 1.0,
    "KJ": 1e3,
    "WH": JOULES_PER_KILOWATT_HOUR / 1e3,
    "W.H": JOULES_PER_KILOWATT_HOUR / 1e3,
    "KWH": JOULES_PER_KILOWATT_HOUR,
    "KW.H": JOULES_PER_KILOWATT_HOUR,
}

_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")
_PARTS_OF_A_NODE = re.compile(
    r"\b(cpus?|processors?|memory|dimms?|gpus?|accelerators?|fans?|cooling|storage|drives?|disks?|pci\w*|nics?|sub-?systems?)\b"
)
_THE_WHOLE = re.compile(r"\b(server|system|node|chassis|total)\b")
_CONTEXTS_OF_THE_WHOLE = frozenset({"", "Chassis", "System", "SystemBoard", "ComputeBay", "Intake", "PowerSupply"})


def number(value: object) -> float | None:
    """A number that can be a reading: finite, not negative, no sentinel. Strings of nothing but a number count."""
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return None
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and found >= 0 and found not in SENTINELS else None


def text(document: object, key: str) -> str:
    """A property that is a string; empty where it is none."""
    value = document.get(key) if isinstance(document, Mapping) else None
    return value.strip() if isinstance(value, str) else ""


def uri(value: object) -> str:
    """The path of a link (`{"@odata.id": "/redfish/..."}`); empty unless it is a path on the same host."""
    path = text(value, "@odata.id")
    is_local = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if is_local and " " not in path else ""


def link(document: object, *keys: str) -> str:
    """The link below these keys, empty where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return uri(document)


def links(document: object, *keys: str) -> list[str]:
    """The links of the list below these keys, each once, in their order."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(document, list):
        return []
    return list(dict.fromkeys(path for path in map(uri, document) if path))


def last_segment(path: str) -> str:
    """The Id of a resource by its path."""
    return path.rstrip("/").rpartition("/")[2]


def is_there(document: Document) -> bool:
    """Whether a supply or device is installed and switched on, as far as it says."""
    return text(document.get("Status"), "State") not in {"Absent", "UnavailableOffline", "Disabled"}


def excerpt_watts(document: Document, key: str) -> float | None:
    """Watts of a sensor excerpt (`PowerWatts`, `InputPowerWatts`), or of a plain number in its place."""
    value, unit = _excerpt(document, key)
    scale = _WATTS_PER_UNIT.get(unit)
    found = number(value)
    if found is None or scale is None:
        return None
    watts = found * scale
    return watts if watts <= MOST_WATTS else None


def sensor_watts(document: Document) -> float | None:
    """Watts of a resource Sensor."""
    return excerpt_watts({"PowerWatts": document}, "PowerWatts")


def excerpt_joules(document: Document, key: str) -> float | None:
    """Joules of `EnergyJoules` or `EnergykWh`, whose unit is in the name unless the excerpt says another."""
    value, unit = _excerpt(document, key)
    unit = unit.upper() or key.removeprefix("Energy").upper().replace("JOULES", "J")
    found = number(value)
    scale = _JOULES_PER_UNIT.get(unit)
    return None if found is None or scale is None or found * scale > MOST_JOULES else found * scale


def data_source(document: Document, key: str) -> str:
    """The sensor behind an excerpt; empty where it is not told."""
    return text(document.get(key), "DataSourceUri")


def whole_power_control(document: Document) -> int | None:
    """Index in `PowerControl` of the member that stands for the whole node.

    Members are nested or duplicate (server, its CPUs, its memory), so they are never added up. Those of a part, by
    context or name, are left out; of the others one that tells watts goes before one that does not, one that calls
    itself server, system, node, chassis or total before one that does not, then the first.
    """
    members = _dicts(document.get("PowerControl"))
    candidates = [
        (number(member.get("PowerConsumedWatts")) is None, not _THE_WHOLE.search(_name(member)), index)
        for index, member in members
        if not _is_of_a_part(member)
    ]
    return min(candidates)[2] if candidates else None


def power_control_watts(document: Document, index: int) -> float | None:
    """`PowerConsumedWatts` of this member of `PowerControl`."""
    member = _member(document.get("PowerControl"), index)
    return excerpt_watts(member, "PowerConsumedWatts")


def supply_indices(document: Document) -> list[int]:
    """Indices in `PowerSupplies` (resource Power) of the installed ones."""
    return [index for index, supply in _dicts(document.get("PowerSupplies")) if is_there(supply)]


def supply_id(document: Document, index: int) -> str:
    """The `MemberId` of this member of `PowerSupplies`."""
    return text(_member(document.get("PowerSupplies"), index), "MemberId")


def supply_input_watts(document: Document, index: int) -> float | None:
    """`PowerInputWatts` of this member of `PowerSupplies` (never `LastPowerOutputWatts`, which is behind its loss)."""
    return excerpt_watts(_member(document.get("PowerSupplies"), index), "PowerInputWatts")


def report_entry(document: Document, properties: Sequence[str]) -> Document:
    """The newest value of a metric report for one of these properties (URIs of sensors); empty where it has none."""
    wanted = {_bare_property(each) for each in properties if each}
    found: Document = {}
    for _, entry in _dicts(document.get("MetricValues")):
        if _bare_property(text(entry, "MetricProperty")) in wanted:
            found = entry
    return found


def numbers_of(ids: Sequence[str]) -> list[str]:
    """Short, stable and unique suffixes for resources: the number that ends their Id, else their place from 1."""
    ends = [match[0].lstrip("0") or "0" if (match := re.search(r"[0-9]{1,9}\Z", each)) else "" for each in ids]
    if "" in ends or len(set(ends)) < len(ends):
        return [str(place) for place in range(1, len(ids) + 1)]
    return ends


def matching_id(wanted: str, ids: Sequence[str]) -> str | None:
    """The Id that is meant: the same one, else the only one that ends with the same number."""
    if wanted in ids:
        return wanted
    same_end = [each for each in ids if wanted.isdecimal() and re.search(rf"(^|\D)0*{wanted.lstrip('0')}\Z", each)]
    return same_end[0] if len(same_end) == 1 else None


def _excerpt(document: object, key: str) -> tuple[object, str]:
    value = document.get(key) if isinstance(document, Mapping) else None
    if isinstance(value, Mapping):
        return value.get("Reading"), text(value, "ReadingUnits")
    return value, ""


def _dicts(value: object) -> list[tuple[int, Document]]:
    members = value if isinstance(value, list) else []
    return [(index, member) for index, member in enumerate(members) if isinstance(member, Mapping)]


def _member(value: object, index: int) -> Document:
    member = value[index] if isinstance(value, list) and index < len(value) else None
    return member if isinstance(member, Mapping) else {}


def _name(member: Document) -> str:
    return text(member, "Name").lower()


def _is_of_a_part(member: Document) -> bool:
    context = text(member, "PhysicalContext")
    return context not in _CONTEXTS_OF_THE_WHOLE or bool(_PARTS_OF_A_NODE.search(_name(member)))


def _bare_property(path: str) -> str:
    """Reports point at a sensor or at its reading, with or without a fragment: all mean the same."""
    return path.replace("#", "").removesuffix("/").removesuffix("/Reading").casefold()
