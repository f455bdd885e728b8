"""The child process of one power source: `python -m jouled.app.runtime.child GROUP NAME`.

Vendor libraries hang in the kernel, crash, and hold their device open, so each lives in a process that shares nothing
with the daemon. Standard input brings one JSON object (`Assignment`); the socket named there takes batches, each a
four-byte big-endian length and that many bytes of msgpack. End of file on the socket means that the daemon is gone:
the child ends at once. It imports as little as it can, for its memory is counted with the daemon's.
"""

import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import msgspec

from jouled.api import PowerCollector
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.samplers import sample

LENGTH_BYTES = 4
"""Bytes of the length in front of each frame."""

NEEDS_NEW_PROCESS = 3
"""Exit code after a fatal error, and where the node does not have the source; the child has reported that itself."""

_DAEMON_GONE = 0
_LONGEST_SLEEP_SECONDS = 0.1


class Assignment(msgspec.Struct, kw_only=True):
    """What the child is to do. `collector` is `module:attribute`, so that no package metadata need be read."""

    collector: str
    settings: msgspec.Raw
    clock_offset_ns: int
    socket_fd: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Sample until told to stop; the arguments only name the source for those who look at the process list."""
    del arguments
    assignment = msgspec.json.decode(sys.stdin.buffer.read(), type=Assignment)
    collector = _load(assignment.collector)
    settings = msgspec.json.decode(assignment.settings, type=collector.settings_type)
    stop = _Stop()

    def on_terminate(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the terminal is the daemon's to handle
    pipe = socket.socket(fileno=assignment.socket_fd)
    threading.Thread(target=_end_with_daemon, args=(pipe,), daemon=True).start()
    encoder = msgspec.msgpack.Encoder()

    def emit(batch: Batch) -> None:
        body = encoder.encode(batch)
        try:
            pipe.sendall(len(body).to_bytes(LENGTH_BYTES, "big") + body)
        except OSError:
            os._exit(_DAEMON_GONE)

    sample(collector, settings, BootClock(assignment.clock_offset_ns), emit, stop, ends_if_absent=True)
    return 0 if stop.is_set() else NEEDS_NEW_PROCESS


class _Stop(threading.Event):
    """Is looked at after a short wait instead of ending it: a sleep takes half the CPU time, 50 times a second."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None or timeout > _LONGEST_SLEEP_SECONDS:
            return super().wait(timeout)
        time.sleep(timeout)
        return self.is_set()


def _load(path: str) -> PowerCollector:
    module, _, attribute = path.partition(":")
    collector_type: type[PowerCollector] = getattr(importlib.import_module(module), attribute)
    return collector_type()


def _end_with_daemon(pipe: socket.socket) -> None:
    """Wait for end of file; the main thread may hang in a driver, so the whole process is ended from here."""
    try:
        pipe.recv(1)
    finally:
        os._exit(_DAEMON_GONE)


if __name__ == "__main__":
    sys.exit(main())
