"""Walks through a BMC's resources by their links and finds the meters that are wanted, each device once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from msgspec import structs

from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.redfish_meters import Extract, Found, Meter, counter_keeps_up, environment, from_report
from jouled_collectors.power.redfish_parse import (
    Document,
    excerpt_watts,
    is_there,
    last_segment,
    link,
    links,
    matching_id,
    numbers_of,
    power_control_watts,
    sensor_watts,
    supply_id,
    supply_indices,
    supply_input_watts,
    text,
    whole_power_control,
)
from jouled_collectors.power.redfish_settings import BmcSettings
from jouled_collectors.power.settings import FEED

Get = Callable[[str], Awaitable[Document]]

MOST_MEMBERS = 64
"""Of one collection so many are looked at: an HGX baseboard has some 40 chassis, a rack PDU up to 54 outlets."""

COUNTER_LOOK_SECONDS = 2.0
"""Time between two looks at a counter: BMCs refresh their sensors every second or so."""

SKIPPED_REASONS = frozenset({"not_found", "garbage", "server_error", "redirect", "too_large"})
"""Failures of one resource that say nothing about the others."""

_INSIDE_A_NODE = {"Card", "Cartridge", "Component", "Drawer", "Expansion", "Module", "StorageEnclosure", "Zone"}
_AROUND_NODES = {"HeatExchanger", "ImmersionTank", "Pod", "PowerStrip", "Rack", "RackGroup", "Row", "Shelf", "Sidecar"}
_NO_NODE = frozenset(_INSIDE_A_NODE | _AROUND_NODES)
"""`ChassisType` (DSP8010) of what is never a node by itself."""

_HGX_PREFIX = "HGX"
"""Ids of the baseboard's own chassis and system, as NVIDIA's BMCs list them beside those of the host."""

_log = logging.getLogger(__name__)


async def find_meters(settings: BmcSettings, root: Document, get: Get) -> list[Meter]:
    """All meters that the settings ask for.

    Raises:
        SourceError: the BMC fails, or does not have what is asked for.
    """
    finder = _Finder(settings, root, get)
    meters: list[Meter] = []
    if "node" in settings.wanted:
        meters += await finder.node() or await finder.supplies()
    if "psus" in settings.wanted:
        known = {meter.device.name for meter in meters}
        meters += [meter for meter in await finder.supplies() if meter.device.name not in known]
    if "gpus" in settings.wanted:
        meters += await finder.gpus()
    if "shelves" in settings.wanted:
        meters += await finder.shelves()
    if settings.outlets:
        meters += await finder.outlets()
    if not meters:
        message = f"{settings.name} has no power meter among: {', '.join(sorted(settings.wanted))}"
        mend = "Set meters, and where the chassis is not recognised chassis, of this BMC in [[power.redfish.bmcs]]"
        raise SourceError(SourceState.ABSENT, "no_meter", message, mend=mend)
    return meters


def outlet_device(settings: BmcSettings, outlet: str | int) -> Device:
    """An outlet of this node, whether it was found yet or not; all of them together are the node's feed."""
    return Device(name=f"{settings.name}-outlet-{outlet}", kind=DeviceKind.OUTLET, parent=FEED, source="redfish")


