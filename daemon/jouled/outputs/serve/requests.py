"""Receipts by request: one, or a list with filters."""

from http import HTTPStatus
from urllib.parse import urlencode

from aiohttp import web
from msgspec.structs import replace

from jouled.model.parameters import Parameters
from jouled.model.requests import Outcome
from jouled.outputs.serve.answers import Handler, Refusal, as_json
from jouled.outputs.serve.door import Door
from jouled.outputs.store import ReceiptQuery

_WORDS = ("id", "engine", "model", "tenant", "outcome")
_NUMBERS = ("since_ns", "until_ns", "limit", "offset")
_LIMIT = 100
_MOST = 1_000
_LARGEST = 2**63 - 1
_WITHOUT_PAGE_SECONDS = Parameters().horizon_min_seconds


def list_handler(door: Door) -> Handler:
    """`GET /api/v1/requests`: the latest, newest first; with `all=1` page by page, each naming the next."""

    async def handle(request: web.Request) -> web.StreamResponse:
        query, everything = parse(dict(request.query))
        found = await door.receipts(query)
        answer: dict[str, object] = {"requests": found}
        if everything and len(found) == query.limit:
            # The upper bound stays that of the first page: what comes in between does not shift the pages.
            until_ns = query.until_ns if query.until_ns is not None else found[0].last_token_ns + 1
            answer["next"] = _address(replace(query, until_ns=until_ns, offset=query.offset + query.limit))
        return as_json(answer)

    return handle


def one_handler(door: Door) -> Handler:
    """`GET /api/v1/requests/{id}`: the newest final receipt, else the provisional one; with `all=1` all of that id."""

    async def handle(request: web.Request) -> web.StreamResponse:
        request_id = request.match_info["id"]
        everything = _flag(request.query.get("all", "0"))
        final = await door.receipts(ReceiptQuery(id=request_id, limit=_MOST if everything else 1))
        if final and not everything:
            return as_json(final[0])
        provisional = door.provisional(request_id)
        if everything and (final or provisional):
            return as_json({"requests": [*([provisional] if provisional else []), *final]})
        if provisional:
            return as_json(provisional)
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"no request {request_id} is known here, or it is not priced yet: a receipt comes after the request's end,"
            f" an engine without a page waits {_WITHOUT_PAGE_SECONDS:.0f} s and more for others that ran beside it, and"
            " receipts go when their retention is over. Ask by the engine's response id or the X-Request-Id sent with"
            " it",
        )

    return handle


def parse(parameters: dict[str, str]) -> tuple[ReceiptQuery, bool]:
    """The query that a URL's parameters ask for, and whether all pages are wanted.

    Raises:
        Refusal: a parameter is unknown or out of its range.
    """
    everything = _flag(parameters.pop("all", "0"))
    unknown = parameters.keys() - {*_WORDS, *_NUMBERS}
    if unknown:
        known = ", ".join(("all", *_WORDS, *_NUMBERS))
        raise Refusal(HTTPStatus.BAD_REQUEST, f"unknown parameter {min(unknown)}; there are {known}")
    words = {name: parameters[name] for name in _WORDS if name in parameters}
    if words.get("outcome", "") not in {"", *Outcome}:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"outcome is one of {', '.join(Outcome)}")
    numbers = {name: _number(name, parameters[name]) for name in _NUMBERS if name in parameters}
    limit = numbers.pop("limit", _MOST if everything else _LIMIT)
    if not 1 <= limit <= _MOST:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"limit is between 1 and {_MOST}; ask with all=1 for page after page")
    return ReceiptQuery(
        **words,
        since_ns=numbers.get("since_ns"),
        until_ns=numbers.get("until_ns"),
        offset=numbers.get("offset", 0),
        limit=limit,
    ), everything


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(_LARGEST)) or int(text) > _LARGEST:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"{name} is a whole number, not {text[:40]!r}")
    return int(text)


def _flag(text: str) -> bool:
    if text not in {"0", "1"}:
        raise Refusal(HTTPStatus.BAD_REQUEST, "all is 0 or 1")
    return text == "1"


def _address(query: ReceiptQuery) -> str:
    named = {name: getattr(query, name) for name in (*_WORDS, *_NUMBERS)}
    return "/api/v1/requests?" + urlencode({"all": 1} | {k: v for k, v in named.items() if v not in {"", None}})
