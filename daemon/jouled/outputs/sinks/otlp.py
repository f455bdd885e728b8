"""Sends points as metrics and receipts as log records or spans to whatever takes OTLP over HTTP.

https://opentelemetry.io/docs/specs/otlp/#otlphttp, binary Protobuf and gzip.
"""

import asyncio
import gzip
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

import jouled
from jouled.api import Delivery, RejectedRecord, SinkSettings
from jouled.model.errors import ConfigurationError
from jouled.model.points import Kind, NumberedReceipt, Points
from jouled.outputs.secret_file import secret
from jouled.outputs.sinks import http
from jouled.outputs.sinks.culprits import deliver
from jouled.outputs.sinks.http import Answer

MOST_POINTS, MOST_RECEIPTS = 20, 1_000
"""Moments of some 100 KB and receipts of some 2 KB: a tenth of the 20 MiB that receivers are advised to take."""

_FASTEST = 1
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_SIGNAL_PATHS = ("/v1/metrics", "/v1/logs", "/v1/traces")

PROTOBUF = "application/x-protobuf"

_log = logging.getLogger(__name__)

R = TypeVar("R", bound=Points | NumberedReceipt)


class OtlpSettings(SinkSettings, kw_only=True, forbid_unknown_fields=True):
    """Where the receiver is, and as what receipts come to it."""

    endpoint: Annotated[
        str, Meta(description="Base address; `/v1/metrics`, `/v1/logs` and `/v1/traces` are appended to it.")
    ] = "http://127.0.0.1:4318"
    token_file: Annotated[str, Meta(description="File with a bearer token.")] = ""
    headers_file: Annotated[str, Meta(description="File with secret headers, one `Name: value` a line.")] = ""
    headers: Annotated[dict[str, str], Meta(description="Headers that are no secret, for example a tenant.")] = field(
        default_factory=dict
    )
    ca_file: Annotated[str, Meta(description="Certificates to trust (PEM) instead of those of the system.")] = ""
    cert_file: Annotated[str, Meta(description="Certificate to show (PEM), for receivers that ask for one.")] = ""
    key_file: Annotated[str, Meta(description="Its key (PEM), where it is not in `cert_file`.")] = ""
    receipts: Annotated[
        Literal["logs", "spans", "none"],
        Meta(description="A finished request is a log record `jouled.request`, a span of that name, or not sent."),
    ] = "logs"


class OtlpSink:
    """OTLP/HTTP."""

    name: ClassVar[str] = "otlp"
    settings_type: ClassVar[type[SinkSettings]] = OtlpSettings

    def open(self, settings: SinkSettings, node: str) -> "OpenOtlp":
        """Check the settings, read the secrets, and make the session (which needs a running event loop).

        Raises:
            ConfigurationError: settings that make no sense, or a file that cannot be read.
        """
        if not isinstance(settings, OtlpSettings):
            raise TypeError(f"not settings of this sink: {settings!r}")
        return OpenOtlp(settings, node)


class OpenOtlp:
    """Sends export requests.

    What is sent again has the same time stamps and attributes: of a metric it is the same point again; a log record
    has the same `log.record.uid` and a span the same span id, by which a receiver tells it from another one. OTLP
    itself asks no receiver to leave out what it has.

    A receiver that takes a request in part tells how many items it rejected, not which. They are counted as the last
    of the request: receipts one by one, moments as many as can hold the rejected data points.
    """

    def __init__(self, settings: OtlpSettings, node: str) -> None:
        self.most: Mapping[Kind, int] = {"points": MOST_POINTS}
        if settings.receipts != "none":
            self.most = {**self.most, "receipts": MOST_RECEIPTS}
        self._endpoint = _base(settings.endpoint)
        self._headers = _headers(settings)
        self._spans = settings.receipts == "spans"
        self._timeout_seconds = settings.timeout_seconds
        self._node = node
        self._warning = ""
        if settings.key_file and not settings.cert_file:
            raise ConfigurationError("key_file needs cert_file", mend="Add cert_file")
        self._session = http.session(settings.ca_file, settings.cert_file, settings.key_file)

    async def points(self, moments: Sequence[Points]) -> Delivery:
        """Send moments; see `deliver` for what is raised."""
        return await self._deliver(await asyncio.to_thread(_metrics), moments)

    async def receipts(self, receipts: Sequence[NumberedReceipt]) -> Delivery:
        """Send receipts; see `deliver` for what is raised."""
        return await self._deliver(await asyncio.to_thread(_spans if self._spans else _logs, self._node), receipts)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _deliver(self, signal: "_Signal[R]", records: Sequence[R]) -> Delivery:
        places = {record.number: place for place, record in enumerate(records)}
        refused: list[RejectedRecord] = []

        async def send(part: Sequence[R]) -> Answer:
            body = await asyncio.to_thread(_compressed, signal, part)
            url = self._endpoint + signal.path
            answer = await http.post(self._session, url, body, self._headers, words=_status_message, words_of=PROTOBUF)
            if answer.is_good:
                last, message = self._refused(signal, part, answer.body)
                refused.extend(RejectedRecord(places[record.number], "refused", message) for record in last)
            return answer

        delivery = await deliver(records, send, self._timeout_seconds)
        return Delivery(delivery.taken, tuple(sorted((*delivery.rejected, *refused), key=lambda each: each.index)))

    def _refused(self, signal: "_Signal[R]", part: Sequence[R], body: bytes) -> tuple[Sequence[R], str]:
        """The last records of a part, as many as can hold the items that were rejected, and why."""
        number, message = signal.refused(body)
        if number <= 0:
            if message and message != self._warning:
                _log.warning("%s took everything and warns: %s", self._endpoint, message)
            self._warning = message
            return (), ""
        sizes = [signal.size(record) for record in part]
        first, held = len(part), 0
        while first and held < number:
            first -= 1
            held += sizes[first]
        return part[first:], f"{number} of {sum(sizes)} {signal.items} rejected, which ones is not told: {message}"


