"""The life of the process: one daemon after another as the configuration is read again, and an end in time."""

import asyncio
import logging
import os
import resource
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from jouled.app.config import Config, RunOptions
from jouled.app.runtime import heap, log
from jouled.app.runtime.companion import Companion
from jouled.app.runtime.daemon import STOP_SECONDS, Daemon
from jouled.app.runtime.reloads import Reloads
from jouled.app.runtime.signals import Signals
from jouled.model.errors import JouledError

RELOAD_SECONDS = 30.0
"""A stop that a start follows may take longer: it is no reason to end the process."""

EXIT_SECONDS = 1.0
"""After an orderly end, threads that hang (a name that does not resolve, a disk) are waited for no longer."""

_log = logging.getLogger(__name__)


def run(
    config: Config,
    options: RunOptions,
    companion: Companion | None = None,
    reread: Callable[[], Config] | None = None,
    *,
    ends_process: bool = False,
) -> int:
    """Run the daemon until SIGTERM or SIGINT; the exit code. `reread` gives the configuration anew on SIGHUP.

    ends_process: the process ends with it, whatever threads may hang.

    Raises `JouledError` if it cannot start.
    """
    log.set_up()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold tokens and ids
    heap.keep_small()
    reloads, signals = Reloads(config, reread), Signals()
    with asyncio.Runner() as runner:
        while True:
            try:
                daemon = Daemon(reloads.config, options, companion, reloads=reloads, signals=signals)
                code = _live_once(runner, daemon, None)
            except JouledError as error:
                if not reloads.fall_back(error):
                    raise
                continue
            if not daemon.reloads_now:
                if ends_process:
                    _exit_soon(code)
                return code


def record(config: Config, options: RunOptions, out: Path, seconds: float | None) -> int:
    """Record for so many seconds, without serving, on books that are thrown away; the exit code.

    Raises `JouledError` if it cannot start.
    """
    log.set_up()
    with tempfile.TemporaryDirectory(prefix="jouled-record-") as books:
        options = replace(options, record=out, state=Path(books))
        with asyncio.Runner() as runner:
            return _live_once(runner, Daemon(config, options, serves=False), seconds)


def _live_once(runner: asyncio.Runner, daemon: "Daemon", seconds: float | None) -> int:
    # A driver, a disk or a client may hang for ever; the books of the last second are committed whatever happens.
    deadlines: list[threading.Timer] = []

    def begin_to_end() -> None:
        deadline = threading.Timer(RELOAD_SECONDS if daemon.reloads_now else STOP_SECONDS, _give_up)
        deadline.daemon = True
        deadline.start()
        deadlines.append(deadline)

    try:
        return runner.run(daemon.run(seconds, begin_to_end))
    finally:
        for deadline in deadlines:
            deadline.cancel()


def _exit_soon(code: int) -> None:
    """End the process with this code before long, even if the interpreter waits for a thread."""
    timer = threading.Timer(EXIT_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _give_up() -> None:
    _log.error("the stop took longer than %g s: what came after the last commit is lost", STOP_SECONDS)
    os._exit(1)