class _Finder:
    """One walk; what it has read it does not ask for again."""

    def __init__(self, settings: BmcSettings, root: Document, get: Get) -> None:
        self._settings = settings
        self._root = root
        self._get = get
        self._seen: dict[str, Document] = {}
        self._seen_at_seconds: dict[str, float] = {}

    async def node(self) -> list[Meter]:
        """The meter of the whole node: of the first chassis that has one, never a sum."""
        if self._settings.node_sensor:
            uri = self._settings.node_sensor
            device = self._device("node", DeviceKind.NODE, {}, "redfish_sensor")
            meter = _told(Meter(device=device, uris=(uri,), extract=sensor_watts), await self._look(uri))
            return [meter] if meter else []
        for chassis in await self._node_chassis():
            environment_uri = link(chassis, "EnvironmentMetrics")
            found = environment(environment_uri, await self._look(environment_uri))
            meter = await self._meter(found, self._device("node", DeviceKind.NODE, chassis), "environment")
            meter = meter or await self._power_control(chassis)
            if meter is not None:
                return [meter]
        return []

    async def supplies(self) -> list[Meter]:
        """The input of each power supply of the node; none unless all that are installed tell."""
        for chassis in await self._node_chassis():
            inputs = await self._supply_inputs(chassis)
            numbers = numbers_of([supply for supply, _, _ in inputs])
            meters = [
                Meter(
                    device=self._device(f"psu{number}", DeviceKind.PSU, {}, "redfish_supply_input"),
                    uris=(uri,),
                    extract=extract,
                )
                for number, (_, uri, extract) in zip(numbers, inputs, strict=True)
            ]
            if meters:
                return meters
        return []

    async def gpus(self) -> list[Meter]:
        """The GPUs of an HGX baseboard, by the processors of every system."""
        systems = await self._members(link(self._root, "Systems"))
        processors = [
            (uri, processor)
            for system in systems.values()
            for uri, processor in (await self._members(link(system, "Processors"))).items()
            if text(processor, "ProcessorType") == "GPU" and is_there(processor)
        ]
        for _, processor in processors:
            await self._look(link(processor, "EnvironmentMetrics"))
        meters: list[Meter] = []
        numbers = numbers_of([last_segment(uri) for uri, _ in processors])
        for number, (_, processor) in zip(numbers, processors, strict=True):
            uri = link(processor, "EnvironmentMetrics")
            device = self._device(f"gpu{number}", DeviceKind.GPU, processor)
            device = structs.replace(device, name=f"hgx-gpu{number}", index=int(number))
            meter = await self._meter(environment(uri, await self._look(uri)), device, "environment")
            meters += [meter] if meter else []
        return meters

    async def shelves(self) -> list[Meter]:
        """Power shelves: their own metrics, else the sum of their supplies' inputs."""
        equipment = await self._look(link(self._root, "PowerEquipment"))
        shelves = list((await self._members(link(equipment, "PowerShelves"))).items())
        if not shelves:
            all_chassis = await self._members(link(self._root, "Chassis"))
            shelves = [(uri, each) for uri, each in all_chassis.items() if self._is_shelf(uri, each)]
        meters: list[Meter] = []
        for number, (_, shelf) in zip(numbers_of([last_segment(uri) for uri, _ in shelves]), shelves, strict=True):
            device = self._device(f"shelf{number}", DeviceKind.SHELF, shelf)
            meter = await self._shelf(shelf, device)
            meters += [meter] if meter else []
        return meters

    async def outlets(self) -> list[Meter]:
        """The outlets that the settings list: all of them or an error, as a part of them looks like a low sum."""
        uris = await self._outlet_uris()
        wanted = {str(outlet): matching_id(str(outlet), list(uris)) for outlet in self._settings.outlets}
        documents = {outlet: await self._look(uris.get(name or "", "")) for outlet, name in wanted.items()}
        meters: list[Meter] = []
        for outlet, name in wanted.items():
            if name is None:
                raise self._no_outlet(outlet, f"not there (there are: {', '.join(uris) or 'none'})")
            device = outlet_device(self._settings, outlet)
            meter = await self._meter(environment(uris[name], documents[outlet]), device, "outlet")
            if meter is None:
                raise self._no_outlet(outlet, "without a power meter")
            meters.append(meter)
        return meters

    async def _node_chassis(self) -> list[Document]:
        """Chassis that may be the node, the likeliest first: of a computer system; a blade, not what contains it."""
        collection = link(self._root, "Chassis")
        if self._settings.chassis:
            return list((await self._members(collection, lambda name: name == self._settings.chassis)).values())
        members = await self._members(collection, lambda name: not name.startswith(_HGX_PREFIX))
        nodes = [each for each in members.values() if text(each, "ChassisType") not in _NO_NODE and is_there(each)]
        of_systems = [each for each in nodes if _host_systems(each)]
        return sorted(of_systems or nodes, key=_distance_from_node)

    async def _power_control(self, chassis: Document) -> Meter | None:
        """The member of the deprecated resource Power that stands for the whole."""
        uri = link(chassis, "Power")
        power = await self._look(uri)
        index = whole_power_control(power)
        if index is None:
            return None
        device = self._device("node", DeviceKind.NODE, chassis, "redfish_power_control")
        return _told(Meter(device=device, uris=(uri,), extract=partial(power_control_watts, index=index)), power)

    async def _supply_inputs(self, chassis: Document) -> list[tuple[str, str, Extract]]:
        """Id, resource and property of the input of each installed supply; empty unless each one tells."""
        subsystem = await self._look(link(chassis, "PowerSubsystem"))
        supplies = await self._members(link(subsystem, "PowerSupplies"))
        modern: list[tuple[str, str, Extract]] = [
            (last_segment(uri), link(each, "Metrics"), _input_watts) for uri, each in supplies.items() if is_there(each)
        ]
        if modern and all([_input_watts(await self._look(uri)) is not None for _, uri, _ in modern]):
            return modern
        uri = link(chassis, "Power")
        power = await self._look(uri)
        old = [(supply_id(power, at), uri, partial(supply_input_watts, index=at)) for at in supply_indices(power)]
        if all(extract(power) is not None for _, _, extract in old):
            return list(old)
        _log.info("%s: not every power supply tells its input, so none is read", self._settings.name)
        return []

    async def _shelf(self, shelf: Document, device: Device) -> Meter | None:
        for key in ("Metrics", "EnvironmentMetrics"):
            uri = link(shelf, key)
            meter = await self._meter(environment(uri, await self._look(uri)), device, "shelf")
            if meter is not None:
                return meter
        inputs = await self._supply_inputs(shelf)
        uris = tuple(dict.fromkeys(uri for _, uri, _ in inputs))
        if len(uris) < max(1, len(inputs)):
            return None
        return Meter(device=structs.replace(device, method="redfish_shelf_supplies"), uris=uris, extract=_input_watts)

    def _is_shelf(self, uri: str, chassis: Document) -> bool:
        if self._settings.chassis:
            return last_segment(uri) == self._settings.chassis
        return text(chassis, "ChassisType") == "Shelf" or "shelf" in last_segment(uri).lower()

    def _no_outlet(self, outlet: str, why: str) -> SourceError:
        message = f"{self._settings.name} outlet {outlet} is {why}"[:300]
        mend = "Set outlets, and pdu if there are several, of this PDU in [[power.redfish.bmcs]]"
        return SourceError(SourceState.ABSENT, "no_outlet", message, mend=mend)

    async def _outlet_uris(self) -> dict[str, str]:
        """The PDU's outlets by Id."""
        equipment = await self._look(link(self._root, "PowerEquipment"))
        pdus = await self._members(link(equipment, "RackPDUs"))
        for uri, pdu in pdus.items():
            if self._settings.pdu in {"", last_segment(uri)}:
                collection = await self._look(link(pdu, "Outlets"))
                return {last_segment(each): each for each in links(collection, "Members")}
        return {}

    async def _meter(self, found: Found, device: Device, method: str) -> Meter | None:
        """The better of counter and gauge; the gauge by the metric report where that is asked for."""
        if found.counter is not None and (found.gauge is None or await self._counter_keeps_up(found)):
            device = structs.replace(device, method=f"redfish_{method}_energy")
            return Meter(device=device, uris=(found.uri,), extract=found.counter, is_counter=True)
        if found.gauge is None:
            return None
        device = structs.replace(device, method=f"redfish_{method}_power")
        meter = Meter(device=device, uris=(found.uri,), extract=found.gauge)
        return await self._reported(meter, found) or _told(meter, await self._look(found.uri))

    async def _counter_keeps_up(self, found: Found) -> bool:
        if found.counter is None or found.gauge is None:
            return False
        before, began = self._seen[found.uri], self._seen_at_seconds[found.uri]
        now = asyncio.get_running_loop().time
        await asyncio.sleep(began + COUNTER_LOOK_SECONDS - now())
        after, ended = await self._get(found.uri), now()
        watts, first, second = found.gauge(after), found.counter(before), found.counter(after)
        if watts is None or first is None or second is None:
            return False
        return counter_keeps_up((first, second), ended - began, watts)

    async def _reported(self, meter: Meter, found: Found) -> Meter | None:
        if not self._settings.metric_report:
            return None
        service = await self._look(link(self._root, "TelemetryService"))
        reports = await self._look(link(service, "MetricReports"))
        for uri in links(reports, "Members"):
            if last_segment(uri) == self._settings.metric_report:
                return from_report(meter, uri, await self._look(uri), found.properties)
        return None

    async def _members(
        self, collection_uri: str, is_wanted: Callable[[str], bool] = lambda _: True
    ) -> dict[str, Document]:
        """The resources of a collection by their URI, as many as `MOST_MEMBERS`. is_wanted: by the Id."""
        uris = [uri for uri in links(await self._look(collection_uri), "Members") if is_wanted(last_segment(uri))]
        documents = {uri: await self._look(uri) for uri in uris[:MOST_MEMBERS]}
        return {uri: document for uri, document in documents.items() if document}

    async def _look(self, uri: str) -> Document:
        """A resource; empty where there is none or it is broken."""
        if not uri:
            return {}
        if uri not in self._seen:
            try:
                self._seen[uri] = await self._get(uri)
                self._seen_at_seconds[uri] = asyncio.get_running_loop().time()
            except SourceError as error:
                if error.reason not in SKIPPED_REASONS:
                    raise
                _log.debug("%s: %s", self._settings.name, error)
                self._seen[uri] = {}
        return self._seen[uri]

    def _device(self, part: str, kind: DeviceKind, resource: Document, method: str = "") -> Device:
        return Device(
            name=f"{self._settings.name}-{part}",
            kind=kind,
            vendor=text(resource, "Manufacturer"),
            product=text(resource, "Model"),
            uuid=_uuid(kind, resource),
            source="redfish",
            method=method,
            indirect=kind is DeviceKind.GPU,
        )


def _uuid(kind: DeviceKind, resource: Document) -> str:
    """As the direct source writes it, so that a GPU shown by both counts once: NVML puts `GPU-` in front."""
    uuid = text(resource, "UUID")
    if kind is DeviceKind.GPU and uuid and text(resource, "Manufacturer").upper().startswith("NVIDIA"):
        return f"GPU-{uuid.removeprefix('GPU-').lower()}"
    return uuid or text(resource, "SerialNumber")


def _distance_from_node(chassis: Document) -> tuple[bool, bool]:
    is_blade = text(chassis, "ChassisType") in {"Blade", "Sled"}
    return not is_blade, bool(link(chassis, "Links", "ContainedBy"))


def _host_systems(chassis: Document) -> list[str]:
    systems = links(chassis, "Links", "ComputerSystems")
    return [uri for uri in systems if not last_segment(uri).startswith(_HGX_PREFIX)]


def _told(meter: Meter, document: Document) -> Meter | None:
    """The meter, if it tells something now."""
    return meter if meter.value(dict.fromkeys(meter.uris, document)) is not None else None


def _input_watts(document: Document) -> float | None:
    return excerpt_watts(document, "InputPowerWatts")
