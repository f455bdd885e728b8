"""One request of OTLP over HTTP. Its answer is Protobuf, which the text of an `Answer` cannot hold."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiohttp

from jouled.outputs.sinks import http
from jouled.outputs.sinks.http import Answer

PROTOBUF = "application/x-protobuf"

_ANSWER_BYTES = 16 * 1024


async def exchange(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str]
) -> tuple[Answer, bytes]:
    """`http.post`, and the bytes of the answer beside its text, which is what they say in words.

    Raises:
        SinkError: as `http.post`.
    """
    keeping = _KeepingSession(session)
    answer = await http.post(cast("aiohttp.ClientSession", keeping), url, body, headers)
    return answer, keeping.body


class _KeepingSession:
    """What `http.post` uses of a session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.body = b""

    @asynccontextmanager
    async def post(self, url: str, **options: Any) -> AsyncIterator[SimpleNamespace]:
        async with self._session.post(url, **options) as response:
            while len(self.body) < _ANSWER_BYTES and (part := await response.content.read(_ANSWER_BYTES)):
                self.body += part
            text = _words(self.body) if response.content_type == PROTOBUF else self.body
            yield SimpleNamespace(status=response.status, headers=response.headers, content=_Content(text))


class _Content:
    def __init__(self, text: bytes) -> None:
        self._text = text

    async def read(self, most: int) -> bytes:
        return self._text[:most]


def _words(body: bytes) -> bytes:
    """The message of a `google.rpc.Status`, which failures are told by."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess

    try:  # not in opentelemetry-proto; this has a whole number as field 1 and the text as field 2, as a Status has
        return ExportLogsPartialSuccess.FromString(body).error_message.encode()
    except DecodeError:
        return body
