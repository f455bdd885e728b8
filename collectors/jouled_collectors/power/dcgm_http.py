"""Asks a dcgm-exporter for its page, within a time limit whatever the other side does."""

import base64
import http.client
import socket
import ssl
import threading
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.network import LET_OUT
from jouled_collectors.power.secret_file import read_secret

MOST_BYTES = 16 * 1024 * 1024
"""A page of 8 GPUs in 7 MIG instances with 100 fields and the labels of a pod has about 3 MB."""

_CHUNK_BYTES = 256 * 1024


class Exporter:
    """One exporter. Each read is a connection of its own: the last one may be as dead as it looks alive.

    Raises `SourceError` for an address or secrets that cannot be used.
    """

    def __init__(
        self, url: str, *, timeout_seconds: float, user: str, password_file: str, token_file: str, ca_file: str
    ) -> None:
        self._url = _checked(url)
        self._timeout_seconds = timeout_seconds
        self._headers = {"Accept": "text/plain", "User-Agent": "jouled"}
        if user:
            pair = base64.b64encode(f"{user}:{read_secret(password_file, 'password_file', '[power.dcgm]')}".encode())
            self._headers["Authorization"] = f"Basic {pair.decode()}"
        elif token_file:
            self._headers["Authorization"] = f"Bearer {read_secret(token_file, 'token_file', '[power.dcgm]')}"
        self._tls = _tls(ca_file) if self._url.scheme == "https" else None

    def page(self) -> bytes:
        """The page; blocks. Raises `SourceError`."""
        host, port = self._url.hostname or "", self._url.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._timeout_seconds, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(host, port, timeout=self._timeout_seconds)
        )
        try:
            return self._ask(connection)
        except ssl.SSLError as error:
            raise self._down("tls", f"speaks no TLS that is trusted here ({error.reason})", "Set `ca_file`") from None
        except TimeoutError:
            raise self._timed_out() from None
        except OSError as error:
            what = f"cannot be reached ({error.strerror or error})"
            raise self._down("unreachable", what, f"Start it; {LET_OUT}; or correct `url`") from None
        except (http.client.HTTPException, ValueError) as error:
            raise self._down("bad_answer", f"gave no HTTP answer ({type(error).__name__})", "Correct `url`") from None
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> bytes:
        connection.connect()
        deadline = _Deadline(connection.sock, self._timeout_seconds)
        try:
            path = (self._url.path or "/metrics") + (f"?{self._url.query}" if self._url.query else "")
            connection.request("GET", path, headers=self._headers)
            with connection.getresponse() as response:
                self._check(response.status)
                body = _body(response)
        except (OSError, http.client.HTTPException):
            if deadline.has_passed:
                raise TimeoutError from None
            raise
        finally:
            deadline.cancel()
        if deadline.has_passed:
            raise TimeoutError
        if len(body) > MOST_BYTES:
            raise self._down("page_too_large", f"sends more than {MOST_BYTES} bytes", "Correct `url`")
        return body

    def _check(self, status: int) -> None:
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise SourceError(
                SourceState.DENIED,
                "unauthorized",
                f"The dcgm-exporter at {self._place} refuses the credentials (HTTP {status})",
                mend="Set `user` and `password_file`, or `token_file`, in [power.dcgm]",
            )
        if status == HTTPStatus.NOT_FOUND:
            raise self._down("not_found", "has no such page (HTTP 404)", "Correct the path in `url`, often /metrics")
        if status != HTTPStatus.OK:
            raise self._down("http_status", f"answers HTTP {status}", "Look at its log, or correct `url`")

    def _timed_out(self) -> SourceError:
        return self._down(
            "timeout",
            f"did not answer within {self._timeout_seconds:g} s",
            f"Look at its log: its nv-hostengine may hang on a GPU; {LET_OUT}; or raise `timeout_seconds`",
        )

    def _down(self, reason: str, what: str, mend: str) -> SourceError:
        message = f"The dcgm-exporter at {self._place} {what}"
        return SourceError(SourceState.DOWN, reason, message, mend=f"{mend} in [power.dcgm]")

    @property
    def _place(self) -> str:
        """Host and port: the query of an address may hold a secret."""
        return self._url.netloc


class _Deadline:
    """Ends a socket at a point in time: the time limit of a socket is one of each receive, a slow drip passes it."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self.has_passed = False
        self._socket = connected
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """The answer is here; waits for an end that has begun."""
        self._timer.cancel()
        self._timer.join()

    def _pass(self) -> None:
        self.has_passed = True
        try:
            # Of the plain socket, as TLS says good-bye first, to a peer that may not listen.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            return


def _body(response: http.client.HTTPResponse) -> bytes:
    """The body up to a little more than `MOST_BYTES`. Raises `IncompleteRead` where it ends before its length."""
    chunks: list[bytes] = []
    size = 0
    while size <= MOST_BYTES and (chunk := response.read(_CHUNK_BYTES)):
        chunks.append(chunk)
        size += len(chunk)
    if response.length and size <= MOST_BYTES:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        usable = None
        parts = urlsplit("")
    if usable:
        return parts
    raise SourceError(
        SourceState.ABSENT,
        "bad_url",
        "`url` in [power.dcgm] is no address that can be asked",
        mend="It looks like http://127.0.0.1:9400/metrics; a user stands in `user`, a password in `password_file`",
    )


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise SourceError(
            SourceState.DENIED,
            "ca_unreadable",
            f"`ca_file` in [power.dcgm], {ca_file}, cannot be used ({error.strerror or error})",
            mend="It holds certificates in PEM form and must be readable by the daemon's user",
        ) from None
