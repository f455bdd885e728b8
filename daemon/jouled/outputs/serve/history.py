"""`GET /api/v1/history`: marks of the books and changes of engines, for reports."""

import asyncio
from http import HTTPStatus

import msgspec
from aiohttp import web

from jouled.model.history import History
from jouled.outputs.serve.answers import Handler, Refusal
from jouled.outputs.serve.door import Door
from jouled.outputs.store import marks_of

_LARGEST = 2**63 - 1


def history_handler(door: Door) -> Handler:
    """What is known of the time from `since_ns` on (Unix nanoseconds), with the books as they are now."""

    async def handle(request: web.Request) -> web.StreamResponse:
        since_ns = _since_ns(dict(request.query))
        kept = await door.history(since_ns) if door.history else History()
        whole = History(kept.changes, (*kept.marks, *marks_of(door.snapshot())))
        # A week of minutes has megabytes.
        body = await asyncio.to_thread(msgspec.json.encode, whole)
        return web.Response(body=body, content_type="application/json")

    return handle


def _since_ns(parameters: dict[str, str]) -> int:
    text = parameters.pop("since_ns", "0")
    if parameters:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"unknown parameter {min(parameters)}; there is since_ns")
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(_LARGEST)) or int(text) > _LARGEST:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"since_ns is a whole number, not {text[:40]!r}")
    return int(text)
