"""Who may ask for what.

Three kinds of callers: through the Unix socket (whoever its file mode lets in), from loopback, and from elsewhere.
Where `web_config_file` has users, everyone by TCP needs a password, for every path. Else /metrics, /healthz and /readyz
are open to all. A browser on this machine is a loopback caller that may be led by a foreign page: the Host check stops
DNS rebinding, the Origin check stops foreign forms.
"""

import math
import socket
import ssl
import time
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp import web

from jouled.outputs.serve.answers import Handler, Refusal
from jouled.outputs.serve.authentication import Authenticator
from jouled.outputs.serve.limits import Rates, peer_of
from jouled.outputs.serve.web_file import Web

OPEN_PATHS = frozenset({"/metrics", "/healthz", "/readyz"})
RELEASE_PATH = "/api/v1/release"
FORGET_PATH = "/api/v1/forget"
SOCKET_ONLY = {
    RELEASE_PATH: "devices are released through the Unix socket only: run `jouled release` on this host",
    FORGET_PATH: "receipts are removed through the Unix socket only: run `jouled forget` on this host",
}
"""What only those may do whom the Unix socket lets in, and what others are told."""

AUTHENTICATOR: web.AppKey[Authenticator] = web.AppKey("authenticator", Authenticator)
WEB: web.AppKey[Callable[[], Web]] = web.AppKey("web")
"""What `web_config_file` says now."""
RATES: web.AppKey[Rates] = web.AppKey("rates", Rates)
HOSTS: web.AppKey[set[str]] = web.AppKey("hosts", set)
"""Host names under which loopback callers may ask, beside those of loopback itself."""


class Caller(Enum):
    """Where a request comes from."""

    UNIX = "unix"
    LOOPBACK = "loopback"
    ELSEWHERE = "elsewhere"


@web.middleware
async def access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through or refuse."""
    caller = caller_of(request)
    if caller is Caller.UNIX:
        return await handler(request)
    _check_rate(request)
    now = request.app[WEB]()
    await _check_credentials(request, caller, now)
    if request.path not in OPEN_PATHS:
        _check_socket_only(request)
        if request.method not in {"GET", "HEAD"}:
            _check_origin(request)
    response = await handler(request)
    if _context_of(request) is not now.context:
        response.force_close()  # its TLS settings are not in force any more
    return response


def _check_rate(request: web.Request) -> None:
    wait_seconds = request.app[RATES].wait_seconds(peer_of(_host_of_peer(request)), time.monotonic())
    if wait_seconds > 0.0:
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many requests from this address: send several events in one body",
            reason="too_many_requests",
            headers={"Retry-After": str(math.ceil(wait_seconds))},
        )


def caller_of(request: web.Request) -> Caller:
    """Where the request comes from; one that has gone counts as elsewhere."""
    transport = request.transport
    if transport is None:
        return Caller.ELSEWHERE
    if transport.get_extra_info("socket").family == socket.AF_UNIX:
        return Caller.UNIX
    return Caller.LOOPBACK if is_loopback(_host_of_peer(request)) else Caller.ELSEWHERE


def is_loopback(host: str) -> bool:
    """Whether a host, name or address, is this machine alone."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


async def _check_credentials(request: web.Request, caller: Caller, now: Web) -> None:
    """Whatever of users, token, client certificate and place stands for the caller."""
    authenticator = request.app[AUTHENTICATOR]
    header = request.headers.get("Authorization")
    is_open = request.path in OPEN_PATHS
    asks_token = bool(authenticator.token) and not is_open
    if now.passwords is not None:
        peer = peer_of(_host_of_peer(request))
        return await authenticator.check(header, peer, now.passwords, takes_token=asks_token)
    if is_open:
        return None
    if caller is Caller.LOOPBACK:
        asks_token = asks_token and request.method not in {"GET", "HEAD"}
        if not _is_certified(request):
            _check_host(request)
    elif not asks_token and not _is_certified(request):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            "without authentication only /metrics, /healthz and /readyz are served to other hosts; set token_file"
            " or web_config_file in [serve], or ask from this host by 127.0.0.1 or the Unix socket",
        )
    if asks_token:
        await authenticator.check(header, peer_of(_host_of_peer(request)), None, takes_token=True)
    return None


def _check_socket_only(request: web.Request) -> None:
    if request.path in SOCKET_ONLY:
        raise Refusal(HTTPStatus.FORBIDDEN, SOCKET_ONLY[request.path])


def _host_of_peer(request: web.Request) -> str:
    """Its address; empty if it has gone."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if peer else ""


def _is_certified(request: web.Request) -> bool:
    """Whether it showed a certificate when it connected, and that was verified."""
    return request.transport is not None and bool(request.transport.get_extra_info("peercert"))


def _context_of(request: web.Request) -> ssl.SSLContext | None:
    """The TLS settings with which it connected."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    return tls.context if tls is not None else None


def _check_host(request: web.Request) -> None:
    host = _host_name(request.headers.get("Host", ""))
    if not is_loopback(host) and host not in request.app[HOSTS]:
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"the Host header names {host or 'nothing'}: ask by localhost, 127.0.0.1 or the address given by --listen",
            reason="foreign_host",
        )


def _check_origin(request: web.Request) -> None:
    origin = request.headers.get("Origin")
    foreign = origin is not None and _host_of(origin) != request.headers.get("Host", "").lower()
    if foreign or request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"requests from pages of another origin ({origin}) are not taken",
            reason="foreign_origin",
        )


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(header: str) -> str:
    """The host of a Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
