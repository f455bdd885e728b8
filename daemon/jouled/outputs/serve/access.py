"""Who may ask for what.

Three kinds of callers: through the Unix socket (whoever its file mode lets in), from loopback, and from elsewhere.
/metrics, /healthz and /readyz are open to all. A browser on this machine is a loopback caller that may be led by a
foreign page: the Host check stops DNS rebinding, the Origin check stops foreign forms.
"""

import hmac
import socket
from enum import Enum
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp import web

from jouled.outputs.serve.answers import Handler, Refusal

OPEN_PATHS = frozenset({"/metrics", "/healthz", "/readyz"})
RELEASE_PATH = "/api/v1/release"

TOKEN: web.AppKey[str] = web.AppKey("token", str)
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
    if request.path not in OPEN_PATHS and caller is not Caller.UNIX:
        _check(request, caller)
    return await handler(request)


def caller_of(request: web.Request) -> Caller:
    """Where the request comes from; one that has gone counts as elsewhere."""
    transport = request.transport
    if transport is None:
        return Caller.ELSEWHERE
    if transport.get_extra_info("socket").family == socket.AF_UNIX:
        return Caller.UNIX
    return Caller.LOOPBACK if is_loopback(transport.get_extra_info("peername")[0]) else Caller.ELSEWHERE


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


def _check(request: web.Request, caller: Caller) -> None:
    token = request.app[TOKEN]
    if request.path == RELEASE_PATH:
        raise Refusal(
            HTTPStatus.FORBIDDEN, "devices are released through the Unix socket only: run `jouled release` on this host"
        )
    if caller is Caller.ELSEWHERE:
        if not token:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "without authentication only /metrics, /healthz and /readyz are served to other hosts; set token_file"
                " in [serve], or ask from this host by 127.0.0.1 or the Unix socket",
            )
        _check_token(request, token)
        return
    _check_host(request)
    if request.method not in {"GET", "HEAD"}:
        _check_origin(request)
        if token:
            _check_token(request, token)


def _check_host(request: web.Request) -> None:
    host = _host_name(request.headers.get("Host", ""))
    if not is_loopback(host) and host not in request.app[HOSTS]:
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"the Host header names {host or 'nothing'}: ask by localhost, 127.0.0.1 or the address given by --listen",
        )


def _check_origin(request: web.Request) -> None:
    origin = request.headers.get("Origin")
    foreign = origin is not None and _host_of(origin) != request.headers.get("Host", "").lower()
    if foreign or request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise Refusal(HTTPStatus.FORBIDDEN, f"requests from pages of another origin ({origin}) are not taken")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _check_token(request: web.Request, token: str) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Header values may hold any byte; compare_digest takes text of ASCII only.
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "send `Authorization: Bearer <token>` with the token of token_file in [serve]",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _host_name(header: str) -> str:
    """The host of a Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
