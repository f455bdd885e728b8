"""Says in the log when an engine's own energy meter and the meters of its devices disagree, and when no longer."""

import logging

from jouled.model.snapshot import Snapshot

OFF = 0.05
"""By more than this a sensor, a unit or the set of devices is wrong: counters of one device agree within 1 %."""
GOOD = 0.03
"""Below `OFF`, so that a difference that wavers around it floods no journal."""

_log = logging.getLogger(__name__)


class EnergyWatch:
    """Remembers which engines were complained of; one line for each change."""

    def __init__(self) -> None:
        self._off: set[str] = set()

    def look(self, snapshot: Snapshot) -> None:
        """Compare a snapshot with the one before."""
        self._off &= {view.engine.name for view in snapshot.engines}
        for view in snapshot.engines:
            name, ratio = view.engine.name, view.energy_check_ratio
            if ratio is None:
                continue
            if abs(ratio - 1.0) > OFF and name not in self._off:
                self._off.add(name)
                _log.warning(
                    "engine %s: its own meter tells %.0f %% of what the meters of its devices (%s) tell: are these the"
                    " devices that it runs on, and all of them?",
                    name,
                    ratio * 100.0,
                    ", ".join(view.engine.devices),
                )
            elif abs(ratio - 1.0) <= GOOD and name in self._off:
                self._off.remove(name)
                _log.info("engine %s: its own meter and those of its devices agree again", name)
