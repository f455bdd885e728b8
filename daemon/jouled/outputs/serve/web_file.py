"""What `web_config_file` says now: read again when it, or a file it names, changes."""

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jouled.model.errors import ConfigurationError
from jouled.outputs.serve.authentication import Passwords
from jouled.outputs.serve.tls import server_context
from jouled.outputs.serve.web_config import read_web_config, refusal

_log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int] | None
"""Date, size and inode of a file; None if it cannot be seen."""


@dataclass(frozen=True)
class Web:
    """What is in force. Without a file: plain HTTP, no users, no headers of the operator's own."""

    context: ssl.SSLContext | None = None
    passwords: Passwords | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class WebFile:
    """The settings of one file. A change that cannot be used is logged once, and what was before stays in force."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigurationError: it cannot be used, or a library that it needs is missing.
        """
        self._path = path
        self._stamps: dict[Path, _Stamp] = {path: None}
        self._web = self._read()

    def current(self) -> Web:
        """The settings in force; costs a look at each file's date, and a few milliseconds after a change."""
        if any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
            self._read_again()
        return self._web

    def _read_again(self) -> None:
        try:
            web = self._read()
            self._check_change(web)
        except ConfigurationError as error:
            _log.error("what was in force before stays: %s", error)
        else:
            self._web = web
            _log.info("%s was read again", self._path)

    def _check_change(self, web: Web) -> None:
        """Refuse what opens the door: a file that is being written looks like one that asks for nothing."""
        before = self._web
        if (web.context is None) is not (before.context is None):
            raise refusal(self._path, "TLS comes and goes with a restart only", mend="Restart jouled")
        if before.passwords is not None and web.passwords is None:
            raise refusal(self._path, "the last user goes with a restart only", mend="Restart jouled")
        if before.context and web.context and web.context.verify_mode < before.context.verify_mode:
            raise refusal(self._path, "certificates are asked for less with a restart only", mend="Restart jouled")

    def _read(self) -> Web:
        # Dates are taken before the files are read: what changes in between is seen the next time.
        self._stamps = {path: _stamp(path) for path in self._stamps}
        config = read_web_config(self._path)
        tls, users = config.tls(), config.users()
        named = [self._path.parent / name for name in (tls.files() if tls else ())]
        self._stamps = {self._path: self._stamps[self._path]} | {path: _stamp(path) for path in named}
        return Web(
            context=server_context(tls, self._path) if tls else None,
            passwords=Passwords(users) if users else None,
            headers=config.headers(),
        )


def _stamp(path: Path) -> _Stamp:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size, seen.st_ino
