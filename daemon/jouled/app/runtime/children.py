"""Keeps a sampler running in a child process (child.py), which is replaced when it ends, crashes or hangs."""

import asyncio
import contextlib
import logging
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from jouled.api import PowerCollector, PowerSettings
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.child import LENGTH_BYTES, NEEDS_NEW_PROCESS, Assignment
from jouled.app.runtime.clock import BootClock
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import SourceReport
from jouled.outputs.backoff import Backoff

HUNG_SECONDS = 30.0
"""A child that said nothing for this long is killed. It speaks every 1.5 s, but opening eight GPUs takes seconds."""

_LARGEST_FRAME_BYTES = 8 * 1024 * 1024
_TERMINATE_SECONDS = 1.3
_KILL_SECONDS = 0.5
_LAST_WORDS_SECONDS = 0.2
_POLL_SECONDS = 0.02
_log = logging.getLogger(__name__)


class ChildSupervisor:
    """One child process for one source; `deliver` is called in the loop's thread."""

    def __init__(
        self,
        group: str,
        collector: PowerCollector,
        settings: PowerSettings,
        clock: BootClock,
        deliver: Callable[[Batch], None],
        *,
        hung_seconds: float = HUNG_SECONDS,
    ) -> None:
        self.name = collector.name
        self.pid: int | None = None
        self._group = group
        self._collector = collector
        self._settings = settings
        self._clock = clock
        self._deliver = deliver
        self._hung_seconds = hung_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._released_until = 0.0
        self._is_absent = False
        self._parts: set[str] = set()
        self._missing = Backoff(60.0, 300.0)
        self._broken = self._missing if settings.startup == "ignore" else Backoff(1.0, 30.0)
        self._decoder = msgspec.msgpack.Decoder(Batch)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self._while_released()
            error = await self._life_of_a_child()
            if self._released_until > time.monotonic():
                continue
            if error is not None:
                _log.warning("source %s: %s", self.name, error)
                self._report(error.state, error.reason, error.message)
            await asyncio.sleep((self._missing if self._is_absent else self._broken).next_seconds())

    async def release(self, seconds: float) -> bool:
        """Let go of the device: the child is gone when this returns, and comes back after so many seconds."""
        self._released_until = time.monotonic() + seconds
        self._report(SourceState.RELEASED, "released", f"released for {seconds:g} s")
        if self._process is not None:
            await _end(self._process)
        return True

    async def _while_released(self) -> None:
        while (remaining := self._released_until - time.monotonic()) > 0:
            await asyncio.sleep(min(1.0, remaining))
            self._deliver(self._batch())

    async def _life_of_a_child(self) -> SourceError | None:
        """Start a child and take what it says until it ends. Returns why, unless it has told that itself."""
        try:
            process, pipe = self._spawn()
        except OSError as refused:
            return SourceError(SourceState.DOWN, "no_process", f"no process for it: {refused.strerror or refused}")
        self._process, self.pid = process, process.pid
        reader, writer = await asyncio.open_connection(sock=pipe, limit=_LARGEST_FRAME_BYTES)
        taking = asyncio.create_task(self._take_batches(reader))
        try:
            error = await asyncio.shield(taking)
        finally:
            await self._end_and_hear_out(process, taking)
            writer.close()
            self._process, self.pid = None, None
        await _ended_within(process, math.inf)  # not even SIGKILL ends a process that hangs in its driver
        if error is None and process.returncode != NEEDS_NEW_PROCESS:
            error = SourceError(SourceState.DOWN, "child_ended", f"its process ended with code {process.returncode}")
        return error

    async def _end_and_hear_out(
        self, process: "subprocess.Popen[bytes]", taking: "asyncio.Task[SourceError | None]"
    ) -> None:
        """End the child; what it read since its last batch is the last thing it says."""
        await _end(process)
        _, unheard = await asyncio.wait({taking}, timeout=_LAST_WORDS_SECONDS)
        if unheard:
            taking.cancel()
            _log.warning("source %s: what its process read last is lost, it did not end in time", self.name)

    def _spawn(self) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        ours, theirs = socket.socketpair()
        assignment = Assignment(
            collector=f"{type(self._collector).__module__}:{type(self._collector).__qualname__}",
            settings=msgspec.Raw(msgspec.json.encode(self._settings)),
            clock_offset_ns=self._clock.offset_ns,
            socket_fd=theirs.fileno(),
        )
        command = [sys.executable, "-P", "-m", "jouled.app.runtime.child", self._group, self.name]
        with theirs:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),))
        with contextlib.suppress(OSError):  # it died already: end of file on the socket tells
            if process.stdin is not None:
                with process.stdin as channel:
                    channel.write(msgspec.json.encode(assignment))
        ours.setblocking(False)
        return process, ours

    async def _take_batches(self, reader: asyncio.StreamReader) -> SourceError | None:
        try:
            while True:
                async with asyncio.timeout(self._hung_seconds):
                    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                    if length > _LARGEST_FRAME_BYTES:
                        return SourceError(SourceState.DOWN, "garbage", f"its process sent a frame of {length} bytes")
                    batch = self._decoder.decode(await reader.readexactly(length))
                self._judge(batch)
                self._deliver(batch)
        except TimeoutError:
            message = f"its process said nothing for {self._hung_seconds:g} s and was ended"
            return SourceError(SourceState.DOWN, "hung", message)
        except msgspec.MsgspecError as error:
            return SourceError(SourceState.DOWN, "garbage", f"its process sent what cannot be read: {error}")
        except (OSError, EOFError):
            return None

    def _judge(self, batch: Batch) -> None:
        for report in batch.reports:
            if report.source == self.name:
                self._is_absent = report.state is SourceState.ABSENT
            elif report.reason == "gone":
                self._parts.discard(report.source)
            else:
                self._parts.add(report.source)
        if batch.readings:
            self._broken.reset()
            self._missing.reset()

    def _report(self, state: SourceState, reason: str, message: str) -> None:
        """Tell it of the source and of its parts: nobody asks them now."""
        now_ns = self._clock.now_ns()
        reports = [
            SourceReport(source=source, state=state, reason=reason, message=message, t_ns=now_ns)
            for source in (self.name, *sorted(self._parts))
        ]
        self._deliver(self._batch(*reports))

    def _batch(self, *reports: SourceReport) -> Batch:
        return Batch(
            source=self.name,
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            wall_ns=time.time_ns(),
            reports=list(reports),
        )


async def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process to end, then make it; within two seconds."""
    process.terminate()
    if not await _ended_within(process, _TERMINATE_SECONDS):
        process.kill()
        await _ended_within(process, _KILL_SECONDS)


async def _ended_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
