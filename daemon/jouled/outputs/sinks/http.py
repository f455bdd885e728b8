"""What sinks that speak HTTP share: one request, and what its status means for the records."""

import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time

import aiohttp
from msgspec import Struct

from jouled.model.errors import ConfigurationError, SinkError

_ANSWER_BYTES = 16 * 1024
"""Of an answer only so much is read: error texts are shorter."""

_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_NOT_ALLOWED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED})


class Answer(Struct, frozen=True):
    """An answer that says something of the records: success, or a refusal of this body (a status from 400 on).

    text: what it says in words; body: its first bytes as they came.
    """

    status: int
    text: str
    body: bytes = b""

    @property
    def is_good(self) -> bool:
        """Whether the body was taken."""
        return self.status < HTTPStatus.MULTIPLE_CHOICES


def session(ca_file: str = "", cert_file: str = "", key_file: str = "") -> aiohttp.ClientSession:
    """A session that follows no redirect with a secret, and trusts `ca_file` where one is given.

    Raises:
        ConfigurationError: a certificate cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(file for file in (ca_file, cert_file, key_file) if file)
        raise ConfigurationError(f"the certificates {files} cannot be used: {error}") from error
    connector = aiohttp.TCPConnector(ssl=context, limit=2)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True)


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    words: Callable[[bytes], str] | None = None,
    words_of: str = "",
) -> Answer:
    """Send a body; the time limit is the runner's. `words`: reads answers of the content type `words_of`, no text.

    Raises:
        SinkError: the other side cannot be reached, lets nobody in, is busy or broken. Nothing of the body counts.
    """
    told = b""
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            async for part in response.content.iter_any():
                told += part
                if len(told) >= _ANSWER_BYTES:
                    break
            status, retry_after = response.status, response.headers.get("Retry-After", "")
            is_text = response.content_type != words_of
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise SinkError("unreachable", f"{_shown(url)} cannot be reached: {error}") from error
    text = told.decode(errors="replace") if is_text or words is None else words(told)
    return judged(_shown(url), status, told, text, retry_after)


def judged(url: str, status: int, told: bytes, text: str, retry_after: str = "") -> Answer:
    """What an answer means, as bytes and in words. `url` as it may be shown.

    Raises:
        SinkError: it says nothing of the body, which is kept.
    """
    text = text.strip()
    said = f"{url} answers {status}{': ' if text else ''}{text[:300]}"
    if status in _NOT_ALLOWED:
        raise SinkError("unauthorized", said, mend="Check the token or user of this sink and what it may write")
    if status in _AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        reason = "throttled" if status in _AGAIN else "server_error"
        raise SinkError(reason, said, retry_after_seconds=retry_after_seconds(retry_after))
    if status == HTTPStatus.NOT_FOUND or HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise SinkError("not_found", said, mend="Check the url, bucket or database of this sink")
    return Answer(status, text, told)


def retry_after_seconds(header: str) -> float | None:
    """What a `Retry-After` header asks for: seconds, or a date."""
    if header.isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time(), 0.0)
    except (ValueError, TypeError):
        return None


def _shown(url: str) -> str:
    """The URL without its query and user, which may hold secrets."""
    bare = url.partition("?")[0]
    scheme, found, rest = bare.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else bare
