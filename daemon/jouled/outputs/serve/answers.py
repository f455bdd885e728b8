"""Answers in JSON, and refusals with a sentence that says what to do."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from jouled.model.errors import JouledError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REFUSED: web.AppKey[Counter[str]] = web.AppKey("refused")
HEADERS: web.AppKey[Callable[[], Mapping[str, str]]] = web.AppKey("headers")
"""Headers that the operator wants on every answer, now."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that is answered with an error. `more` stands beside the sentence in the answer.

    reason: what it is counted under; one of few words, the name of the status if it is not given.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        reason: str = "",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason or status.name.lower()
        self.headers = headers
        self.more = more


def as_json(content: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON."""
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json", headers=headers
    )


@web.middleware
async def answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn refusals into JSON, count them, and put the security headers on every answer."""
    try:
        response = await handler(request)
    except Refusal as refusal:
        if refusal.status is not HTTPStatus.NOT_FOUND:  # who waits for a receipt asks until it is there
            request.app[REFUSED][refusal.reason] += 1
        response = as_json({"error": refusal.message, **refusal.more}, refusal.status, refusal.headers)
    except JouledError as error:
        response = as_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path} takes {allowed}, not {request.method}"
        response = as_json({"error": message}, error.status, {"Allow": allowed})
    except web.HTTPNotFound as error:
        response = as_json({"error": f"there is nothing at {request.path}"}, error.status)
    for name, value in {**_HEADERS, **request.app[HEADERS]()}.items():
        response.headers.setdefault(name, value)
    return response
