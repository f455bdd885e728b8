"""Which of the library's processors are one socket: a GPU may be split into partitions, and only the first has a meter.

A partition is a processor with the PCI address of its GPU and another function number (`amd-smi list` in CPX mode).
"""

import re
from dataclasses import dataclass, field

from jouled_collectors.power.amd_library import Handle, Library
from jouled_collectors.power.amd_values import count, text

PARTITIONS_OF_MODE = {"SPX": 1, "DPX": 2, "TPX": 3, "QPX": 4}
"""Compute partition modes that say their number. CPX is one for each die: 8 on MI300X, 6 on MI300A."""

MOST_PARTITIONS = 64
"""More than any part has; numbers above it are no numbers of partitions."""

_PCI_ADDRESS = re.compile(r"([0-9a-fA-F]{4,12}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")

_UNKNOWN = (1 << 48, 0, 0, 0)
"""Sorts behind all addresses; a domain has 48 bits at most."""


@dataclass(frozen=True, slots=True)
class Processor:
    """One handle of the library. place: domain, bus, device, function."""

    handle: Handle
    pci_bus_id: str
    place: tuple[int, ...]
    partition: int


@dataclass(slots=True)
class Socket:
    """One GPU: the processor with the meter, and all its partitions that this process sees, by number."""

    first: Processor
    mode: str
    partitions: dict[int, Processor] = field(default_factory=dict)
    partition_count: int = 1


def sockets(library: Library) -> list[Socket]:
    """All GPUs by PCI address, the order of `amd-smi list`; a socket whose first partition is hidden has no meter.

    Raises `AmdError`.
    """
    processors = [_processor(library, handle) for handle in library.call("amdsmi_get_processor_handles")]
    found: list[Socket] = []
    for processor in sorted(processors, key=lambda each: (each.place, each.partition)):
        if processor.partition == 0:
            found.append(Socket(processor, mode(library, processor.handle), {0: processor}))
        elif found and found[-1].first.place[:3] == processor.place[:3] != _UNKNOWN[:3]:
            found[-1].partitions[processor.partition] = processor
    for socket in found:
        # A container may see some of the partitions only: their share is still that of all there are.
        socket.partition_count = max(_told_count(library, socket), max(socket.partitions) + 1)
    return found


def mode(library: Library, handle: Handle) -> str:
    """The compute partition mode, empty where there is none."""
    return text(library.ask("amdsmi_get_gpu_compute_partition", handle)).upper()


def _told_count(library: Library, socket: Socket) -> int:
    if socket.mode != "CPX":
        return PARTITIONS_OF_MODE.get(socket.mode, 1)
    metrics = library.ask("amdsmi_get_gpu_metrics_info", socket.first.handle)
    told = count(metrics.get("num_partition")) if isinstance(metrics, dict) else None
    return told if told is not None and told <= MOST_PARTITIONS else 1


def _processor(library: Library, handle: Handle) -> Processor:
    pci_bus_id = text(library.ask("amdsmi_get_gpu_device_bdf", handle))
    found = _PCI_ADDRESS.fullmatch(pci_bus_id)
    place = tuple(int(part, 16) for part in found.groups()) if found else _UNKNOWN
    kfd = library.ask("amdsmi_get_gpu_kfd_info", handle)
    partition = count(kfd.get("current_partition_id")) if isinstance(kfd, dict) else None
    return Processor(
        handle, pci_bus_id, place, partition if partition is not None and partition < MOST_PARTITIONS else 0
    )
