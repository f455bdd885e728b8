"""Reading the configuration again: what is good takes effect, what is not leaves everything as it is.

A reload is an orderly stop and a start in the same process: what was open goes on from the state (ADR 0006), so every
key can be changed by one and the same way that each restart proves.
"""

import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from jouled.app.config import Config
from jouled.model.errors import JouledError
from jouled.model.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Reloads:
    """The configurations of one process. `read`: reads it again, raises `JouledError`; `None`: it cannot be.

    config: what to run with now. Until `works` says that the daemon runs with it, the last one that did is kept,
    however often it is read again meanwhile.
    """

    def __init__(self, config: Config, read: Callable[[], Config] | None = None) -> None:
        self.config = config
        self._read = read
        self._working: Config | None = None
        self._is_good = True
        self._good_since_seconds = time.time()

    def again(self) -> bool:
        """Read it again; returns whether to start anew with what was read.

        So it is where nothing changed: what the configuration names (a token, a sink's secret) may have.
        """
        if self._read is None:
            _log.info("SIGHUP: this command reads its configuration at the start only")
            return False
        try:
            self.config = self._read()
        except JouledError as error:
            self._refuse(error)
            return False
        return True

    def works(self) -> None:
        """The daemon runs with the configuration last read."""
        if self._working is not None and self._working is not self.config:
            _log.info("the configuration was read again and is in effect")
            self._is_good, self._good_since_seconds = True, time.time()
        self._working = self.config

    def fall_back(self, error: JouledError) -> bool:
        """The daemon does not start with it: returns whether there is one with which it did."""
        if self._working is None or self.config is self._working:
            return False
        self.config = self._working
        self._refuse(error)
        return True

    def _refuse(self, error: JouledError) -> None:
        self._is_good = False
        _log.error("the configuration that was read again is refused, the old one stays: %s", error)

    def added_to(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what became of the last reload in it."""
        told = {
            "config_last_reload_successful": {(): float(self._is_good)},
            "config_last_reload_success_timestamp_seconds": {(): self._good_since_seconds},
        }
        return replace(snapshot, gauges={**snapshot.gauges, **told})
