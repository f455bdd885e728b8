"""What is told to the daemon: one POST route for each receiver."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from jouled.api import HttpIngest, MalformedBodyError, Received, TooManyRecordsError
from jouled.outputs.serve.answers import Handler, Refusal
from jouled.outputs.serve.bodies import check_encoding, inflate, read_body
from jouled.outputs.serve.door import Door

IN_THE_LOOP_BYTES = 32 * 1024
"""Bodies up to this size are decoded at once (about a millisecond), larger ones in a thread."""

LARGE_AT_ONCE = 2
"""Large bodies being decoded at the same time: bounds the memory that senders can claim."""

_LARGE_HELD = 4
"""Large bodies, or ones of unknown length, being received or waiting to be decoded: bounds the memory before that.

More than are decoded at once, so that a sender that drips holds up nobody.
"""

_NAMED_IN_ANSWER = 100

_log = logging.getLogger(__name__)


def ingest_handler(door: Door, ingest: HttpIngest) -> Handler:
    """The handler of one receiver's path."""
    held = asyncio.Semaphore(_LARGE_HELD)
    large = asyncio.Semaphore(LARGE_AT_ONCE)
    seen_types: set[str] = set()

    async def handle(request: web.Request) -> web.StreamResponse:
        content_type = request.headers.get("Content-Type", "")
        if request.content_type not in ingest.content_types:
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type {content_type or 'is missing and'} is not taken here:"
                f" send {' or '.join(ingest.content_types)}",
            )
        zipped = check_encoding(request.headers.get("Content-Encoding", ""))
        if request.content_length is not None and request.content_length <= IN_THE_LOOP_BYTES:
            received = await receive(request, zipped, content_type)
        else:
            async with held:
                received = await receive(request, zipped, content_type)
        return _answer(ingest, await door.accept(ingest, received), content_type)

    async def receive(request: web.Request, zipped: bool, content_type: str) -> Received:
        raw = await read_body(request)
        if door.forward is not None:
            door.forward(ingest, raw, request.headers)
        # The first body of a type may make its receiver import a library, which takes longer than the loop may wait.
        if zipped or len(raw) > IN_THE_LOOP_BYTES or request.content_type not in seen_types:
            seen_types.add(request.content_type)
            async with large:
                return await asyncio.to_thread(_decode, ingest, raw, zipped, content_type)
        return _decode(ingest, raw, zipped, content_type)

    return handle


def _decode(ingest: HttpIngest, raw: bytes, zipped: bool, content_type: str) -> Received:
    body = inflate(raw) if zipped else raw
    return decoded(lambda: ingest.decode(body, content_type))


def decoded(decode: Callable[[], Received]) -> Received:
    """What a receiver makes of a body.

    Raises:
        Refusal: it cannot be read, or holds too much, or the receiver has a fault.
    """
    try:
        return decode()
    except TooManyRecordsError as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error), accepted=0) from error
    except MalformedBodyError as error:
        raise Refusal(
            HTTPStatus.BAD_REQUEST, f"the body cannot be read: {error}", position=error.position, accepted=0
        ) from error
    except Exception as error:  # the boundary to plug-ins: what one chokes on is counted as well
        _log.exception("a receiver failed unexpectedly")
        message = "the receiver failed over this body; the log of jouled says where"
        raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message, reason="receiver_failed", accepted=0) from error


def check_taken(taken: Received) -> None:
    """Let pass what could be used in part.

    Raises:
        Refusal: nothing of the body could be used.
    """
    if taken.rejected and not taken.requests and not taken.ignored:
        first = taken.rejected[0]
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"nothing was taken; {first.position}: {first.message}",
            position=first.position,
            accepted=0,
            rejected=taken.rejected[:_NAMED_IN_ANSWER],
            rejected_count=taken.rejected_count,
        )


def _answer(ingest: HttpIngest, taken: Received, content_type: str) -> web.Response:
    """The receiver's own answer, or a refusal where nothing of the body could be used."""
    check_taken(taken)
    body, headers = ingest.respond(taken, content_type)
    return web.Response(body=body, headers=headers)
