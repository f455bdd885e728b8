"""One GET of an engine's page, with limits on time and size, and one reason for each way in which it can fail."""

import asyncio
from http import HTTPStatus

import aiohttp

from jouled.app.runtime.engines.facts import shown
from jouled.model.errors import ConfigurationError, SourceError, SourceState
from jouled.outputs.secret_file import secret

TIMEOUT_SECONDS = 4.0
"""For the whole answer, so that an engine that drips its page byte by byte is given up too."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOCKED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})

LARGEST_PAGE_BYTES = 8 * 1024 * 1024
"""A vLLM page has 50 to 100 kB; with thousands of label sets some megabytes."""


def open_session() -> aiohttp.ClientSession:
    """A session that asks for plain text and unpacks nothing: on loopback compression only costs the engine time."""
    return aiohttp.ClientSession(
        headers={"Accept-Encoding": "identity", "User-Agent": "jouled"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        connector=aiohttp.TCPConnector(limit=0),  # engines that hang must not keep others waiting for a free place
    )


async def fetch(session: aiohttp.ClientSession, url: str, token_file: str = "") -> bytes:
    """The body behind `url`; follows no redirect, for it could lead to a port that nobody recognised as an engine.

    token_file: of a bearer token that the engine asks for, read each time so that a new one holds at once.
    Raises `SourceError` with state down and the reasons timeout, refused, http_<status>, too_large or disconnected, or
    with state denied and the reason token_unreadable.
    """
    headers = _authorization(token_file)
    try:
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            if response.status in _REDIRECTS:
                to = shown(response.headers.get("Location", "nowhere"))
                raise _down(f"http_{response.status}", f"{url} leads on to {to}, which is not followed")
            if response.status != HTTPStatus.OK:
                mend = "Name a file with its key as token_file in its [[engines]]" if response.status in _LOCKED else ""
                raise _down(f"http_{response.status}", f"{url} answered {response.status}", mend)
            return await _body(response, url)
    except TimeoutError:
        raise _down("timeout", f"{url} did not answer within {TIMEOUT_SECONDS:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise _down("refused", f"{url} cannot be reached: {error.strerror or error}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _down("disconnected", f"{url} broke off: {type(error).__name__}") from error


async def _body(response: aiohttp.ClientResponse, url: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LARGEST_PAGE_BYTES:
            raise _down("too_large", f"{url} is larger than {LARGEST_PAGE_BYTES} bytes")
    return bytes(body)


def _authorization(token_file: str) -> dict[str, str]:
    try:
        return {"Authorization": f"Bearer {secret(token_file, 'token_file')}"} if token_file else {}
    except ConfigurationError as error:
        raise SourceError(SourceState.DENIED, "token_unreadable", error.message, mend=error.mend) from error


def _down(reason: str, message: str, mend: str = "") -> SourceError:
    return SourceError(SourceState.DOWN, reason, message, mend=mend)
