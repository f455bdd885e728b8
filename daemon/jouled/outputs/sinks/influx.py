"""Sends points and receipts to InfluxDB 1, 2 or 3, or to what takes their writes (VictoriaMetrics, Telegraf)."""

import asyncio
import gzip
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, ClassVar, Literal, Protocol
from urllib.parse import urlencode

import aiohttp
from msgspec import Meta

from jouled.api import Delivery, ResendSeconds, SinkSettings
from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import Kind, NumberedReceipt, Points
from jouled.outputs.secret_file import secret
from jouled.outputs.sinks import http
from jouled.outputs.sinks.culprits import deliver
from jouled.outputs.sinks.endpoint import DATABASE_RESEND_SECONDS, authorization, checked_url
from jouled.outputs.sinks.http import Answer
from jouled.outputs.sinks.line_protocol import moment_lines, receipt_line

MOST_POINTS, MOST_RECEIPTS = 10, 2_000
"""Moments of some 1 000 lines, and receipts of one: InfluxData advises up to 10 000 lines a write."""

_WORDS_ON_RECORDS = ("partial write", "parse", "field type", "retention", "dropped")
"""How InfluxDB refuses points that no later attempt makes better."""

_FASTEST = 1
_GZIP = {"Content-Encoding": "gzip"}
_V3_PARAMETERS = {"precision": "nanosecond", "accept_partial": "true"}


class InfluxSettings(SinkSettings, kw_only=True, forbid_unknown_fields=True):
    """Where the database is and what it calls the place that points go to."""

    url: Annotated[str, Meta(description="Address without the path of the API, for example `http://influx:8086`.")]
    api: Annotated[
        Literal["v1", "v2", "v3"],
        Meta(description="API that the database speaks: `v2` (InfluxDB 2, Cloud), `v1` (1.x) or `v3` (InfluxDB 3)."),
    ] = "v2"
    org: Annotated[str, Meta(description="Organisation; `v2` only.")] = ""
    bucket: Annotated[str, Meta(description="Bucket; `v2` only.")] = ""
    database: Annotated[str, Meta(description="Database; `v1` and `v3` only.")] = ""
    token_file: Annotated[str, Meta(description="File with the token that may write there.")] = ""
    user: Annotated[str, Meta(description="User; `v1` only.")] = ""
    password_file: Annotated[str, Meta(description="File with the user's password; `v1` only.")] = ""
    receipts: Annotated[bool, Meta(description="Send a point for each finished request too.")] = True
    resend_seconds: ResendSeconds = DATABASE_RESEND_SECONDS


class InfluxSink:
    """InfluxDB line protocol; version 2 by InfluxData's own client."""

    name: ClassVar[str] = "influx"
    settings_type: ClassVar[type[SinkSettings]] = InfluxSettings

    def open(self, settings: SinkSettings, node: str) -> "OpenInflux":
        """Check the settings, read the secrets, and make the session (which needs a running event loop).

        Raises:
            ConfigurationError: settings that make no sense, or a secret that cannot be read.
        """
        if not isinstance(settings, InfluxSettings):
            raise TypeError(f"not settings of this sink: {settings!r}")
        _check_place(settings)
        writer = _ClientWriter(settings) if settings.api == "v2" else _HttpWriter(settings)
        return OpenInflux(writer, settings, node)


class OpenInflux:
    """Writes line protocol.

    InfluxDB overwrites a point of the same series and time, so what is sent again is there once. VictoriaMetrics keeps
    both unless it runs with `-dedup.minScrapeInterval=1ms`; it has times to the millisecond only, so that receipts of
    equal tags that end in the same millisecond are one there, and keeps no strings.

    A write of which the database drops some lines (a field of another type than before, a time beyond the retention)
    keeps the others. The record that holds the dropped ones is found and told as rejected, a receipt being one line;
    of a moment, only the database's own message tells how many of its lines were dropped: the others are there.
    """

    def __init__(self, writer: "_Writer", settings: InfluxSettings, node: str) -> None:
        self.most: Mapping[Kind, int] = {"points": MOST_POINTS}
        if settings.receipts:
            self.most = {**self.most, "receipts": MOST_RECEIPTS}
        self._writer = writer
        self._timeout_seconds = settings.timeout_seconds
        self._node = node

    async def points(self, moments: Sequence[Points]) -> Delivery:
        """Write moments; see `deliver` for what is raised."""
        return await deliver(moments, self._write_moments, self._timeout_seconds, _is_about_records)

    async def receipts(self, receipts: Sequence[NumberedReceipt]) -> Delivery:
        """Write receipts; see `deliver` for what is raised."""
        return await deliver(receipts, self._write_receipts, self._timeout_seconds, _is_about_records)

    async def close(self) -> None:
        """Close the connections."""
        await self._writer.close()

    async def _write_moments(self, moments: Sequence[Points]) -> Answer:
        return await self._write(line for moment in moments for line in moment_lines(moment))

    async def _write_receipts(self, receipts: Sequence[NumberedReceipt]) -> Answer:
        return await self._write(receipt_line(receipt, self._node) for receipt in receipts)

    async def _write(self, lines: Iterable[str]) -> Answer:
        return await self._writer.write(await asyncio.to_thread(_compressed, lines))


