"""One heap for all threads, so that a daemon that runs for months holds the memory that it needs and no holes.

glibc gives each thread a heap of its own, and after the first large block that is freed it takes blocks of up to 32 MiB
from the heap instead of mapping them: at 200 requests a second a third of the daemon's memory were holes, and they grew
(mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD; setting a threshold ends its adjustment).
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE_BYTES = 128 * 1024
"""glibc's own threshold before it begins to adjust it."""


def keep_small() -> None:
    """To be called before any thread starts; does nothing where the C library has no `mallopt`."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)
