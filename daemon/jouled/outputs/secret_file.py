"""Tokens and passwords, which stand in files of their own."""

from pathlib import Path

from jouled.model.errors import ConfigurationError


def secret(path: str, key: str) -> str:
    """The text of a secret's file; empty where none is configured. `key`: what the operator wrote it under.

    Raises:
        ConfigurationError: it cannot be read, or is empty.
    """
    if not path:
        return ""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise ConfigurationError(f"{key} {path} cannot be read: {reason}") from error
    if not text:
        raise ConfigurationError(f"{key} {path} is empty", mend="Write the secret into it")
    return text
