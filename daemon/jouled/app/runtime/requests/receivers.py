"""Feeds the receivers that no HTTP route feeds: by datagrams, gRPC, followed files and drained pages."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path

import aiohttp
from msgspec import Struct

from jouled.api import DatagramIngest, DrainSettings, FileFollow, FollowSettings, JoinsParts, PageDrain, Receiver
from jouled.app.runtime.requests.datagrams import Datagrams
from jouled.app.runtime.requests.drain import Drain
from jouled.app.runtime.requests.follow import Follower
from jouled.app.runtime.requests.hand_over import Accept, Count
from jouled.app.runtime.requests.overdue_parts import release_overdue
from jouled.model.engine import Engine


class Receivers:
    """One task for each way of each receiver; a receiver that fails disturbs no other.

    engines: those that are known; askable: those of them that may be sent a request now.
    """

    def __init__(
        self,
        receivers: Mapping[str, Receiver],
        accept: Accept,
        count: Count,
        engines: Callable[[], Iterable[Engine]],
        askable: Callable[[], Iterable[Engine]],
        session: aiohttp.ClientSession,
        runtime_directory: Path,
        *,
        state_directory: Path,
        settings: Mapping[str, Struct],
    ) -> None:
        self._receivers = receivers
        self._accept = accept
        self._count = count
        self._engines = engines
        self._askable = askable
        self._session = session
        self._runtime_directory = runtime_directory
        self._state_directory = state_directory
        self._settings = settings

    def start(self, group: asyncio.TaskGroup) -> list["asyncio.Task[None]"]:
        """Begin all of them; returns the tasks to be ended."""
        tasks = []
        for receiver in self._receivers.values():
            if isinstance(receiver, DatagramIngest):
                datagrams = Datagrams(receiver, self._accept, self._count, self._engines, self._runtime_directory)
                tasks.append(group.create_task(datagrams.run(), name=f"datagrams: {receiver.name}"))
            if isinstance(receiver, JoinsParts):
                overdue = release_overdue(receiver.name, receiver, self._accept, self._count)
                tasks.append(group.create_task(overdue, name=f"parts: {receiver.name}"))
        tasks += [group.create_task(way, name=name) for name, way in (*self._followers(), *self._drains())]
        return tasks

    def _followers(self) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
        for name, receiver in self._receivers.items():
            settings = self._settings.get(name)
            if isinstance(receiver, FileFollow) and isinstance(settings, FollowSettings) and settings.directory:
                told = (self._accept, self._count, self._engines)
                yield f"follow {name}", Follower(receiver, settings, *told, self._state_directory).run()

    def _drains(self) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
        for name, receiver in self._receivers.items():
            settings = self._settings.get(name)
            if isinstance(receiver, PageDrain) and isinstance(settings, DrainSettings) and settings.own:
                told = (self._accept, self._count, self._askable)
                yield f"drain {name}", Drain(receiver, settings, *told, self._session).run()
