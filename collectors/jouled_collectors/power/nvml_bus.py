"""Whether a GPU was added to this node while NVML is open."""

import contextlib
from pathlib import Path

import pynvml


class Bus:
    """How many GPUs the driver holds, by its files and by NVML: more than when the source was opened are new ones."""

    def __init__(self, proc_root: Path) -> None:
        self._folder = proc_root / "driver" / "nvidia" / "gpus"
        self._known = self._names()
        self._count = pynvml.nvmlDeviceGetCount()

    def has_more(self) -> bool:
        """Whether a GPU was added."""
        with contextlib.suppress(pynvml.NVMLError):
            if pynvml.nvmlDeviceGetCount() > self._count:
                return True
        return bool(self._names() - self._known)

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._folder.iterdir()}
        except OSError:
            return set()
