"""Communities and passwords, which stand in files of their own."""

from pathlib import Path

from jouled.model.errors import SourceError, SourceState


def secret(path: str, key: str, pdu: str) -> str:
    """The text of a secret's file without the newline at its end; empty where none is configured.

    Raises:
        SourceError: denied; it cannot be read, or is empty.
    """
    if not path:
        return ""
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise _denied(pdu, f"{key} {path} cannot be read: {reason}", path) from error
    if not text:
        raise _denied(pdu, f"{key} {path} is empty", path)
    return text


def _denied(pdu: str, message: str, path: str) -> SourceError:
    return SourceError(
        SourceState.DENIED,
        "secret_unreadable",
        f"{pdu}: {message}",
        mend=f"Write the secret into {path} and let the daemon's user read it",
    )
