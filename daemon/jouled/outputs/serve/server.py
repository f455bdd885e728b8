"""The application and the sockets it listens on."""

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from aiohttp import web

import jouled
from jouled.model.errors import JouledError
from jouled.outputs.metrics.exposition import Exposition
from jouled.outputs.serve.access import AUTHENTICATOR, FORGET_PATH, HOSTS, RATES, RELEASE_PATH, WEB, access
from jouled.outputs.serve.answers import HEADERS, REFUSED, Handler, Refusal, answers, as_json
from jouled.outputs.serve.authentication import Authenticator
from jouled.outputs.serve.bodies import read_body
from jouled.outputs.serve.connection import arrival
from jouled.outputs.serve.door import Door
from jouled.outputs.serve.history import history_handler
from jouled.outputs.serve.ingest import ingest_handler
from jouled.outputs.serve.limits import Rates
from jouled.outputs.serve.listener import Listener, bind
from jouled.outputs.serve.requests import list_handler, one_handler
from jouled.outputs.serve.scrape import metrics_handler
from jouled.outputs.serve.views import snapshot_view
from jouled.outputs.serve.web_file import Web, WebFile

_STATIC_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_CONTENT_SECURITY_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip  # noqa: E501 - one header
_LONGEST_RELEASE_SECONDS = 86_400.0
_IDLE_SECONDS = 75.0
"""A connection without a whole request for so long is closed; longer than the usual scrape interval of 60 s."""
_SHUTDOWN_SECONDS = 2.0
_HEADER_BYTES = 8190
"""One header with its name, or the request line."""
_HEADERS = 64
_SOCKET_MODE = 0o660


Asked = TypeVar("Asked", bound=msgspec.Struct)


class _Release(msgspec.Struct, forbid_unknown_fields=True):
    seconds: float


class _Forget(msgspec.Struct, forbid_unknown_fields=True):
    tenant: str


@dataclass(frozen=True)
class Running:
    """A server that listens. `port` is the one it got."""

    port: int
    _runner: web.AppRunner
    _listener: Listener
    _unix_socket: Path | None

    async def close(self) -> None:
        """Stop listening, give answers under way two seconds, and remove the Unix socket."""
        await self._listener.stop()
        await self._runner.cleanup()
        await self._listener.end_all()
        if self._unix_socket is not None:
            self._unix_socket.unlink(missing_ok=True)


