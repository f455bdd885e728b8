"""Errors that tell what failed, why, and what mends it.

JouledError
├── ConfigurationError   the configuration cannot be used; the daemon does not start
├── SinkError            a sink takes nothing now; everything is kept and sent again
└── SourceError          a power source or an engine gives nothing now; `state` says which kind of nothing
"""

from enum import StrEnum


class SourceState(StrEnum):
    """What a source is doing (the states of `jouled_source_state`)."""

    OK = "ok"
    STALE = "stale"
    DOWN = "down"
    DENIED = "denied"
    ABSENT = "absent"
    RELEASED = "released"
    QUARANTINED = "quarantined"


class JouledError(Exception):
    """Base of every error the daemon raises on purpose.

    `mend` is the command or configuration key that mends it, in words for the operator; empty if there is none.
    """

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}. {self.mend}" if self.mend else self.message


class ConfigurationError(JouledError):
    """The configuration cannot be used."""


class SinkError(JouledError):
    """A sink takes nothing now: what was to be sent is kept.

    reason: a word for the counter (`unreachable`, `unauthorized`, `throttled`, `server_error`, `not_found`, `refused`,
    `denied`, `disk`).
    retry_after_seconds: how long the other side asked to be left alone; `None`: it did not say.
    """

    def __init__(self, reason: str, message: str, *, mend: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, mend=mend)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class SourceError(JouledError):
    """A source cannot be read now.

    `state` carries the decision: `absent` (the node does not have it: ask again rarely), `denied` (a permission is
    missing: ask again rarely), `down` (it should work: retry with back-off). `fatal` asks for a new process, for a
    library that cannot be loaded again in this one.
    """

    def __init__(self, state: SourceState, reason: str, message: str, *, mend: str = "", fatal: bool = False) -> None:
        super().__init__(message, mend=mend)
        self.state = state
        self.reason = reason
        self.fatal = fatal
