"""The MIG instances of a GPU: they have no meter, so each is a partition with its share of the GPU's slices."""

import pynvml

from jouled.model.device import Device, DeviceKind, Quality
from jouled_collectors.power.nvml_meters import Handle


def partitions(gpu: Device, handle: Handle) -> list[Device]:
    """A device for each compute instance, none where MIG is off, not supported, or cannot be listed now.

    Named GPU-giI-ciJ by the ids of its GPU and compute instance, as `nvidia-smi` lists them. Raises nothing.
    """
    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        slices = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError:
        return []
    found = (_partition(gpu, handle, index, slices) for index in range(slices))
    return [partition for partition in found if partition is not None]


def _partition(gpu: Device, handle: Handle, index: int, slices: int) -> Device | None:
    """The instance at this index, of which most are empty."""
    try:
        instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        attributes = pynvml.nvmlDeviceGetAttributes(instance)
        name = (
            f"{gpu.name}-gi{pynvml.nvmlDeviceGetGpuInstanceId(instance)}"
            f"-ci{pynvml.nvmlDeviceGetComputeInstanceId(instance)}"
        )
        product, uuid = pynvml.nvmlDeviceGetName(instance), pynvml.nvmlDeviceGetUUID(instance)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None
    held = attributes.computeInstanceSliceCount
    if not 0 < held <= slices:
        return None
    return Device(
        name=name,
        kind=DeviceKind.PARTITION,
        parent=gpu.name,
        vendor="nvidia",
        product=str(product),
        uuid=str(uuid),
        source="nvml",
        quality=Quality.ESTIMATED,
        fraction=held / slices,
    )
