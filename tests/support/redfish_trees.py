"""Small Redfish trees of several vendors, by DMTF's public schemas: what stands at which path."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

Tree = dict[str, Any]

ROOT = "/redfish/v1/"
DELL = "/redfish/v1/Chassis/System.Embedded.1"


def _link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def collection(path: str, members: Sequence[str]) -> Tree:
    """A collection with these Ids below it."""
    uris = [f"{path}/{member}" for member in members]
    return {path: {"Members": [_link(uri) for uri in uris], "Members@odata.count": len(uris)}}


def root(*services: str) -> Tree:
    """The service root with links to these services."""
    links = {service: _link(f"/redfish/v1/{service}") for service in services}
    sessions = {"Sessions": _link("/redfish/v1/SessionService/Sessions")}
    return {ROOT: {"@odata.id": ROOT, "RedfishVersion": "1.17.0", **links, "Links": sessions}}


def dell() -> Tree:
    """iDRAC: PowerControl with one member, PSUs with their input, a storage enclosure beside the node."""
    chassis = DELL
    supply = {"MemberId": "PSU.Slot.1", "PowerInputWatts": 420.0, "LastPowerOutputWatts": 1400}
    return {
        **root("Chassis", "Systems"),
        **collection("/redfish/v1/Chassis", ["Enclosure.Internal.0-1", "System.Embedded.1"]),
        "/redfish/v1/Chassis/Enclosure.Internal.0-1": {
            "ChassisType": "Enclosure",
            "Power": _link("/redfish/v1/Chassis/Enclosure.Internal.0-1/Power"),
        },
        "/redfish/v1/Chassis/Enclosure.Internal.0-1/Power": {"PowerControl": [{"PowerConsumedWatts": 125}]},
        chassis: {
            "ChassisType": "RackMount",
            "Manufacturer": "Dell Inc.",
            "Model": "PowerEdge XE9680",
            "Links": {"ComputerSystems": [_link("/redfish/v1/Systems/System.Embedded.1")]},
            "Power": _link(f"{chassis}/Power"),
        },
        f"{chassis}/Power": {
            "PowerControl": [{"MemberId": "PowerControl", "Name": "System Power Control", "PowerConsumedWatts": 812}],
            "PowerSupplies": [supply, {**supply, "MemberId": "PSU.Slot.2", "PowerInputWatts": "398"}],
        },
    }


def hpe() -> Tree:
    """iLO: EnvironmentMetrics without power, Power with a nameless member; PSU inputs below PowerSubsystem."""
    chassis = "/redfish/v1/Chassis/1"
    supplies = f"{chassis}/PowerSubsystem/PowerSupplies"
    tree = {
        **root("Chassis", "Systems"),
        **collection("/redfish/v1/Chassis", ["1"]),
        chassis: {
            "ChassisType": "RackMount",
            "Manufacturer": "HPE",
            "Links": {"ComputerSystems": [_link("/redfish/v1/Systems/1")]},
            "EnvironmentMetrics": _link(f"{chassis}/EnvironmentMetrics"),
            "Power": _link(f"{chassis}/Power"),
            "PowerSubsystem": _link(f"{chassis}/PowerSubsystem"),
        },
        f"{chassis}/EnvironmentMetrics": {"TemperatureCelsius": {"Reading": 22}},
        f"{chassis}/Power": {
            "PowerControl": [{"MemberId": "0", "PowerConsumedWatts": 640, "PowerCapacityWatts": 3200}]
        },
        f"{chassis}/PowerSubsystem": {"PowerSupplies": _link(supplies)},
        **collection(supplies, ["0", "1", "2"]),
        f"{supplies}/2": {"Status": {"State": "Absent"}},
    }
    for number, watts in ((0, 330.5), (1, 0)):
        tree[f"{supplies}/{number}"] = {
            "Metrics": _link(f"{supplies}/{number}/Metrics"),
            "Status": {"State": "Enabled"},
        }
        tree[f"{supplies}/{number}/Metrics"] = {
            "InputPowerWatts": {"Reading": watts},
            "OutputPowerWatts": {"Reading": 300.0},
        }
    return tree


def lenovo() -> Tree:
    """XCC: the node's PowerControl stands between those of its parts, which are inside it."""
    chassis = "/redfish/v1/Chassis/1"
    controls = [
        {"MemberId": "0", "Name": "CPU Sub-system Power", "PhysicalContext": "CPU", "PowerConsumedWatts": 250},
        {"MemberId": "1", "Name": "Server Power Control", "PhysicalContext": "ComputeBay", "PowerConsumedWatts": 900},
        {"MemberId": "2", "Name": "Memory Sub-system Power", "PhysicalContext": "Memory", "PowerConsumedWatts": 90},
    ]
    return {
        **root("Chassis"),
        **collection("/redfish/v1/Chassis", ["1"]),
        chassis: {"ChassisType": "RackMount", "Power": _link(f"{chassis}/Power")},
        f"{chassis}/Power": {"PowerControl": controls},
    }


