"""The commit of every second: books, snapshot and all that goes to disk with them, of one moment."""

import asyncio
from typing import TYPE_CHECKING

from jouled.app.runtime.chronicle import Chronicle
from jouled.app.runtime.clock import ClockState
from jouled.app.runtime.continuity import Continuity
from jouled.app.runtime.coverage import CoverageWatch
from jouled.app.runtime.durable import Durable
from jouled.app.runtime.engines.energy_watch import EnergyWatch
from jouled.app.runtime.metering import Metering
from jouled.app.runtime.publisher import Commit, Publisher
from jouled.app.runtime.recording.last_minutes import QuarantineRecorder
from jouled.app.runtime.reloads import Reloads

if TYPE_CHECKING:
    from jouled.app.runtime.sinks import Sinks


class Commits:
    """One after another. quarantine: writes what led to a quarantine; `None`: nobody does."""

    def __init__(
        self,
        metering: Metering,
        publisher: Publisher,
        continuity: Continuity,
        chronicle: Chronicle,
        clock: ClockState,
        quarantine: QuarantineRecorder | None,
        reloads: Reloads,
    ) -> None:
        self.publisher = publisher
        self.continuity = continuity
        self.chronicle = chronicle
        self.durable = Durable()
        self._metering = metering
        self._clock = clock
        self._quarantine = quarantine
        self._reloads = reloads
        self._coverage = CoverageWatch()
        self._energy_watch = EnergyWatch()
        self._one = asyncio.Lock()

    async def commit(self, sinks: "Sinks") -> None:
        """Commit and publish. Books and snapshot are of one moment: nothing is fed between them."""
        async with self._one:
            if not self._metering.has_failed:
                await self._commit(sinks)

    async def _commit(self, sinks: "Sinks") -> None:
        metering = self._metering
        self.durable.begin()
        snapshot = metering.own.added_to(metering.pipeline.snapshot(metering.clock.now_ns()))
        snapshot = self._reloads.added_to(sinks.added_to(snapshot))
        commit = Commit(books=metering.pipeline.books(), own=metering.own, clock=self._clock)
        progress = self.continuity.progress()
        self._coverage.look(snapshot)
        self._energy_watch.look(snapshot)
        if self._quarantine is not None:
            snapshot = await self._quarantine.look(snapshot)
        outgoing = sinks.outgoing(snapshot)
        committed = await self.publisher.publish(commit, snapshot, progress, outgoing)
        self.durable.end(committed=committed)
        if committed:
            sinks.committed(outgoing)
            await self.chronicle.look(snapshot)
        else:
            self.continuity.lost()
