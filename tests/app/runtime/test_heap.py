"""Threads share one heap, and large blocks go back to the system when they are freed."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from jouled.app.runtime import heap
if sys.argv[1] == "small":
    heap.keep_small()
libc = ctypes.CDLL(None)
del (block := [bytearray(20_000_000)])[:]  # from here on glibc would take such blocks from a heap
kept = bytearray(8_000_000)
together = threading.Barrier(8)
def work():
    held = [bytearray(3000) for _ in range(100)]
    together.wait()
    del held
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(out := libc.fdopen(1, b"w")))
libc.fflush(ctypes.c_void_p(out))
"""


def told(how: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=True)
    if "<malloc" not in done.stdout:
        pytest.skip("this C library has no malloc_info")
    return done.stdout


def mapped_bytes(page: str) -> int:
    line = next(line for line in reversed(page.splitlines()) if 'type="mmap"' in line)
    return int(line.split('size="')[1].split('"')[0])


def test_threads_share_one_heap():
    assert told("as it is").count("<heap ") > 1
    assert told("small").count("<heap ") == 1


def test_large_blocks_are_mapped_after_one_was_freed():
    assert mapped_bytes(told("as it is")) < 8_000_000 <= mapped_bytes(told("small"))
