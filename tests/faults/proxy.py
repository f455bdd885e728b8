"""A proxy before a real server: lets requests pass, or answers instead of it, or spoils what it said."""

import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PASSES = "passes"
BUSY, BROKEN = 429, 500
WRITTEN_BUT_500 = "written, and 500 is answered"
WRITTEN_BUT_CUT = "written, and the connection is cut instead of an answer"
CUT_IN_THE_BODY = "the connection is cut in the middle of the body"


class Proxy:
    """To `upstream`, on a port of its own. `behaviour`: a status, or one of the words above; `asked` counts by it."""

    def __init__(self, upstream: str) -> None:
        self.behaviour: int | str = PASSES
        self.asked: dict[int | str, int] = {}
        self._upstream = upstream
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                proxy.handle(self)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """No longer listen."""
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """One request, as the behaviour is now."""
        behaviour = self.behaviour
        self.asked[behaviour] = self.asked.get(behaviour, 0) + 1
        if behaviour == CUT_IN_THE_BODY:
            request.rfile.read(10)
            request.close_connection = True
            return
        body = request.rfile.read(int(request.headers["Content-Length"]))
        status = behaviour if isinstance(behaviour, int) else self._pass_on(request, body)
        if behaviour == WRITTEN_BUT_CUT:
            request.close_connection = True
            return
        request.send_response(BROKEN if behaviour == WRITTEN_BUT_500 else status)
        if status == BUSY:
            request.send_header("Retry-After", "2")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> int:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self._upstream + request.path, body, headers)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
