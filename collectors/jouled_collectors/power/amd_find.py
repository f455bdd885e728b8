"""Chooses the GPUs to read, names them, and chooses how to read each."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.amd import AmdSettings
from jouled_collectors.power.amd_errors import AmdError, frozen, no_gpu, no_meter
from jouled_collectors.power.amd_library import Handle, Library
from jouled_collectors.power.amd_meters import Choice, Meter, choose
from jouled_collectors.power.amd_processes import kfd_ids
from jouled_collectors.power.amd_sockets import Socket, sockets
from jouled_collectors.power.amd_status import StatusReader, power_limit_watts
from jouled_collectors.power.amd_values import Sample, text

WHOLE_MODULES = ("MI300A",)
"""Products whose socket holds the CPU too, so that its meter does as well (AMD's data sheet: APU, one power limit)."""

TELLING = (SourceState.DENIED, SourceState.DOWN, SourceState.ABSENT)
"""Of several reasons, which is told of the source: what can be mended first."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Gpu:
    """One GPU with its best meter, `None` where nothing answers. refused: answers not to be believed, by method.

    error: why it is not read. failure: of its last call. silent_since_ns: it has not answered since then. ask_at_ns: a
    silent one is left alone until then. last, moved_ns: the last sample and since when the counter stands there.
    """

    device: Device
    handle: Handle
    meter: Meter | None
    refused: Mapping[str, Sample]
    mode: str
    status: StatusReader
    partitions: Sequence[Device] = ()
    error: SourceError | None = None
    failure: AmdError | None = None
    silent_since_ns: int | None = None
    ask_at_ns: int = 0
    last: Sample | None = None
    moved_ns: int = 0


def find(library: Library, settings: AmdSettings) -> list[Gpu]:
    """The selected GPUs; at least one of them has a meter.

    Raises `AmdError` where the source as a whole is gone, `SourceError` where nothing is left to read.
    """
    known = list(enumerate(sockets(library)))
    if not known:
        raise no_gpu()
    uuids = {index: _uuid(library, socket.first.handle) for index, socket in known}
    if settings.devices is not None:
        known = _selected(known, uuids, settings.devices)
    if not known:
        message, mend = "No GPU is selected", "Name some in `devices` of [power.amd], or leave it out to read all"
        raise SourceError(SourceState.ABSENT, "none_selected", message, mend=mend)
    choices = choose(library, [socket.first.handle for _, socket in known])
    gpus = [
        _gpu(library, settings, index, socket, uuids[index], choice)
        for (index, socket), choice in zip(known, choices, strict=True)
    ]
    _check(library, gpus)
    return gpus


def devices_of(gpus: Iterable[Gpu]) -> list[Device]:
    """What the source has: GPUs with a meter, each before its partitions."""
    return [device for gpu in gpus if gpu.meter for device in (gpu.device, *gpu.partitions)]


def _selected(
    known: Sequence[tuple[int, Socket]], uuids: Mapping[int, str], wanted: Sequence[int | str]
) -> list[tuple[int, Socket]]:
    names = {index: {index, uuids[index], socket.first.pci_bus_id.lower()} - {""} for index, socket in known}
    all_names = set[int | str]().union(*names.values())
    asked = {_name(name) for name in wanted}
    unknown = [name for name in wanted if _name(name) not in all_names]
    if unknown:
        have = ", ".join(sorted(map(str, all_names)))
        raise SourceError(
            SourceState.ABSENT,
            "unknown_device",
            f"No GPU {', '.join(map(str, unknown))} on this node; it has {have}",
            mend="Correct `devices` in [power.amd]; a partition has no meter of its own, name its GPU",
        )
    return [(index, socket) for index, socket in known if names[index] & asked]


def _name(wanted: int | str) -> int | str:
    return wanted.lower() if isinstance(wanted, str) else wanted


def _check(library: Library, gpus: Sequence[Gpu]) -> None:
    """Says of each GPU without a meter why. Raises `SourceError`, the most telling of these, where none has one."""
    for gpu in gpus:
        if gpu.meter is None:
            gpu.error = frozen(gpu.device.name) if gpu.refused else _no_meter(library, gpu)
            _logger.info("%s is left out: %s", gpu.device.name, gpu.error.message)
        elif gpu.refused:
            _logger.info("%s: what its energy counter says is not true; its power is read", gpu.device.name)
    errors = [gpu.error for gpu in gpus if gpu.error is not None]
    if len(errors) == len(gpus):
        raise min(errors, key=lambda error: TELLING.index(error.state))


def _no_meter(library: Library, gpu: Gpu) -> SourceError:
    try:
        library.call("amdsmi_get_energy_count", gpu.handle)
    except AmdError as failure:
        return no_meter(gpu.device.name, failure)
    return no_meter(gpu.device.name, None)


def _gpu(library: Library, settings: AmdSettings, index: int, socket: Socket, uuid: str, choice: Choice) -> Gpu:
    handle = socket.first.handle
    product = _product(library, handle)
    device = Device(
        # Not `gpu0`: NVML has that name, and a node may have GPUs of both.
        name=f"amdgpu{index}",
        kind=DeviceKind.MODULE if any(word in product for word in WHOLE_MODULES) else DeviceKind.GPU,
        vendor="amd",
        product=product,
        uuid=uuid,
        pci_bus_id=socket.first.pci_bus_id,
        index=index,
        source="amd",
        method=choice.meter.method if choice.meter else "",
        quality=choice.meter.quality if choice.meter else Quality.MEASURED,
        idle_watts=settings.idle_watts,
        uplift_watts=settings.uplift_watts,
        max_watts=power_limit_watts(library, handle),
    )
    partitions = _partitions(library, device, socket)
    computing = kfd_ids(library, [each.handle for each in socket.partitions.values()])
    status = StatusReader(handle, Path(settings.sysfs_root), computing)
    return Gpu(device, handle, choice.meter, choice.refused, socket.mode, status, partitions)


def _partitions(library: Library, gpu: Device, socket: Socket) -> list[Device]:
    """Devices without readings, for engines to name; their fractions add up to the GPU."""
    if socket.partition_count == 1:
        return []
    seen = socket.partitions
    return [
        Device(
            name=f"{gpu.name}-p{number}",
            kind=DeviceKind.PARTITION,
            parent=gpu.name,
            vendor=gpu.vendor,
            product=gpu.product,
            uuid=_uuid(library, seen[number].handle) if number in seen else "",
            pci_bus_id=seen[number].pci_bus_id if number in seen else "",
            source=gpu.source,
            quality=Quality.ESTIMATED,
            fraction=1.0 / socket.partition_count,
        )
        for number in range(socket.partition_count)
    ]


def _uuid(library: Library, handle: Handle) -> str:
    return text(library.ask("amdsmi_get_gpu_device_uuid", handle)).lower()


def _product(library: Library, handle: Handle) -> str:
    asic = library.ask("amdsmi_get_gpu_asic_info", handle)
    return text(asic.get("market_name")) if isinstance(asic, dict) else ""
