"""The times in which the daemon was away, and what it finds when it comes back."""

from msgspec.structs import fields, replace

from jouled.model.engine import ENGINE_FACTS, ENGINE_SIZES, Engine
from jouled.model.units import nanoseconds

RETURN_NS = nanoseconds(60.0)
"""Devices and engines that nobody names for so long after a return are gone."""
KEEP_NS = nanoseconds(24 * 3600.0)
"""No request lasts longer than a day."""

_TOLD_LATER = frozenset({*ENGINE_FACTS, *ENGINE_SIZES}) - {"role"}


class Absences:
    """Times from the last reading before a restart to the first one after it.

    `hardware_went_on`: whether counters of the hardware still count from where they stood; a reboot resets them.
    """

    def __init__(self) -> None:
        self.hardware_went_on = True
        self._spans: list[list[int]] = []
        self._devices: set[str] = set()
        self._engines: set[str] = set()
        self._named: dict[str, Engine] = {}
        self._return_by_ns = 0

    def begin(self, last_ns: int, now_ns: int, devices: set[str], engines: set[str]) -> None:
        """Back again at `now_ns`: until somebody names them, these devices and engines may be gone."""
        self._spans = [span for span in self._spans if span[1] > now_ns - KEEP_NS]
        self._spans.append([last_ns, now_ns])
        self.hardware_went_on = True
        self._devices, self._engines = devices, engines
        self._return_by_ns = now_ns + RETURN_NS

    def metered_again(self, t_ns: int) -> None:
        """A device is read for the first time since."""
        if self._spans and t_ns <= self._return_by_ns:
            self._spans[-1][1] = max(self._spans[-1][1], t_ns)

    def named_device(self, name: str) -> None:
        """A device is there."""
        self._devices.discard(name)

    def named_engine(self, engine: Engine, known: Engine | None, *, is_read: bool = False) -> Engine:
        """An engine is there; what its page told before the restart holds until the page is read again.

        is_read: it was read before the restart. Then its role and how it counts are known better than by who names it,
        for requests of before the restart may become final first.
        """
        self._named.pop(engine.name, None)
        if engine.name not in self._engines or known is None:
            return engine
        self._engines.discard(engine.name)
        if (engine.type, engine.url) != (known.type, known.url):
            return engine
        untold = {
            field.name: getattr(known, field.name)
            for field in fields(Engine)
            if field.name in _TOLD_LATER and not getattr(engine, field.name)
        }
        named = replace(engine, **untold)
        if not is_read:
            return named
        self._named[engine.name] = named
        return replace(named, role=known.role, counter_semantics=known.counter_semantics)

    def read_engine(self, name: str) -> Engine | None:
        """An engine's page is read: the engine as it was named, if anything was held against that; `None` if not."""
        return self._named.pop(name, None)

    def gone(self, now_ns: int) -> tuple[set[str], set[str]]:
        """Devices and engines that did not come back, each once."""
        if now_ns < self._return_by_ns or not (self._devices or self._engines):
            return set(), set()
        devices, self._devices = self._devices, set()
        engines, self._engines = self._engines, set()
        return devices, engines

    @property
    def any(self) -> bool:
        """Whether there was one that a request known today may have lived through."""
        return bool(self._spans)

    def interrupted(self, begin_ns: int, end_ns: int) -> bool:
        """Whether a request over this time ran while nobody metered it."""
        return any(begin_ns < end and begin < end_ns for begin, end in self._spans)
