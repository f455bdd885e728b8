"""Which processes compute on a GPU, as the kernel's compute driver lists them.

`amdsmi_get_gpu_process_list` looks through the open files of every process of the host, and needs rights for those of
other users. The driver's own list costs one small file for each process that computes, and any user may read it:
`/sys/class/kfd/kfd/proc/PID/vram_GPUID` (Linux, drivers/gpu/drm/amd/amdkfd/kfd_process.c), bytes held on that GPU. A
process has a file for every GPU as soon as it computes on one: 0 bytes are of GPUs that it does not use.
"""

from collections.abc import Sequence
from pathlib import Path

from jouled_collectors.power.amd_library import Handle, Library
from jouled_collectors.power.amd_values import count

_LIST = Path("class", "kfd", "kfd", "proc")


def kfd_ids(library: Library, handles: Sequence[Handle]) -> tuple[int, ...]:
    """The driver's numbers of these processors, of which each partition of a GPU has its own; 0 is none."""
    told = [library.ask("amdsmi_get_gpu_kfd_info", handle) for handle in handles]
    numbers = [count(each.get("kfd_id")) for each in told if isinstance(each, dict)]
    return tuple(number for number in numbers if number)


def processes(sysfs: Path, ids: Sequence[int]) -> tuple[int, ...]:
    """Host process ids of those that hold memory of one of these GPUs; none where nobody tells."""
    if not ids:
        return ()
    try:
        listed = [folder for folder in (sysfs / _LIST).iterdir() if folder.name.isascii() and folder.name.isdigit()]
    except OSError:
        return ()
    return tuple(sorted(int(folder.name) for folder in listed if any(_bytes(folder, number) for number in ids)))


def _bytes(folder: Path, number: int) -> int:
    try:
        return int((folder / f"vram_{number}").read_bytes())
    except (OSError, ValueError):  # it has ended meanwhile, or does not know this GPU
        return 0