class _Writer(Protocol):
    """Sends one compressed body."""

    async def write(self, body: bytes) -> Answer:
        """Send it once. Raises `SinkError` where nothing of it was taken for reasons beyond the body."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class _HttpWriter:
    """Versions 1 and 3: a plain POST."""

    def __init__(self, settings: InfluxSettings) -> None:
        is_v1 = settings.api == "v1"
        path, parameters = ("/write", {"precision": "ns"}) if is_v1 else ("/api/v3/write_lp", _V3_PARAMETERS)
        self._url = f"{checked_url(settings.url)}{path}?{urlencode({'db': settings.database, **parameters})}"
        access = authorization(
            user=settings.user,
            password_file=settings.password_file,
            token_file=settings.token_file,
            scheme="Token" if is_v1 else "Bearer",
        )
        self._headers = {**_GZIP, "Content-Type": "text/plain; charset=utf-8", **access}
        self._session = http.session()

    async def write(self, body: bytes) -> Answer:
        return await http.post(self._session, self._url, body, self._headers)

    async def close(self) -> None:
        await self._session.close()


class _ClientWriter:
    """Version 2, by influxdb-client.

    Its asynchronous write makes one request of one call and neither waits nor tries again; what is no success it raises
    as `ApiException`, and errors of the connection as aiohttp has them (version 1.50).
    """

    def __init__(self, settings: InfluxSettings) -> None:
        from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

        self._url = checked_url(settings.url)
        self._bucket = settings.bucket
        self._client = InfluxDBClientAsync(
            url=self._url,
            token=secret(settings.token_file, "token_file"),
            org=settings.org,
            timeout=aiohttp.ClientTimeout(total=None),  # the runner's limit holds
            allow_redirects=False,
            connection_pool_maxsize=2,
            client_session_kwargs={"trust_env": True, "cookie_jar": aiohttp.DummyCookieJar()},
        )
        # Its own `enable_gzip` compresses at level 9 in the event loop.
        self._client.api_client.set_default_header("Content-Encoding", "gzip")  # type: ignore[no-untyped-call]

    async def write(self, body: bytes) -> Answer:
        from influxdb_client.rest import ApiException

        try:
            is_written = await self._client.write_api().write(
                bucket=self._bucket,
                record=body,
                write_precision="ns",  # type: ignore[arg-type]  # what its WritePrecision.NS is
            )
        except ApiException as error:
            told = bytes(error.body or b"")
            asked = error.headers.get("Retry-After", "")
            return http.judged(self._url, int(error.status), told, told.decode(errors="replace"), asked)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SinkError("unreachable", f"{self._url} cannot be reached: {error}") from error
        if not is_written:
            raise SinkError("refused", f"{self._url} does not answer like an InfluxDB", mend="Check url of this sink")
        return Answer(HTTPStatus.NO_CONTENT, "")

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]


def _is_about_records(words: str) -> bool:
    return any(word in words for word in _WORDS_ON_RECORDS)


def _check_place(settings: InfluxSettings) -> None:
    wanted = ("org", "bucket") if settings.api == "v2" else ("database",)
    for key in ("org", "bucket", "database"):
        is_given = bool(getattr(settings, key))
        if key in wanted and not is_given:
            raise ConfigurationError(f'api "{settings.api}" needs {key}', mend=f"Add {key}")
        if is_given and key not in wanted:
            raise ConfigurationError(f'api "{settings.api}" has no {key}', mend=f"Use {' and '.join(wanted)}")
    if settings.api != "v1" and (settings.user or settings.password_file):
        raise ConfigurationError(f'api "{settings.api}" knows no user and password', mend="Use token_file")


def _compressed(lines: Iterable[str]) -> bytes:
    return gzip.compress("\n".join(lines).encode(), _FASTEST, mtime=0)
