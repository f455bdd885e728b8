"""One BMC over HTTP: who we are there, one request at a time, with limits on time and size; no secret leaves it."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.network import LET_OUT
from jouled_collectors.power.redfish_parse import Document, link
from jouled_collectors.power.redfish_settings import BmcSettings
from jouled_collectors.power.secret_file import read_secret

ROOT = "/redfish/v1/"
"""The service root, the one path that the Redfish specification (DSP0266) fixes."""

_SESSIONS = "/redfish/v1/SessionService/Sessions"
"""Where DSP0266 has sessions made, for the service root that does not say."""

MOST_BYTES = 4 * 1024 * 1024
"""Size of an answer: the largest reports of an HGX baseboard have 1 MB."""

_LOGOUT_SECONDS = 1.0
_NO_SESSIONS = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE, HTTPStatus.NOT_IMPLEMENTED}
)
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE})
_TOO_MANY_SESSIONS = (b"SessionLimitExceeded", b"CreateLimitReachedForResource")
"""Messages of DMTF's Base registry that a login may be refused with, under various statuses."""

_PORTS = {"http": 80, "https": 443}
_ABSENT = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

_log = logging.getLogger(__name__)


class _Answer:
    """Status, headers and JSON of one answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Session:
    """A BMC's session. Make it in a running event loop; used by one task at a time."""

    def __init__(self, settings: BmcSettings) -> None:
        self._settings = settings
        self._tls = _tls(settings)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds),
            auto_decompress=False,
        )
        self._sessions_path = _SESSIONS
        self._access: dict[str, str] = {}
        self._location = ""

    async def root(self) -> Document:
        """The service root, by DSP0266 for everybody; it says where to log in. Raises `SourceError`."""
        answer = await self._get(ROOT)
        is_closed = answer.status == HTTPStatus.UNAUTHORIZED and self._settings.user
        document = await self.get(ROOT) if is_closed else self._document(ROOT, answer)
        self._sessions_path = link(document, "Links", "Sessions") or _SESSIONS
        return document

    async def get(self, path: str) -> Document:
        """A resource; logs in where that is due, and once more where the session has ended.

        Raises:
            SourceError: absent (`not_found`), denied (`unauthorized`, `certificate`, ...) or down.
        """
        if self._settings.user and not self._access:
            await self._log_in()
        answer = await self._get(path)
        if answer.status == HTTPStatus.UNAUTHORIZED and self._settings.user:
            await self._log_in()
            answer = await self._get(path)
        return self._document(path, answer)

    async def close(self) -> None:
        """Log out, as BMCs keep some ten sessions only, and let go of the connection."""
        try:
            async with asyncio.timeout(_LOGOUT_SECONDS):
                if self._location:
                    await self._request("DELETE", self._location)
        except (SourceError, TimeoutError) as error:
            _log.debug("%s: the session could not be ended: %s", self._settings.name, error)
        finally:
            self._location = ""
            await self._http.close()

    async def _log_in(self) -> None:
        """Make a session; where the BMC has no session service, the password goes with each request."""
        user = self._settings.user
        # Read at each login, so that a changed one is taken.
        password = read_secret(self._settings.password_file, "password_file", self._settings.name)
        self._access, self._location = {}, ""
        answer = await self._request("POST", self._sessions_path, {"UserName": user, "Password": password})
        token = answer.headers.get("X-Auth-Token", "")
        if any(word in answer.body for word in _TOO_MANY_SESSIONS):
            mend = f"End sessions that others left there: DELETE on the members of {self._sessions_path}"
            raise self._error(SourceState.DOWN, "busy", "has no session left for us", mend=mend)
        if answer.status in _REFUSED or answer.status == HTTPStatus.BAD_REQUEST:
            raise self._unauthorized(answer.status)
        if answer.status < HTTPStatus.MULTIPLE_CHOICES and token:
            self._access = {"X-Auth-Token": token}
            self._location = _path(answer.headers.get("Location", ""))
        elif answer.status in _NO_SESSIONS or answer.status < HTTPStatus.MULTIPLE_CHOICES:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._access = {"Authorization": f"Basic {pair}"}
        elif answer.status in _BUSY:
            raise self._failed(self._sessions_path, answer.status)
        else:
            raise self._error(SourceState.DOWN, "login_failed", f"answers a login with {answer.status}")

    async def _get(self, path: str) -> _Answer:
        """GET, with one redirect inside the same BMC; the token never follows one to another host."""
        answer = await self._request("GET", path)
        if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
            location = answer.headers.get("Location", "")
            if location.startswith("/") or _origin(location) == _origin(self._settings.origin):
                answer = await self._request("GET", _path(location))
        return answer

    async def _request(self, method: str, path: str, body: Mapping[str, str] | None = None) -> _Answer:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "OData-Version": "4.0", **self._access}
        url = f"{self._settings.origin}{path}"
        try:
            async with self._http.request(
                method, url, json=body, headers=headers, allow_redirects=False, ssl=self._tls
            ) as response:
                return _Answer(response.status, response.headers, await self._body(response, path))
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError) as error:
            raise self._certificate(error) from None
        except TimeoutError:
            waited = f"did not answer {path} within {self._settings.timeout_seconds:g} s"
            mend = f"If it is only slow, raise timeout_seconds of this BMC in [[power.redfish.bmcs]]; {LET_OUT}"
            raise self._error(SourceState.DOWN, "timeout", waited, mend=mend) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._unreachable(error) from None

    async def _body(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        """The body; of an error, which iDRAC 8 breaks off when a session has ended, as much as came."""
        body = bytearray()
        try:
            async for part in response.content.iter_any():
                body += part
                if len(body) > MOST_BYTES:
                    message = f"answers {path} with more than {MOST_BYTES} bytes"
                    raise self._error(SourceState.DOWN, "too_large", message)
        except aiohttp.ClientPayloadError:
            if response.status < HTTPStatus.BAD_REQUEST:
                raise
        return bytes(body)

    def _document(self, path: str, answer: _Answer) -> Document:
        if answer.status != HTTPStatus.OK:
            raise self._failed(path, answer.status, answer.headers.get("Location", ""))
        try:
            document: Any = json.loads(answer.body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            kind = answer.headers.get("Content-Type", "no content type")[:60]
            raise self._error(SourceState.DOWN, "garbage", f"answers {path} with no JSON object ({kind})")
        return document

    def _failed(self, path: str, status: int, location: str = "") -> SourceError:
        if status in _REFUSED:
            return self._unauthorized(status)
        if status in _ABSENT:
            return self._error(SourceState.ABSENT, "not_found", f"has no {path}")
        if status in _BUSY:
            return self._error(SourceState.DOWN, "busy", f"answers {path} with {status}: it is busy or starting")
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            host = _origin(location)
            message = f"redirects {path} to {host or 'nowhere'}, which is not followed"
            mend = f'If that is the BMC: url = "{host}" in [[power.redfish.bmcs]]' if host else ""
            return self._error(SourceState.DOWN, "redirect", message, mend=mend)
        return self._error(SourceState.DOWN, "server_error", f"answers {path} with {status}")

    def _unauthorized(self, status: int) -> SourceError:
        if not self._settings.user:
            mend = "Set user and password_file of this BMC in [[power.redfish.bmcs]]"
            return self._error(SourceState.DENIED, "unauthorized", f"wants a login ({status})", mend=mend)
        message = f"refuses user {self._settings.user} ({status})"
        mend = (
            f"Check the password in {self._settings.password_file}, and that the user may log in over Redfish and read"
            " (role ReadOnly)"
        )
        return self._error(SourceState.DENIED, "unauthorized", message, mend=mend)

    def _certificate(self, error: Exception) -> SourceError:
        """A certificate that is not trusted, with the commands that show it; any other trouble with TLS is `down`."""
        if isinstance(error, aiohttp.ServerFingerprintMismatch):
            why = "has another certificate than certificate_sha256 says"
        elif isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = f"has a certificate that is not trusted: {_verify_message(error.certificate_error)}"
        else:
            return self._error(SourceState.DOWN, "tls", f"cannot be talked to over TLS: {type(error).__name__}")
        mend = (
            f"openssl s_client -connect {self._settings.host_and_port} </dev/null 2>/dev/null"
            " | openssl x509 -noout -fingerprint -sha256 shows the certificate it has; if that is the one on the BMC's"
            " own page, set certificate_sha256 of this BMC in [[power.redfish.bmcs]] to it, or ca_file to the"
            " authority that signed it"
        )
        return self._error(SourceState.DENIED, "certificate", why, mend=mend)

    def _unreachable(self, error: Exception) -> SourceError:
        said = error.os_error.strerror if isinstance(error, aiohttp.ClientConnectorError) else ""
        message = f"cannot be reached at {self._settings.host_and_port}: {said or type(error).__name__}"
        mend = f"Check url of this BMC in [[power.redfish.bmcs]], and the way there; {LET_OUT}"
        return self._error(SourceState.DOWN, "unreachable", message, mend=mend)

    def _error(self, state: SourceState, reason: str, message: str, *, mend: str = "") -> SourceError:
        return SourceError(state, reason, f"{self._settings.name} {message}", mend=mend)


def _tls(settings: BmcSettings) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
    """What is trusted. Raises `SourceError` where the file of the authority cannot be used."""
    if settings.insecure:
        return False
    if settings.certificate_sha256:
        return aiohttp.Fingerprint(bytes.fromhex(settings.fingerprint))
    try:
        return ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            SourceState.DENIED,
            "ca_file",
            f"{settings.name} ca_file {settings.ca_file} cannot be used: {error.strerror or type(error).__name__}",
            mend=f"openssl x509 -in {settings.ca_file} -noout -subject, as the user of the daemon, must work",
        ) from None


def _verify_message(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__


def _origin(location: str) -> str:
    """Scheme, host and port of an absolute address, without user, path and query, which may hold secrets."""
    try:
        parts = urlsplit(location)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in _PORTS or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in {None, _PORTS[parts.scheme]} else "")


def _path(location: str) -> str:
    """The path of an address on the BMC itself; BMCs write their own host in many ways."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    path = f"/{parts.path.lstrip('/')}" if parts.path else ""
    return f"{path}?{parts.query}" if parts.query else path
