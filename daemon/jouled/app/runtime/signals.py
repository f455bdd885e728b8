"""What the operator asks of the running daemon by signals: to end, or to read its configuration again."""

import asyncio
import logging
import signal
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Signals:
    """SIGTERM and SIGINT end, SIGHUP reloads. One object for the life of the process, whichever daemon runs in it."""

    def __init__(self) -> None:
        self._has_ended = False

    def attach(self, on_end: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """From now on this daemon is meant, in the running loop; an end that was asked for before is passed on."""
        loop = asyncio.get_running_loop()

        def end(number: signal.Signals) -> None:
            _log.info("%s: jouled ends", number.name)
            self._has_ended = True
            on_end()
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)  # a second one ends the process at once

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number)
        loop.add_signal_handler(signal.SIGHUP, on_reload)
        if self._has_ended:
            on_end()
