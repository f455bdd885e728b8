"""Addresses as the configuration writes them."""

from urllib.parse import SplitResult, urlsplit

HIGHEST_PORT = 65535


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 address stands in brackets, port 0 is any free one.

    Raises `ValueError` that says what is wrong with it.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"`{text}` is not of the form HOST:PORT")
    if not (port.isascii() and port.isdigit()) or int(port) > HIGHEST_PORT:
        raise ValueError(f"`{port}` is no port")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise ValueError(f"the IPv6 address in `{text}` needs brackets")
    return (host[1:-1] if bracketed else host), int(port)


def http_url(text: str) -> SplitResult:
    """The parts of an http or https URL.

    Raises `ValueError` that says what is wrong with it; the message repeats no secret.
    """
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"}:
        raise ValueError("it begins neither with http:// nor with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a user name or a password, which do not belong into a configuration file")
    if not parts.hostname:
        raise ValueError("it names no host")
    if parts.port == 0:  # reading the port raises ValueError if it is none
        raise ValueError("its port is 0")
    return parts


def port_of(url: str) -> int:
    """The port that a checked URL leads to."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
