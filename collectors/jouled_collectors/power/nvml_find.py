"""Looks for the GPUs of this node and chooses how to read each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pynvml

from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.nvml_errors import DEVICE_LOST, SOURCE_GONE, UNSUPPORTED, device_error, source_error
from jouled_collectors.power.nvml_gpu import Gpu
from jouled_collectors.power.nvml_meters import Handle, probe
from jouled_collectors.power.nvml_modules import without_shared_modules
from jouled_collectors.power.nvml_status import StatusReader


@dataclass(frozen=True, slots=True)
class Found:
    """GPUs that have a meter, and what is wrong with those that are not read, by index."""

    gpus: Sequence[Gpu]
    missing: Mapping[int, SourceError]


def find(selected: Sequence[int | str] | None, idle_watts: float | None, uplift_watts: float | None) -> Found:
    """Look at the selected GPUs (indices or UUIDs; `None` is all).

    Raises `NVMLError` where the source as a whole is gone, `SourceError` where nothing is left to read.
    """
    gpus: list[Gpu] = []
    uuids: dict[int, str] = {}
    failures: dict[int, pynvml.NVMLError] = {}
    count = pynvml.nvmlDeviceGetCount()
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuids[index] = _text(pynvml.nvmlDeviceGetUUID, handle)
            if selected is None or index in selected or uuids[index] in selected:
                gpus.append(_gpu(index, uuids[index], handle, idle_watts, uplift_watts))
        except pynvml.NVMLError as error:
            if error.value in SOURCE_GONE:
                raise
            failures[index] = error
    if selected is not None:
        failures = _of_selected(selected, count, uuids, failures)
    if not gpus:
        raise _nothing_to_read(list(failures.values()))
    missing = {index: device_error(f"gpu{index}", error) for index, error in failures.items()}
    return Found(without_shared_modules(gpus), missing)


def _of_selected(
    selected: Sequence[int | str], count: int, uuids: Mapping[int, str], failures: Mapping[int, pynvml.NVMLError]
) -> dict[int, pynvml.NVMLError]:
    """The failures of selected GPUs, of which one that does not even tell its UUID may be any.

    Raises `SourceError` for a selection that names no GPU of this node.
    """
    known: set[int | str] = {*range(count), *filter(None, uuids.values())}
    unknown = [name for name in selected if name not in known]
    nameless = failures.keys() - uuids.keys() if unknown else set()
    if unknown and not nameless:
        have = ", ".join(sorted(map(str, known))) or "none"
        raise SourceError(
            SourceState.ABSENT,
            "unknown_device",
            f"No GPU {', '.join(map(str, unknown))} on this node; it has {have}",
            mend="Correct `devices` in [power.nvml]; a MIG slice has no meter of its own, name its GPU",
        )
    return {
        index: error
        for index, error in failures.items()
        if index in selected or index in nameless or uuids.get(index) in selected
    }


def _nothing_to_read(failures: Sequence[pynvml.NVMLError]) -> SourceError:
    """Why no GPU is read: what may pass, or can be mended, comes first."""
    if not failures:
        return SourceError(SourceState.ABSENT, "no_gpu", "NVML lists no GPU to read", mend="Look at: nvidia-smi -L")
    refusals = [error for error in failures if error.value in UNSUPPORTED]
    if len(refusals) < len(failures):
        return source_error(next(error for error in failures if error not in refusals))
    return SourceError(
        SourceState.ABSENT,
        "no_meter",
        f"No GPU tells its energy or power ({refusals[0]})",
        mend="A virtual GPU has no meter: read the node from its host, its BMC or its PDU",
    )


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