class _Signal(Struct, Generic[R], frozen=True):
    """How one stream is written: where to, as what, what an answer says of it, and how many items a record makes."""

    path: str
    items: str
    encode: Callable[[Sequence[R]], bytes]
    refused: Callable[[bytes], tuple[int, str]]
    size: Callable[[R], int]


# Protobuf and its messages take some megabytes and tens of milliseconds: they are imported in a thread, when needed.


def _metrics() -> _Signal[Points]:
    from jouled.outputs.sinks import otlp_metrics as it

    return _Signal(it.PATH, "data points", it.encoded, it.refused, it.data_points)


def _logs(node: str) -> _Signal[NumberedReceipt]:
    from jouled.outputs.sinks import otlp_logs as it

    return _Signal(it.LOGS_PATH, "log records", lambda some: it.encoded_logs(some, node), it.refused_logs, _one)


def _spans(node: str) -> _Signal[NumberedReceipt]:
    from jouled.outputs.sinks import otlp_logs as it

    return _Signal(it.SPANS_PATH, "spans", lambda some: it.encoded_spans(some, node), it.refused_spans, _one)


def _one(_: Any) -> int:
    return 1


def _compressed(signal: _Signal[R], records: Sequence[R]) -> bytes:
    return gzip.compress(signal.encode(records), _FASTEST, mtime=0)


def _base(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
        parts = urlsplit("")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("endpoint holds more than an address", mend="Write secrets into headers_file")
    if not is_usable:
        raise ConfigurationError(f"endpoint {endpoint!r} is not an address", mend="Write http://HOST:4318")
    base = endpoint.rstrip("/")
    if base.endswith(_SIGNAL_PATHS):
        raise ConfigurationError(f"endpoint {endpoint!r} names one signal", mend="Leave out its /v1/ and what follows")
    return base


def _headers(settings: OtlpSettings) -> Mapping[str, str]:
    for name in settings.headers:
        if name.lower() in _SECRET_HEADERS:
            raise ConfigurationError(f"headers hold the secret {name}", mend="Write it into headers_file")
    kept_secret = _secret_headers(settings.headers_file)
    token = secret(settings.token_file, "token_file")
    if token and "authorization" in {name.lower() for name in kept_secret}:
        raise ConfigurationError("token_file and headers_file both hold Authorization", mend="Leave one out")
    return {
        **settings.headers,
        **kept_secret,
        **({"Authorization": f"Bearer {token}"} if token else {}),
        "User-Agent": f"jouled/{jouled.__version__}",
        "Content-Type": PROTOBUF,
        "Content-Encoding": "gzip",
    }


def _secret_headers(path: str) -> dict[str, str]:
    headers = {}
    for number, line in enumerate(secret(path, "headers_file").splitlines(), 1):
        name, found, value = line.partition(":")
        if not found or not name.strip() or not value.strip():
            raise ConfigurationError(f"line {number} of headers_file {path} is no header", mend="Write `Name: value`")
        headers[name.strip()] = value.strip()
    return headers


def _status_message(body: bytes) -> str:
    """The message of a `google.rpc.Status`, by which OTLP tells of failures."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess

    try:  # not in opentelemetry-proto; this has a whole number as field 1 and the text as field 2, as a Status has
        return ExportLogsPartialSuccess.FromString(body).error_message
    except DecodeError:
        return body.decode(errors="replace")
