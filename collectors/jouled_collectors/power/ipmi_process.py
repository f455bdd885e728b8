"""Runs ipmitool with limits of time and output, one at a time, and leaves no process behind."""

import atexit
import contextlib
import functools
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.ipmi_request import Request

KILL_SECONDS = 0.5
MILLISECONDS_PER_SECOND = 1_000
MOST_BYTES = 65_536
"""A reading takes some 500 bytes, with `-v` 1 000."""


class Output(NamedTuple):
    """What ipmitool printed, errors among it. is_late, is_too_much: it was stopped for that."""

    text: str
    is_late: bool = False
    is_too_much: bool = False

    @property
    def is_stopped(self) -> bool:
        """It did not come to its own end."""
        return self.is_late or self.is_too_much


class Process:
    """Runs one process at a time."""

    def __init__(self) -> None:
        self._undead: subprocess.Popen[bytes] | None = None

    def run(self, request: Request, words: Sequence[str], limit_seconds: float) -> Output:
        """Run ipmitool with these words to its end or to a limit. Raises `SourceError` if it cannot be started."""
        self._bury()
        try:
            process = subprocess.Popen(
                [*request.command, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(request.environment),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SourceError(
                SourceState.DOWN,
                "not_started",
                f"{request.command[0]} cannot be started: {error.strerror}",
                mend="Try `ipmitool -V` as the daemon's user; under systemd see TasksMax= and MemoryMax=",
            ) from error
        assert process.stdout is not None  # noqa: S101 - it was asked for
        kill = functools.partial(_kill_group, process.pid)
        atexit.register(kill)  # a daemon that ends does not wait for this thread
        try:
            with process.stdout as pipe:
                return _gather(pipe, limit_seconds)
        finally:
            kill()
            atexit.unregister(kill)
            self._reap(process)

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._undead = process

    def _bury(self) -> None:
        """See that the last one is gone: a process that hangs in the driver cannot be killed, and one is enough."""
        if self._undead is None:
            return
        if self._undead.poll() is None:
            raise SourceError(
                SourceState.DOWN,
                "hangs",
                f"ipmitool (process {self._undead.pid}) hangs in the kernel and cannot be killed",
                mend="See `dmesg | grep -i ipmi`; reload the driver (modprobe -r ipmi_si, modprobe ipmi_si) or restart"
                " the BMC (ipmitool mc reset cold)",
            )
        self._undead = None


def _gather(pipe: IO[bytes], limit_seconds: float) -> Output:
    """Read until the end, the time limit or the limit of size."""
    deadline = time.monotonic() + limit_seconds
    gathered = bytearray()
    readable = select.poll()
    readable.register(pipe, select.POLLIN)
    while (left_seconds := deadline - time.monotonic()) > 0:
        if not readable.poll(left_seconds * MILLISECONDS_PER_SECOND):
            break
        piece = os.read(pipe.fileno(), MOST_BYTES)
        gathered += piece
        if not piece or len(gathered) > MOST_BYTES:
            return Output(_text(gathered), is_too_much=bool(piece))
    return Output(_text(gathered), is_late=True)


def _text(gathered: bytearray) -> str:
    return gathered[:MOST_BYTES].decode(errors="replace")


def _kill_group(leader: int) -> None:
    """Kill the process and what it started. Before it is waited for, as its number is its own only until then."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
