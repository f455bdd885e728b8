"""Sends points by Prometheus remote write 1.0: to Prometheus, VictoriaMetrics, Mimir, Thanos and others."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, ClassVar

from msgspec import Meta, field

from jouled.api import Delivery, ResendSeconds, SinkSettings
from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import Kind, Points
from jouled.outputs.sinks import http
from jouled.outputs.sinks.culprits import deliver
from jouled.outputs.sinks.endpoint import DATABASE_RESEND_SECONDS, authorization, checked_url
from jouled.outputs.sinks.http import Answer
from jouled.outputs.sinks.write_request import write_request

MOST_POINTS = 10
"""Moments of some 1 000 samples: Prometheus itself sends 2 000 at a time, all receivers take far more."""

_HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "User-Agent": "jouled",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
_RESERVED = frozenset({"authorization", "host", "content-length", *(name.lower() for name in _HEADERS)})
_TOO_OLD = "too old sample"


_WORDS_ON_RECORDS = ("out of order", "duplicate sample", "out of bounds", "too old", "label", "exemplar")
"""How Prometheus refuses samples that no later attempt makes better."""


class RemoteWriteSettings(SinkSettings, kw_only=True, forbid_unknown_fields=True):
    """Where the receiver is."""

    url: Annotated[str, Meta(description="Full address, for example `http://prometheus:9090/api/v1/write`.")]
    user: Annotated[str, Meta(description="User of basic authentication.")] = ""
    password_file: Annotated[str, Meta(description="File with the user's password.")] = ""
    token_file: Annotated[str, Meta(description="File with a bearer token.")] = ""
    ca_file: Annotated[str, Meta(description="Certificates (PEM) to trust instead of the system's.")] = ""
    cert_file: Annotated[str, Meta(description="Own certificate (PEM) to show.")] = ""
    key_file: Annotated[str, Meta(description="Key of the own certificate. Empty: it is in `cert_file`.")] = ""
    headers: Annotated[
        dict[str, str], Meta(description="Further headers, for example `{X-Scope-OrgID = 'power'}`; no secrets.")
    ] = field(default_factory=dict)
    exemplars: Annotated[bool, Meta(description="Send trace ids of observations with the histograms.")] = True
    resend_seconds: ResendSeconds = DATABASE_RESEND_SECONDS


class RemoteWriteSink:
    """Remote write 1.0: protobuf in snappy's block format."""

    name: ClassVar[str] = "remote_write"
    settings_type: ClassVar[type[SinkSettings]] = RemoteWriteSettings

    def open(self, settings: SinkSettings, node: str) -> "OpenRemoteWrite":  # noqa: ARG002 - moments name their node
        """Check the settings, read the secrets, and make the session (which needs a running event loop).

        Raises:
            ConfigurationError: settings that make no sense, a file that cannot be read, or no snappy.
        """
        if not isinstance(settings, RemoteWriteSettings):
            raise TypeError(f"not settings of this sink: {settings!r}")
        return OpenRemoteWrite(settings, _snappy())


class OpenRemoteWrite:
    """Writes moments; their node is the label `instance`.

    Prometheus refuses a whole request for one sample that is not newer than the newest of its series, unless it is
    that very sample again. So a moment that comes again is taken if it is the newest there; an older one, which is sent
    again after a crash, is told as rejected (`out of order sample`), though Prometheus has had it, and does not hold up
    those behind it. VictoriaMetrics takes any; with `-dedup.minScrapeInterval=1ms` it keeps one of equal ones.
    """

    def __init__(self, settings: RemoteWriteSettings, compress: Callable[[bytes], bytes]) -> None:
        self.most: Mapping[Kind, int] = {"points": MOST_POINTS}
        if settings.key_file and not settings.cert_file:
            raise ConfigurationError("key_file is of no use without cert_file", mend="Give both or none")
        reserved = sorted(name for name in settings.headers if name.lower() in _RESERVED)
        if reserved:
            raise ConfigurationError(f"headers may not set {', '.join(reserved)}", mend="Use token_file for a secret")
        access = authorization(
            user=settings.user,
            password_file=settings.password_file,
            token_file=settings.token_file,
            scheme="Bearer",
        )
        self._url = checked_url(settings.url)
        self._headers = {**settings.headers, **_HEADERS, **access}
        self._with_exemplars = settings.exemplars
        self._timeout_seconds = settings.timeout_seconds
        self._compress = compress
        self._session = http.session(settings.ca_file, settings.cert_file, settings.key_file)

    async def points(self, moments: Sequence[Points]) -> Delivery:
        """Write moments; see `deliver` for what is raised."""
        return await deliver(moments, self._write, self._timeout_seconds, _is_about_records)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _write(self, moments: Sequence[Points]) -> Answer:
        body = await asyncio.to_thread(self._encoded, moments)
        try:
            return await http.post(self._session, self._url, body, self._headers)
        except SinkError as error:
            # Prometheus 2.39 to 2.49 with out_of_order_time_window says 500 to what no later attempt makes younger:
            # https://github.com/prometheus/prometheus/pull/13335
            if error.message.endswith(_TOO_OLD):
                return Answer(HTTPStatus.BAD_REQUEST, error.message)
            raise

    def _encoded(self, moments: Sequence[Points]) -> bytes:
        return self._compress(write_request(moments, with_exemplars=self._with_exemplars))


def _is_about_records(words: str) -> bool:
    return any(word in words for word in _WORDS_ON_RECORDS)


def _snappy() -> Callable[[bytes], bytes]:
    try:
        from cramjam import snappy
    except ImportError as error:
        raise ConfigurationError(
            "remote_write needs snappy, which is not installed", mend="pip install 'jouled[remote-write]'"
        ) from error
    return lambda data: bytes(snappy.compress_raw(data))
