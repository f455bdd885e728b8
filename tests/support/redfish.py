"""A BMC that speaks Redfish over TLS, in a thread: sessions as DSP0266 has them, and faults on demand."""

import asyncio
import base64
import secrets
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from tests.support.mosquitto import certificates
from tests.support.redfish_trees import ROOT, Tree

USER, PASSWORD = "jouled", "s3cret-of-the-bmc"
SESSIONS = "/redfish/v1/SessionService/Sessions"

__all__ = ["PASSWORD", "SESSIONS", "USER", "Bmc", "certificates", "running"]


class Bmc:
    """tree: what it answers by path: a document, or bytes, or a `web.Response` maker.

    delay_seconds: before each answer; hangs: never answers GETs; statuses: an answer's status by path;
    has_sessions: whether it has a session service; wants_login: whether reading needs one; breaks_off: whether a
    refusal ends amid its body, as iDRAC 8 does (check_redfish#90).
    """

    def __init__(self, tree: Tree, tls: Path | None) -> None:
        self.tree = tree
        self.delay_seconds = 0.0
        self.hangs = False
        self.has_sessions = True
        self.wants_login = True
        self.root_is_open = True
        self.breaks_off = False
        self.sessions_path = SESSIONS
        self.login_status = 201
        self.login_body: Any = {}
        self.statuses: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.tokens: dict[str, str] = {}
        self.logins = 0
        self.logouts = 0
        self.most_in_flight = 0
        self.seen_headers: list[dict[str, str]] = []
        self.port = 0
        self._scheme = "https" if tls else "http"
        self._tls = _server_context(tls) if tls else None
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def forget_sessions(self) -> None:
        """As a reset of the BMC does."""
        self.tokens.clear()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen_headers.append(dict(request.headers))
        self.asked[f"{request.method} {request.path}"] += 1
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(3600 if self.hangs else self.delay_seconds)
            return await self._respond(request)
        finally:
            self._in_flight -= 1

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in self.statuses:
            return web.json_response({"error": {}}, status=self.statuses[path], headers=self.headers)
        if path == self.sessions_path and request.method == "POST":
            return self._log_in(await request.json())
        is_open = not self.wants_login or (path == ROOT and self.root_is_open)
        if not is_open and not self._is_known(request):
            if self.breaks_off:
                return await _broken_off(request)
            return web.json_response({"error": {"code": "Base.1.0.NoValidSession"}}, status=401)
        if request.method == "DELETE":
            self.logouts += 1
            self.tokens = {token: session for token, session in self.tokens.items() if session != path}
            return web.Response(status=204)
        return self._resource(path)

    def _resource(self, path: str) -> web.StreamResponse:
        found = self.tree.get(path, self.tree.get(path.rstrip("/")))
        if found is None:
            return web.json_response({"error": {}}, status=404)
        if callable(found):
            found = found()
        if isinstance(found, web.StreamResponse):
            return found
        return web.Response(body=found) if isinstance(found, bytes) else web.json_response(found)

    def _log_in(self, asked: dict[str, str]) -> web.Response:
        if not self.has_sessions:
            return web.Response(status=404)
        if self.login_status != 201:
            return web.json_response(self.login_body, status=self.login_status)
        if (asked["UserName"], asked["Password"]) != (USER, PASSWORD):
            return web.json_response({"error": {"code": "Base.1.0.InsufficientPrivilege"}}, status=401)
        self.logins += 1
        token, session = secrets.token_hex(8), f"{self.sessions_path}/{self.logins}"
        self.tokens[token] = session
        headers = {"X-Auth-Token": token, "Location": f"https://bmc.internal{session}"}
        return web.json_response({"Id": str(self.logins)}, status=201, headers=headers)

    def _is_known(self, request: web.Request) -> bool:
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        is_basic = not self.has_sessions and request.headers.get("Authorization") == f"Basic {pair}"
        return is_basic or request.headers.get("X-Auth-Token") in self.tokens


async def _broken_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=401)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"<html>")
    request.transport.close()
    return response


def _server_context(tls: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    return context


@contextmanager
def running(tree: Tree, tls: Path | None) -> Iterator[Bmc]:
    """A BMC with this tree, stopped at the end."""
    bmc = Bmc(tree, tls).start()
    try:
        yield bmc
    finally:
        bmc.stop()