def build_app(door: Door, web_config_file: Path | None = None) -> web.Application:
    """All routes over what is behind the door, with TLS, users and headers as the file says.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    app = web.Application(middlewares=[arrival, answers, access])
    nothing = Web()
    app[WEB] = WebFile(web_config_file).current if web_config_file else lambda: nothing
    app[HEADERS] = lambda: app[WEB]().headers
    app[REFUSED] = door.refused
    app[AUTHENTICATOR] = Authenticator(door.token or "")
    app[HOSTS] = set()
    app[RATES] = Rates()
    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/metrics", metrics_handler(door, Exposition(jouled.__version__, off=door.off))),
        ("GET", "/api/v1/requests", list_handler(door)),
        ("GET", "/api/v1/requests/{id}", one_handler(door)),
        ("GET", "/api/v1/history", history_handler(door)),
        ("POST", RELEASE_PATH, _release_handler(door)),
        ("POST", FORGET_PATH, _forget_handler(door)),
        *(("POST", ingest.path, ingest_handler(door, ingest)) for ingest in door.ingests),
    ]

    async def snapshot(_: web.Request) -> web.StreamResponse:
        return as_json(snapshot_view(door.snapshot(), door.extra()))

    async def healthz(_: web.Request) -> web.StreamResponse:
        return _state(*door.health())

    async def readyz(_: web.Request) -> web.StreamResponse:
        return _state(*door.ready())

    routes += [("GET", "/api/v1/snapshot", snapshot), ("GET", "/healthz", healthz), ("GET", "/readyz", readyz)]
    folder = resources.files("jouled.outputs.serve") / "static"
    for name, content_type in _STATIC_TYPES.items():
        path = "/" if name == "index.html" else f"/static/{name}"
        routes.append(("GET", path, _static_handler((folder / name).read_bytes(), content_type)))
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
        if method == "GET":
            app.router.add_route("HEAD", path, handler)
    return app


async def start(app: web.Application, *, listen: str, unix_socket: Path | None) -> Running:
    """Listen on `HOST:PORT` (port 0: any free one) and on a Unix socket.

    Raises:
        JouledError: an address is wrong, taken, or may not be used.
    """
    host, port = parse_listen(listen)
    app[HOSTS].add(host.lower())
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=_IDLE_SECONDS,
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        max_headers=_HEADERS,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    await runner.setup()
    sockets: list[socket.socket] = []
    try:
        sockets = await _bind_tcp(host, port)
        if unix_socket is not None:
            await web.SockSite(runner, _bind_unix(unix_socket)).start()
    except BaseException:
        for bound in sockets:
            bound.close()
        await runner.cleanup()
        raise
    make_protocol = cast("web.Server", runner.server)  # it is there since the set-up
    listener = Listener(sockets, make_protocol, lambda: app[WEB]().context, app[REFUSED])
    return Running(sockets[0].getsockname()[1], runner, listener, unix_socket)


def parse_listen(listen: str) -> tuple[str, int]:
    """Split `HOST:PORT`, with brackets around an IPv6 address.

    Raises:
        JouledError: it has no such form.
    """
    host, colon, port = listen.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not port.isdecimal() or int(port) > 65_535:
        raise JouledError(
            f"{listen!r} is no address to listen on",
            mend="Give --listen HOST:PORT, such as 127.0.0.1:9966 or [::1]:9966",
        )
    return bare, int(port)


async def _bind_tcp(host: str, port: int) -> list[socket.socket]:
    try:
        return await bind(host, port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken by another program" if taken else f"cannot be listened on: {error.strerror}"
        raise JouledError(
            f"{host}:{port} {reason}",
            mend=f"Choose another one with --listen HOST:PORT{f', or find who has it: ss -ltnp sport = :{port}' if taken else ''}",  # noqa: E501
        ) from error


def _bind_unix(path: Path) -> socket.socket:
    """A bound Unix socket in the place of what a crash may have left there."""
    if _is_answered(path):
        raise JouledError(
            f"another jouled listens on {path}", mend="Stop it, or choose another directory with --state DIR"
        )
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        path.chmod(_SOCKET_MODE)
    except OSError as error:
        bound.close()
        raise JouledError(
            f"the Unix socket {path} cannot be made: {error.strerror or error}",
            mend="Set RUNTIME_DIRECTORY to a short path that this user may write to",
        ) from error
    return bound


def _is_answered(path: Path) -> bool:
    """Whether somebody listens there; what a crash left behind is not answered and gets replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False


def _state(good: bool, sentence: str) -> web.Response:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return web.Response(text=f"{sentence}\n", status=status)


async def _asked(request: web.Request, kind: type[Asked], example: str) -> Asked:
    try:
        return msgspec.json.decode(await read_body(request), type=kind)
    except msgspec.DecodeError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"send {example}: {error}") from error


def _release_handler(door: Door) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        asked = await _asked(request, _Release, '{"seconds": 600}')
        if not 0 < asked.seconds <= _LONGEST_RELEASE_SECONDS:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"seconds is above 0 and at most {_LONGEST_RELEASE_SECONDS:.0f}")
        released: dict[str, Any] = await door.release(asked.seconds)
        return as_json(released)

    return handle


def _forget_handler(door: Door) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        asked = await _asked(request, _Forget, '{"tenant": "NAME"}')
        return as_json({"forgotten": await door.forget(asked.tenant)})

    return handle


def _static_handler(content: bytes, content_type: str) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        headers = {"Content-Security-Policy": _CONTENT_SECURITY_POLICY}
        return web.Response(body=content, content_type=content_type, charset="utf-8", headers=headers)

    return handle
