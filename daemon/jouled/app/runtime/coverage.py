"""Says in the log when an engine's request events no longer tell of all its tokens, and when they do again."""

import logging

from jouled.model.snapshot import Snapshot

LOW = 0.9
"""Below this something samples or drops the events (`EngineView.coverage`)."""
GOOD = 0.95
"""Above `LOW`, so that a coverage that wavers around it floods no journal."""

_log = logging.getLogger(__name__)


class CoverageWatch:
    """Remembers which engines were complained of; one line for each change."""

    def __init__(self) -> None:
        self._low: set[str] = set()

    def look(self, snapshot: Snapshot) -> None:
        """Compare a snapshot with the one before. Engines that sent no event at all are not complained of."""
        requests = snapshot.counters.get("requests_total", {})
        telling = {engine for (engine, *_), count in requests.items() if count > 0}
        self._low &= {view.engine.name for view in snapshot.engines}
        for view in snapshot.engines:
            name, coverage = view.engine.name, view.coverage
            if coverage is None or name not in telling:
                continue
            if coverage < LOW and name not in self._low:
                self._low.add(name)
                _log.warning(
                    "engine %s: events tell of %d %% of its tokens: traces are sampled or dropped; point it straight"
                    " at jouled or let the collector forward before sampling",
                    name,
                    coverage * 100.0,
                )
            elif coverage >= GOOD and name in self._low:
                self._low.remove(name)
                _log.info("engine %s: events tell of %d %% of its tokens again", name, coverage * 100.0)
