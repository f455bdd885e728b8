"""One PDU: its agent is asked, one request in flight, and after a failure with growing pauses."""

import asyncio
import gc
import logging
import random
import traceback
from collections.abc import Mapping, Sequence

from jouled.api import Clock
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.snmp_pdu_client import Client, open_client
from jouled_collectors.power.snmp_pdu_errors import engine_failed, silent
from jouled_collectors.power.snmp_pdu_plan import Plan, find_plan, sockets_missing, unplanned
from jouled_collectors.power.snmp_pdu_profile import Profile
from jouled_collectors.power.snmp_pdu_settings import PduSettings
from jouled_collectors.power.snmp_pdu_values import NoValueError

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 2.0, 60.0
"""Between attempts at a PDU that fails; one that refuses this user is asked at the longest pause at once."""

LOOK_AGAIN_SECONDS = 60.0
"""While sockets cannot be read, their columns are looked for again this often."""

VISIT_REQUESTS = 6
"""A visit is given up after the time limits of so many requests and one more for each socket, whatever pysnmp does."""

PHASE_SHARE, LONGEST_PHASE_SECONDS = 0.1, 0.2
"""Of the interval: so far apart do the nodes of a rack, which all started together, ask their PDU."""

_log = logging.getLogger(__name__)

PduReading = EnergyReading | PowerReading


class PduPart:
    """A PDU.

    error: what is wrong with it or with some of its sockets since the last visit. has_failed: nothing came from it at
    the last visit.
    """

    def __init__(
        self, settings: PduSettings, profiles: Mapping[str, Profile], feed: str, interval_seconds: float, clock: Clock
    ) -> None:
        self.name = settings.name
        self.devices: Sequence[Device] = unplanned(settings, feed)
        self.error: SourceError | None = SourceError(SourceState.DOWN, "starting", f"{self.name} was not asked yet")
        self.has_failed = False
        self.due_ns = clock.now_ns()
        self._settings = settings
        self._profiles = profiles
        self._feed = feed
        self._interval_seconds = interval_seconds
        self._clock = clock
        phase_seconds = min(PHASE_SHARE * interval_seconds, LONGEST_PHASE_SECONDS)
        self._phase_seconds = random.uniform(0, phase_seconds)  # noqa: S311 - keeps no secret
        self._visit_seconds = settings.timeout_seconds * (VISIT_REQUESTS + len(self.devices))
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._client: Client | None = None
        self._plan: Plan | None = None
        self._look_again_ns = 0
        self._logged = ""

    async def visit(self) -> list[PduReading]:
        """Read all sockets; those that cannot be read are left out and named in `error`."""
        if self._plan is not None:
            await asyncio.sleep(self._phase_seconds)
        try:
            async with asyncio.timeout(self._visit_seconds):
                readings = await self._read(await self._planned())
        except TimeoutError:
            self._fail(silent(self._settings))
        except SourceError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - what a library makes of one agent must not stop the others
            _log.debug("%s: %s", self.name, "".join(traceback.format_tb(error.__traceback__)))
            self._fail(engine_failed(self._settings, error))
        else:
            self.has_failed = False
            self._pause_seconds = FIRST_PAUSE_SECONDS
            return readings
        return []

    def close(self) -> None:
        """Let go of the socket; the next visit starts from the beginning."""
        self._plan = None
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _planned(self) -> tuple[Client, Plan]:
        """An agent that can be asked and what to ask. Raises `SourceError`."""
        if self._client is None:
            self._client = await open_client(self._settings)
        now_ns = self._clock.now_ns()
        if self._plan is None or (self.error is not None and now_ns >= self._look_again_ns):
            self._look_again_ns = now_ns + nanoseconds(LOOK_AGAIN_SECONDS)
            self._plan = await find_plan(
                self._client, self._settings, self._profiles, self._feed, self._interval_seconds
            )
            self._describe(self._plan)
        return self._client, self._plan

    async def _read(self, planned: tuple[Client, Plan]) -> list[PduReading]:
        """Read every meter of the plan. Raises `SourceError` if the agent is gone or has nothing to say."""
        client, plan = planned
        readings: list[PduReading] = []
        failures = dict(plan.failures)
        for meters in plan.requests(self._settings.values_per_request):
            before_ns = self._clock.now_ns()
            answers = await client.numbers([oid for meter in meters for oid in meter.oids])
            t_ns = (before_ns + self._clock.now_ns()) // 2
            for meter in meters:
                try:
                    readings.append(meter.reading(answers, t_ns))
                except NoValueError as error:
                    failures[meter.id] = str(error)
        self.error = sockets_missing(self._settings, failures) if failures else None
        if self.error is not None and not readings:
            raise self.error
        return readings

    def _describe(self, plan: Plan) -> None:
        known: dict[str, Device] = {meter.device.name: meter.device for meter in plan.meters}
        self.devices = tuple(known.get(device.name, device) for device in self.devices)
        if plan.why != self._logged:
            self._logged = plan.why
            _log.info("%s: %s", self.name, plan.why)

    def _fail(self, error: SourceError) -> None:
        """Start from the beginning after a pause: what answers then may be another agent, with other passwords."""
        self.close()
        gc.collect()  # pysnmp's engine is full of cycles: at 1 MB each they pile up to 15 MB (measured)
        self.error = error
        self.has_failed = True
        refused = error.state is not SourceState.DOWN
        pause_seconds = LAST_PAUSE_SECONDS if refused else self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LAST_PAUSE_SECONDS)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, keeps no secret
        self.due_ns = self._clock.now_ns() + nanoseconds(pause_seconds * jitter)
