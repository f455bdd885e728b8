"""Looks for the GPUs of this node and chooses how to read each."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pynvml

from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.nvml_errors import DEVICE_LOST, SOURCE_GONE, source_error
from jouled_collectors.power.nvml_meters import Handle, Meter, probe
from jouled_collectors.power.nvml_status import StatusReader

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Gpu:
    """One GPU. `handle` is `None` while it is lost; it is then asked again at `retry_at_ns`."""

    device: Device
    meter: Meter
    status: StatusReader
    handle: Handle | None
    retry_at_ns: int = 0


def find(
    selected: Sequence[int | str] | None, idle_watts: float | None, uplift_watts: float | None
) -> tuple[list[Gpu], list[int]]:
    """The selected GPUs (indices or UUIDs; `None` is all) that have a meter, and the indices of lost ones.

    Raises `NVMLError` where the source as a whole is gone, `SourceError` where nothing is left to read.
    """
    gpus: list[Gpu] = []
    lost: list[int] = []
    refusals: list[pynvml.NVMLError] = []
    known: set[int | str] = set()
    for index in range(pynvml.nvmlDeviceGetCount()):
        known.add(index)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(pynvml.nvmlDeviceGetUUID, handle)
            known.update([uuid] if uuid else [])
            if selected is None or index in selected or uuid in selected:
                gpus.append(_gpu(index, uuid, handle, idle_watts, uplift_watts))
        except pynvml.NVMLError as error:
            _sort_out(index, error, lost, refusals)
    unknown = [name for name in selected or () if name not in known]
    if selected is not None and not unknown:
        lost = [index for index in lost if index in selected]
    _check(gpus, lost, refusals, unknown, known)
    return _without_shared_modules(gpus), lost


def _sort_out(index: int, error: pynvml.NVMLError, lost: list[int], refusals: list[pynvml.NVMLError]) -> None:
    if error.value in SOURCE_GONE:
        raise error
    if error.value in DEVICE_LOST:
        lost.append(index)
        _logger.warning("gpu%d is lost (%s); the other GPUs go on", index, error)
    else:
        refusals.append(error)
        _logger.warning("gpu%d has no readable energy or power (%s); it is left out", index, error)


def _check(
    gpus: Sequence[Gpu],
    lost: Sequence[int],
    refusals: Sequence[pynvml.NVMLError],
    unknown: Sequence[int | str],
    known: set[int | str],
) -> None:
    """Raises `SourceError` for a selection that names no GPU of this node, and where nothing is left to read."""
    if unknown and not lost:
        have = ", ".join(sorted(map(str, known))) or "none"
        raise SourceError(
            SourceState.ABSENT,
            "unknown_device",
            f"No GPU {', '.join(map(str, unknown))} on this node; it has {have}",
            mend="Correct `devices` in [power.nvml]; a MIG slice has no meter of its own, name its GPU",
        )
    if gpus:
        return
    if lost:
        raise source_error(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST))
    if any(error.value == pynvml.NVML_ERROR_NO_PERMISSION for error in refusals):
        raise source_error(pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION))
    if refusals:
        raise SourceError(
            SourceState.ABSENT,
            "no_meter",
            f"No GPU tells its energy or power ({refusals[0]})",
            mend="A virtual GPU has no meter: read the node from its host, its BMC or its PDU",
        )
    raise SourceError(SourceState.ABSENT, "no_gpu", "NVML lists no GPU to read", mend="Look at: nvidia-smi -L")


def _gpu(index: int, uuid: str, handle: Handle, idle_watts: float | None, uplift_watts: float | None) -> Gpu:
    meter = probe(handle)
    status = StatusReader(meter.kind)
    device = Device(
        name=f"gpu{index}",
        kind=meter.kind,
        vendor="nvidia",
        product=_text(pynvml.nvmlDeviceGetName, handle),
        uuid=uuid,
        pci_bus_id=_text(_pci_bus_id, handle),
        index=index,
        source="nvml",
        method=meter.method,
        quality=meter.quality,
        idle_watts=idle_watts,
        uplift_watts=uplift_watts,
        max_watts=status.power_limit_watts(handle),
    )
    return Gpu(device, meter, status, handle)


def _pci_bus_id(handle: Handle) -> str:
    return str(pynvml.nvmlDeviceGetPciInfo(handle).busId)


def _text(call: Callable[[Handle], str], handle: Handle) -> str:
    """A description that a device may lack; it is no reason to leave its joules out."""
    try:
        return str(call(handle))
    except UnicodeDecodeError:
        return ""
    except pynvml.NVMLError as error:
        if error.value in SOURCE_GONE | DEVICE_LOST:
            raise
        return ""


def _without_shared_modules(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Two GPUs of one superchip report the same module: it is counted once, by its first GPU."""
    first_by_module: dict[int, str] = {}
    kept = []
    for gpu in gpus:
        module = _module_id(gpu.handle) if gpu.meter.kind is DeviceKind.MODULE else 0
        first = first_by_module.setdefault(module, gpu.device.name)
        # 0 is every product without a baseboard, not one module.
        if module == 0 or first == gpu.device.name:
            kept.append(gpu)
        else:
            _logger.info("%s reports the same module as %s; it is counted once", gpu.device.name, first)
    return kept


def _module_id(handle: Handle) -> int:
    try:
        return int(pynvml.nvmlDeviceGetModuleId(handle))
    except pynvml.NVMLError:
        return 0
