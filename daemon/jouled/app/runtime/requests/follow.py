"""Follows the files of one receiver: reads in a thread, hands over, and only then keeps how far it came.

A line may be told twice (a stop between the two), never not at all: the core refuses for half an hour what it knows
already, and after a restart what has a receipt.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec.structs import replace

from jouled.api import FileFollow, FollowSettings, LinesRead, Received, ReceivedRequest, Refusals
from jouled.app.runtime.requests.follow_files import FollowedFiles, Piece
from jouled.app.runtime.requests.hand_over import Accept, Count, hand_over
from jouled.model.engine import Engine

POLL_SECONDS = 1.0
"""Between two looks at the folder: as often as the books are committed."""

ENOUGH_REQUESTS = 2_000
MOST_PIECES = 32
"""What is read before it is handed over: with prompts in the lines, most of what is read holds no figure."""

_log = logging.getLogger(__name__)


class Follower:
    """One receiver's files. Nothing is read before their engine is known, nor while the core cannot keep more."""

    def __init__(
        self,
        receiver: FileFollow,
        settings: FollowSettings,
        accept: Accept,
        count: Count,
        engines: Callable[[], Iterable[Engine]],
        state_directory: Path,
    ) -> None:
        self._receiver = receiver
        self._settings = settings
        self._accept = accept
        self._count = count
        self._engines = engines
        state_file = state_directory / f"follow-{receiver.name}.json"
        self._files = FollowedFiles(Path(settings.directory), receiver.pattern, state_file)
        self._lost_files = 0
        self._said: set[str] = set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            told = await self.follow_once() if self._is_engine_known() else False
            if not told:
                await asyncio.sleep(POLL_SECONDS)

    def _is_engine_known(self) -> bool:
        name, kind = self._settings.engine, getattr(self._receiver, "engine_type", "")
        if any(engine.name == name if name else kind in {"", engine.type} for engine in self._engines()):
            return True
        self._say_once(f"nothing is read before {name or f'an engine {kind}'.rstrip()} is found")
        return False

    async def follow_once(self) -> bool:
        """Read on, hand over and keep the position; whether there was anything."""
        received, lines = await asyncio.to_thread(self._read)
        self._count_lost_files()
        if not lines:
            return False
        await hand_over(self._receiver.name, self._accept, received)
        await asyncio.to_thread(self._save)
        return True

    def _read(self) -> tuple[Received, int]:
        """What the next pieces hold, and how many lines that were."""
        requests: list[ReceivedRequest] = []
        refusals = Refusals()
        more: Counter[str] = Counter()
        lines = ignored = 0
        for _ in range(MOST_PIECES):
            piece = self._next_piece()
            if piece is None:
                break
            lines += len(piece.lines) + piece.too_long
            received = self._decode(piece)
            requests += received.requests
            ignored += received.ignored
            more.update(received.more_rejected)
            for refused in received.rejected:
                refusals.add(refused)
            if len(requests) >= ENOUGH_REQUESTS:
                break
        more.update(refusals.more)
        return Received(requests=requests, rejected=refusals.kept, more_rejected=more, ignored=ignored), lines

    def _next_piece(self) -> Piece | None:
        try:
            return self._files.read()
        except FileNotFoundError as error:
            self._say_once(f"{error.filename} does not exist yet: start the engine so that it writes there")
        except OSError as error:
            self._say_once(f"{error.filename or self._settings.directory} cannot be read: {error.strerror}")
        return None

    def _decode(self, piece: Piece) -> Received:
        reasons = {"line_too_long": piece.too_long} if piece.too_long else {}
        read = LinesRead(unix_ns=time.time_ns(), steady_ns=time.monotonic_ns(), written_ns=piece.written_ns)
        try:
            received = self._receiver.decode_lines(piece.lines, read, self._settings)
        except Exception:  # noqa: BLE001 - the boundary to plug-ins: a bug in one loses what it choked on
            _log.exception("the receiver %s failed unexpectedly", self._receiver.name)
            return Received(more_rejected={**reasons, "receiver_failed": len(piece.lines)})
        return replace(received, more_rejected={**received.more_rejected, **reasons}) if reasons else received

    def _count_lost_files(self) -> None:
        lost = self._files.lost_files - self._lost_files
        if lost:
            self._lost_files += lost
            self._count("file_removed", lost)
            _log.warning("%s: %d files were removed before they were read to the end", self._receiver.name, lost)

    def _save(self) -> None:
        try:
            self._files.save()
        except OSError as error:
            self._say_once(f"how far it read cannot be kept, a restart begins further back: {error}")

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            _log.warning("%s: %s", self._receiver.name, sentence)
