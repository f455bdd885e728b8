"""Where a sink over HTTP sends to, and as whom: settings that several of them share, checked."""

from base64 import b64encode
from urllib.parse import urlsplit

from jouled.model.errors import ConfigurationError
from jouled.outputs.secret_file import secret

DATABASE_RESEND_SECONDS = 60.0
"""VictoriaMetrics 1.79 killed at 200 writes a second forgets up to 30 s (measured, docs/sinks.md); twice that."""


def checked_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        ConfigurationError: it is none of HTTP, or holds a user or password.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
        parts = urlsplit("")
    if parts.username or parts.password:
        raise ConfigurationError("url holds a user or password", mend="Write them into user and password_file")
    if not is_usable:
        shown = "it holds a user or password" if "@" in url else repr(url)
        raise ConfigurationError(f"url is not an address ({shown})", mend="Write http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def authorization(*, user: str, password_file: str, token_file: str, scheme: str) -> dict[str, str]:
    """The `Authorization` header, or none: by user and password (RFC 7617), or by a token behind the word `scheme`.

    Raises:
        ConfigurationError: a file cannot be read, or the settings name both ways or half of one.
    """
    if bool(user) != bool(password_file):
        raise ConfigurationError("user and password_file go together", mend="Give both or none")
    if user and token_file:
        raise ConfigurationError("user and token_file exclude each other", mend="Leave one out")
    if user:
        pair = f"{user}:{secret(password_file, 'password_file')}"
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    token = secret(token_file, "token_file")
    return {"Authorization": f"{scheme} {token}"} if token else {}
