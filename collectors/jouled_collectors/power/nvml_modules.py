"""Superchips on which two GPUs show one and the same module meter: it is counted once."""

import logging
import time
from collections.abc import Sequence

import pynvml

from jouled.model.device import DeviceKind
from jouled_collectors.power.nvml_gpu import Gpu

ROUNDS = 6
PAUSE_SECONDS = 0.1
"""So many comparisons with this pause see several steps of a meter, which moves about every 100 ms."""

LEAST_STEPS = 2
"""Meters that showed less were asleep: that they agree says nothing."""

_logger = logging.getLogger(__name__)


def without_shared_modules(gpus: Sequence[Gpu]) -> list[Gpu]:
    """All but those whose module is counted by a GPU before them.

    Told by the same module id; ids are of GPUs on some baseboards, so meters that move together are one as well.
    """
    kept: list[Gpu] = []
    for gpu in gpus:
        first = next((other for other in kept if _is_same_module(other, gpu)), None)
        if first is None:
            kept.append(gpu)
        else:
            _logger.info("%s reports the same module as %s: it is counted once", gpu.device.name, first.device.name)
    return kept


def _is_same_module(first: Gpu, second: Gpu) -> bool:
    if first.meter.kind is not DeviceKind.MODULE or second.meter.kind is not DeviceKind.MODULE:
        return False
    # 0 is every product without a baseboard, not one module.
    if _module_id(first) == _module_id(second) != 0:
        return True
    return first.meter.method == second.meter.method and _move_together(first, second)


def _module_id(gpu: Gpu) -> int:
    try:
        return int(pynvml.nvmlDeviceGetModuleId(gpu.handle))
    except pynvml.NVMLError:
        return 0


def _move_together(first: Gpu, second: Gpu) -> bool:
    """Whether the second's value always lies between two of the first's, read around it, while both move."""
    seen = set()
    for round_number in range(ROUNDS):
        if round_number:
            time.sleep(PAUSE_SECONDS)
        try:
            before = first.meter.read(first.handle)
            value = second.meter.read(second.handle)
            after = first.meter.read(first.handle)
        except pynvml.NVMLError:
            return False
        if not min(before, after) <= value <= max(before, after):
            return False
        seen.add(value)
    return len(seen) > LEAST_STEPS
