"""Request bodies, with limits on size and time."""

import asyncio
import zlib
from http import HTTPStatus

from aiohttp import web

from jouled.outputs.serve.answers import Refusal

RAW_BYTES = 16 * 1024 * 1024
"""A body as it is sent."""
INFLATED_BYTES = 64 * 1024 * 1024
"""A body after gzip is undone."""

_SECONDS = 30.0
_GZIP = 31
"""zlib's window size for a gzip header and nothing else."""


async def read_body(request: web.Request) -> bytes:
    """The body as it was sent.

    Raises:
        Refusal: it is too large, or takes too long.
    """
    if (request.content_length or 0) > RAW_BYTES:
        raise _too_large(RAW_BYTES, "")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_SECONDS):
            while part := await request.content.readany():
                parts.append(part)
                size += len(part)
                if size > RAW_BYTES:
                    raise _too_large(RAW_BYTES, "")
    except TimeoutError:
        raise Refusal(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {_SECONDS:.0f} s ({size} bytes did)"
        ) from None
    return b"".join(parts)


def check_encoding(encoding: str) -> bool:
    """Whether a body with this Content-Encoding is compressed by gzip.

    Raises:
        Refusal: it is something else again.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return False
        case "gzip" | "x-gzip":
            return True
        case other:
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Encoding {other} is not understood: send gzip or nothing",
                headers={"Accept-Encoding": "gzip, identity"},
            )


def inflate(body: bytes, limit: int = INFLATED_BYTES) -> bytes:
    """Undo gzip, never holding more than `limit` bytes.

    Raises:
        Refusal: it is broken, cut short, more than one member, or too large when inflated.
    """
    inflater = zlib.decompressobj(_GZIP)
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the body is not gzip: {error}") from error
    if len(inflated) > limit:
        raise _too_large(limit, " when inflated")
    if not inflater.eof:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the gzip body ends early, after {len(body)} bytes")
    if inflater.unused_data:
        position = len(body) - len(inflater.unused_data)
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the gzip body goes on after its end at byte {position}")
    return inflated


def _too_large(limit: int, when: str) -> Refusal:
    mebibytes = limit // (1024 * 1024)
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {mebibytes} MiB{when}: send it in parts"
    )
