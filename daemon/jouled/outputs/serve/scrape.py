"""`GET /metrics`: the format and the encoding that the client asks for."""

import asyncio

from aiohttp import web

from jouled.outputs.metrics.exposition import Exposition, Format
from jouled.outputs.serve.answers import Handler
from jouled.outputs.serve.door import Door

_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_VERSIONS = {"", "1.0.0"}


def metrics_handler(door: Door, exposition: Exposition) -> Handler:
    """The handler; the first scrape of a snapshot renders it in a thread, later ones get the kept page."""

    async def handle(request: web.Request) -> web.StreamResponse:
        snapshot = door.snapshot()
        page_format = negotiate(request.headers.get("Accept", ""))
        page = exposition.kept(snapshot, page_format)
        if page is None:
            page = await asyncio.to_thread(exposition.page, snapshot, page_format)
        headers = {"Content-Type": page_format.value, "Vary": "Accept, Accept-Encoding"}
        if takes_gzip(request.headers.get("Accept-Encoding", "")):
            return web.Response(body=page.gzipped, headers=headers | {"Content-Encoding": "gzip"})
        return web.Response(body=page.body, headers=headers)

    return handle


def negotiate(accept: str) -> Format:
    """OpenMetrics for those who ask for version 1.0.0 and do not like text better; text for all others."""
    openmetrics = text = 0.0
    for media, parameters in _parts(accept):
        weight = _weight(parameters)
        if media == _OPENMETRICS and parameters.get("version", "") in _OPENMETRICS_VERSIONS:
            openmetrics = max(openmetrics, weight)
        elif media == "text/plain":
            text = max(text, weight)
    return Format.OPENMETRICS if openmetrics > 0 and openmetrics >= text else Format.TEXT


def takes_gzip(accept_encoding: str) -> bool:
    """Whether the client named gzip, and not with weight 0."""
    return any(coding == "gzip" and _weight(parameters) > 0 for coding, parameters in _parts(accept_encoding))


def _parts(header: str) -> list[tuple[str, dict[str, str]]]:
    parts = []
    for part in header.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        parts.append((name, {key.strip(): value.strip(' "') for key, _, value in pairs}))
    return parts


def _weight(parameters: dict[str, str]) -> float:
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
