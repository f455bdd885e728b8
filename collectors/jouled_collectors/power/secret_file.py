"""Secrets of power sources: each stands in a file of its own, and in no message."""

from pathlib import Path

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.own_group import group_name


def read_secret(path: str, key: str, owner: str) -> str:
    """The secret in a file without the line end behind it. `key` and `owner`: the setting, and whose it is.

    Raises:
        SourceError: denied; the file cannot be read, is empty, or holds more than a line of text.
    """
    try:
        secret = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        mend = f"chgrp {group_name()} {path} && chmod 0640 {path}; or hand it to the service by LoadCredential="
        raise _denied(f"{owner}: {key} {path} cannot be read: {why}", mend) from None
    if not secret:
        raise _denied(f"{owner}: {key} {path} is empty", f"Write the secret into {path}")
    if not secret.isprintable():
        raise _denied(f"{owner}: {key} {path} is no single line of text", f"Write the secret alone into {path}")
    return secret


def _denied(message: str, mend: str) -> SourceError:
    return SourceError(SourceState.DENIED, "secret_unreadable", message, mend=mend)