def nested(outer_type: str, inner_type: str) -> Tree:
    """A chassis of 2 400 W inside one of 9 600 W, both of the same system."""
    system = {"ComputerSystems": [_link("/redfish/v1/Systems/1")]}
    tree = {**root("Chassis"), **collection("/redfish/v1/Chassis", ["inner", "outer"])}
    for name, kind, watts in (("inner", inner_type, 2400), ("outer", outer_type, 9600)):
        uri = f"/redfish/v1/Chassis/{name}"
        within = {"ContainedBy": _link("/redfish/v1/Chassis/outer")} if name == "inner" else {}
        tree[uri] = {"ChassisType": kind, "Links": {**system, **within}, "Power": _link(f"{uri}/Power")}
        tree[f"{uri}/Power"] = {"PowerControl": [{"PowerConsumedWatts": watts}]}
    return tree


def supermicro(joules: float | None = None, watts: float = 5120.0) -> Tree:
    """EnvironmentMetrics with power, and an energy counter if told."""
    chassis = "/redfish/v1/Chassis/1"
    metrics: Tree = {"PowerWatts": {"Reading": watts, "DataSourceUri": f"{chassis}/Sensors/total"}}
    if joules is not None:
        metrics["EnergyJoules"] = {"Reading": joules}
    return {
        **root("Chassis"),
        **collection("/redfish/v1/Chassis", ["1"]),
        chassis: {
            "ChassisType": "RackMount",
            "Manufacturer": "Supermicro",
            "EnvironmentMetrics": _link(f"{chassis}/EnvironmentMetrics"),
            "Power": _link(f"{chassis}/Power"),
        },
        f"{chassis}/EnvironmentMetrics": metrics,
        f"{chassis}/Power": {"PowerControl": [{"Name": "System Power Control", "PowerConsumedWatts": 5000}]},
    }


