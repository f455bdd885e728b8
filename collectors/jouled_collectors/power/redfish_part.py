"""One BMC as a part of the source: found once, then read; when it fails it is left alone for a while."""

import asyncio
import logging
import random
from collections.abc import Sequence

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.units import nanoseconds
from jouled_collectors.power.redfish_find import SKIPPED_REASONS, find_meters, outlet_device
from jouled_collectors.power.redfish_meters import Meter
from jouled_collectors.power.redfish_parse import Document
from jouled_collectors.power.redfish_patience import Patience
from jouled_collectors.power.redfish_session import Session
from jouled_collectors.power.redfish_settings import BmcSettings

ASK_SECONDS = 120.0
"""Finding takes some 50 requests of up to 2 s on a slow BMC; more is a BMC that answers each just in time."""

FIND_AGAIN_SECONDS = 600.0
"""Firmware adds and drops resources when it is updated; while a meter is silent it is looked for again this often."""

MOST_UNCHANGED = 12
"""So many reads in a row may bring nothing new before a report counts as frozen; its period may be a minute."""

PHASE_SECONDS = 0.2
"""Nodes of a rack share PDUs and are started together: each asks up to so much (or 5 % of the interval) later."""

_log = logging.getLogger(__name__)


class Part:
    """One BMC. `ask` runs in the source's event loop, one at a time; the rest is for the sampler's thread.

    error: what is wrong with it; `None`: it works. devices: those found last; before that the outlets that are wanted.
    """

    def __init__(self, settings: BmcSettings, clock: Clock, interval_seconds: float, patience: Patience) -> None:
        self.name = settings.name
        # Outlets before they are found, too: without them a feed of two PDUs would look whole with one.
        self.devices: Sequence[Device] = tuple(outlet_device(settings, outlet) for outlet in settings.outlets)
        starting = SourceError(SourceState.DOWN, "starting", f"{settings.name} is being asked what it has")
        self.error: SourceError | None = patience.error or starting
        self._patience = patience
        self._settings = settings
        self._clock = clock
        self._phase_seconds = random.uniform(0, min(PHASE_SECONDS, 0.05 * interval_seconds))  # noqa: S311 - no secret
        self._session: Session | None = None
        self._meters: Sequence[Meter] = ()
        self._stamps: dict[str, str] = {}
        self._find_again_at_ns = 0
        self._unchanged = 0
        self._readings: list[Reading] = []

    @property
    def has_failed(self) -> bool:
        """Whether it was asked and does not work."""
        return self.error is not None and self.error.reason != "starting"

    def is_due(self) -> bool:
        """Whether it may be asked now."""
        return self._patience.is_over(self._clock.now_ns())

    def take(self) -> list[Reading]:
        """The readings since the last call."""
        readings, self._readings = self._readings, []
        return readings

    async def ask(self) -> None:
        """Find the meters if that is due, and read each once. Raises nothing: `error` says what went wrong."""
        await asyncio.sleep(self._phase_seconds)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                self._readings += await self._ask()
        except SourceError as error:
            self._fail(error)
        except TimeoutError:
            message = f"{self.name} needs more than {ASK_SECONDS:g} s to be read once"
            self._fail(SourceError(SourceState.DOWN, "timeout", message))
        except Exception as error:  # noqa: BLE001 - a bug met at one BMC stops no other one
            _log.exception("reading %s failed unexpectedly", self.name)
            self._fail(SourceError(SourceState.DOWN, "crash", f"{self.name}: {type(error).__name__}"))
        else:
            self.error = None
            self._patience.succeed()

    async def close(self) -> None:
        """Log out."""
        if self._session is not None:
            await self._session.close()

    def _fail(self, error: SourceError) -> None:
        self.error = error
        self._patience.fail(error, self._clock.now_ns())

    async def _ask(self) -> list[Reading]:
        if self._session is None:
            self._session = Session(self._settings)
        if not self._meters or self._is_to_be_found_again():
            await self._find(self._session)
        documents: dict[str, Document] = {}
        times_ns: dict[str, int] = {}
        failure = ""
        for uri in dict.fromkeys(uri for meter in self._meters for uri in meter.uris):
            before_ns = self._clock.now_ns()
            try:
                documents[uri] = await self._session.get(uri)
            except SourceError as error:
                if error.reason not in SKIPPED_REASONS:
                    raise
                failure = f": {error.message}"
            times_ns[uri] = (before_ns + self._clock.now_ns()) // 2
        return self._read(documents, times_ns, failure)

    async def _find(self, session: Session) -> None:
        self._meters = await find_meters(self._settings, await session.root(), session.get)
        self.devices = tuple(meter.device for meter in self._meters)
        self._find_again_at_ns = 0
        self._unchanged = 0

    def _read(self, documents: dict[str, Document], times_ns: dict[str, int], failure: str) -> list[Reading]:
        """What the meters say. Raises `SourceError` where none says anything, or nothing new for long.

        failure: what was wrong with a resource that is missing.
        """
        readings: list[Reading] = []
        told = 0
        for meter in self._meters:
            value = meter.value(documents)
            if value is None:
                continue
            told += 1
            if self._is_new(meter, documents):
                t_ns = sum(times_ns[uri] for uri in meter.uris) // len(meter.uris)
                readings.append(meter.reading(value, t_ns))
        if not told:
            self._meters = ()
            raise SourceError(SourceState.DOWN, "no_reading", f"{self.name} tells no power now{failure}")
        if told == len(self._meters):
            self._find_again_at_ns = 0
        elif not self._find_again_at_ns:
            self._find_again_at_ns = self._clock.now_ns() + nanoseconds(FIND_AGAIN_SECONDS)
        self._unchanged = 0 if readings else self._unchanged + 1
        if self._unchanged >= MOST_UNCHANGED:
            raise SourceError(SourceState.DOWN, "frozen", f"{self.name} gives the same metric report again and again")
        return readings

    def _is_new(self, meter: Meter, documents: dict[str, Document]) -> bool:
        stamp = meter.stamp_of(documents)
        is_new = not stamp or self._stamps.get(meter.device.name) != stamp
        self._stamps[meter.device.name] = stamp
        return is_new

    def _is_to_be_found_again(self) -> bool:
        return 0 < self._find_again_at_ns <= self._clock.now_ns()
