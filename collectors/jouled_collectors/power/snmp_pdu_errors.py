"""What can be wrong with a PDU's agent, each with what mends it. Messages hold no secrets."""

import sys
from collections.abc import Mapping
from typing import Any

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.network import LET_OUT
from jouled_collectors.power.snmp_pdu_settings import PduSettings

EXTRA = f"{sys.executable} -m pip install 'jouled[snmp]'"

_REFUSALS: Mapping[str, tuple[str, str, str]] = {
    "UnknownUserName": ("unknown_user", "the agent does not know this user", "Set `user`, or create it on the PDU"),
    "UnknownSecurityName": ("unknown_user", "the agent does not know this user", "Set `user`"),
    "WrongDigest": (
        "wrong_key",
        "the agent refuses the authentication password",
        "Correct the file auth_key_file, or auth_protocol",
    ),
    "AuthenticationFailure": (
        "wrong_key",
        "the authentication password or its protocol is not the agent's",
        "Correct the file auth_key_file, or auth_protocol",
    ),
    "DecryptionError": (
        "wrong_privacy_key",
        "the agent cannot decrypt what it is asked",
        "Correct the file privacy_key_file, or privacy_protocol",
    ),
    "UnsupportedSecurityLevel": (
        "wrong_security_level",
        "the agent lets this user in with another security level only",
        "Set (or leave out) auth_key_file and privacy_key_file as the user is set up on the PDU",
    ),
    "NoSuchContext": ("unknown_context", "the agent has no such context", "Correct `context`"),
}
"""By the class of pysnmp's error indication: reason, what it means, what mends it."""


def library_missing(message: str) -> SourceError:
    """A Python package is not installed."""
    return SourceError(SourceState.DOWN, "library_missing", message, mend=EXTRA)


def unknown_host(settings: PduSettings, error: OSError) -> SourceError:
    """The host's name has no address."""
    return SourceError(
        SourceState.DOWN,
        "unknown_host",
        f"{settings.name}: {settings.host} has no address: {error.strerror}",
        mend=f"Correct `host`, or the name service; {LET_OUT}",
    )


def silent(settings: PduSettings) -> SourceError:
    """No answer. Agents do not answer a wrong community: that cannot be told from a dead one."""
    who = "community" if settings.version == "2c" else "user with these passwords and this context"
    file = "community_file" if settings.version == "2c" else "auth_key_file and privacy_key_file"
    return SourceError(
        SourceState.DOWN,
        "timeout",
        f"{settings.name}: no answer from {settings.host} port {settings.port} (UDP) within"
        f" {settings.timeout_seconds:g} s, twice: it is off or cannot be reached, or it does not know the {who},"
        " or its access list lacks this node",
        mend=f"Check the host, the PDU's SNMP access list, and {file}; raise timeout_seconds for a slow agent;"
        f" {LET_OUT}",
    )


def refused(settings: PduSettings, indication: Any) -> SourceError:
    """The agent answered that it does not let this user in; or pysnmp found the answer wrong."""
    kind = type(indication).__name__
    if kind not in _REFUSALS:
        text = str(indication)[:200]
        return SourceError(SourceState.DOWN, "bad_answer", f"{settings.name}: {settings.host} answers badly: {text}")
    reason, meaning, mend = _REFUSALS[kind]
    return SourceError(SourceState.DENIED, reason, f"{settings.name}: {settings.host}: {meaning}", mend=mend)


def status_error(settings: PduSettings, status: int) -> SourceError:
    """The agent knows this user, who may not read these objects."""
    return SourceError(
        SourceState.DENIED,
        "no_access",
        f"{settings.name}: {settings.host} does not let this user read its power (SNMP error {status})",
        mend="Give the user or community a view that holds the PDU's enterprise subtree",
    )


def engine_failed(settings: PduSettings, error: Exception) -> SourceError:
    """The library or the socket failed; it is made anew. What the library says may hold a password."""
    why = error.strerror if isinstance(error, OSError) else f"pysnmp raised {type(error).__name__}"
    return SourceError(
        SourceState.DOWN,
        "send_failed",
        f"{settings.name}: {settings.host} cannot be asked: {why}",
        mend="Check `user`, `context` and the passwords: not all lengths and letters are possible",
    )