def hgx(gpus: int = 2) -> Tree:
    """A DGX: the host's chassis, the baseboard's chassis inside it, its GPUs, and a report of all."""
    host, board = "/redfish/v1/Chassis/DGX", "/redfish/v1/Chassis/HGX_Chassis_0"
    processors = "/redfish/v1/Systems/HGX_Baseboard_0/Processors"
    report = "/redfish/v1/TelemetryService/MetricReports/HGX_PlatformEnvironmentMetrics_0"
    tree = {
        **root("Chassis", "Systems", "TelemetryService"),
        **collection("/redfish/v1/Chassis", ["HGX_Chassis_0", "DGX"]),
        host: {
            "ChassisType": "RackMount",
            "Links": {"ComputerSystems": [_link("/redfish/v1/Systems/DGX")]},
            "EnvironmentMetrics": _link(f"{host}/EnvironmentMetrics"),
        },
        f"{host}/EnvironmentMetrics": {"PowerWatts": {"Reading": 7800}},
        board: {"ChassisType": "RackMount", "EnvironmentMetrics": _link(f"{board}/EnvironmentMetrics")},
        f"{board}/EnvironmentMetrics": {"PowerWatts": {"Reading": 5600}},
        **collection("/redfish/v1/Systems", ["DGX", "HGX_Baseboard_0"]),
        "/redfish/v1/Systems/DGX": {"Id": "DGX"},
        "/redfish/v1/Systems/HGX_Baseboard_0": {"Processors": _link(processors)},
        **collection(processors, [*(f"GPU_SXM_{n}" for n in range(1, gpus + 1)), "FPGA_0"]),
        f"{processors}/FPGA_0": {
            "ProcessorType": "FPGA",
            "EnvironmentMetrics": _link(f"{processors}/FPGA_0/EnvironmentMetrics"),
        },
        f"{processors}/FPGA_0/EnvironmentMetrics": {"PowerWatts": {"Reading": 30}},
        "/redfish/v1/TelemetryService": {"MetricReports": _link("/redfish/v1/TelemetryService/MetricReports")},
        **collection("/redfish/v1/TelemetryService/MetricReports", ["HGX_PlatformEnvironmentMetrics_0"]),
    }
    values = []
    for number in range(1, gpus + 1):
        gpu = f"{processors}/GPU_SXM_{number}"
        sensor = f"/redfish/v1/Chassis/HGX_GPU_SXM_{number}/Sensors/HGX_GPU_SXM_{number}_Power_0"
        tree[gpu] = {
            "ProcessorType": "GPU",
            "Manufacturer": "NVIDIA",
            "Model": "H100 80GB HBM3",
            "UUID": f"0000000{number}-1111-2222-3333-444444444444",
            "EnvironmentMetrics": _link(f"{gpu}/EnvironmentMetrics"),
        }
        tree[f"{gpu}/EnvironmentMetrics"] = {"PowerWatts": {"Reading": 600.0 + number, "DataSourceUri": sensor}}
        values.append(
            {"MetricProperty": sensor, "MetricValue": f"{650 + number}.25", "Timestamp": "2026-06-29T08:05:10+00:00"}
        )
    tree[report] = {"MetricValues": values}
    return tree


def pdu() -> Tree:
    """A rack PDU: outlet energy in whole kWh, too coarse to count with."""
    unit = "/redfish/v1/PowerEquipment/RackPDUs/1"
    tree = {
        **root("PowerEquipment"),
        "/redfish/v1/PowerEquipment": {"RackPDUs": _link("/redfish/v1/PowerEquipment/RackPDUs")},
        **collection("/redfish/v1/PowerEquipment/RackPDUs", ["1"]),
        unit: {"Manufacturer": "Contoso", "Outlets": _link(f"{unit}/Outlets")},
        **collection(f"{unit}/Outlets", [f"OUTLET{n}" for n in range(1, 13)]),
    }
    for number in range(1, 13):
        tree[f"{unit}/Outlets/OUTLET{number}"] = {
            "PowerWatts": {"Reading": 100.0 * number},
            "EnergykWh": {"Reading": 36166},
        }
    tree[f"{unit}/Outlets/OUTLET12"] = {"PowerState": "On"}
    return tree


def shelf(*, own_metrics: bool) -> Tree:
    """A power shelf that tells its power, or only that of its six supplies."""
    chassis = "/redfish/v1/Chassis/PowerShelf_0"
    supplies = f"{chassis}/PowerSubsystem/PowerSupplies"
    tree = {
        **root("Chassis"),
        **collection("/redfish/v1/Chassis", ["PowerShelf_0"]),
        chassis: {
            "ChassisType": "Shelf",
            "EnvironmentMetrics": _link(f"{chassis}/EnvironmentMetrics"),
            "PowerSubsystem": _link(f"{chassis}/PowerSubsystem"),
        },
        f"{chassis}/EnvironmentMetrics": {"PowerWatts": {"Reading": 21.5, "ReadingUnits": "kW"}} if own_metrics else {},
        f"{chassis}/PowerSubsystem": {"PowerSupplies": _link(supplies)},
        **collection(supplies, [f"ps{n}" for n in range(6)]),
    }
    for number in range(6):
        tree[f"{supplies}/ps{number}"] = {"Metrics": _link(f"{supplies}/ps{number}/Metrics")}
        tree[f"{supplies}/ps{number}/Metrics"] = {"InputPowerWatts": {"Reading": 3000 + number}}
    return deepcopy(tree)
