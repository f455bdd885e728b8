"""A vLLM server as far as the daemon can see one: its page and its version, in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.live import PATIENCE_SECONDS

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny"}} {running}.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="tiny"}} 0.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="tiny"}} {prompt}.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {generation}.0
"""


class EngineServer:
    """What the page says, and how the server behaves: good, hang, drip, garbage."""

    def __init__(self, behaviour: str = "good") -> None:
        self.behaviour = behaviour
        self.prompt = 1000
        self.generation = 500
        self.running = 0
        self.bodies: list[tuple[str, bytes]] = []
        self.ended = threading.Event()
        self._pages = 0
        self._looked = threading.Condition()

    def until_looked_at(self) -> None:
        """Wait for two more looks at the page: the daemon has taken the first one, and asks again only from now on.

        A page is dated between when it was asked for and when it came. What changes on it after that, and what is told
        to have begun or ended before it, is as the looks have it.
        """
        with self._looked:
            seen = self._pages + 2
            if not self._looked.wait_for(lambda: self._pages >= seen, PATIENCE_SECONDS):
                raise TimeoutError("nobody looks at the engine's page")

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a GET."""
        if self.behaviour == "hang":
            self.ended.wait(30)
            return
        if self.behaviour == "drip":
            self._drip(request)
            return
        body = b'{"version": "0.33.0"}'
        if request.path == "/metrics":
            garbage = self.behaviour == "garbage"
            page = PAGE.format(prompt=self.prompt, generation=self.generation, running=self.running).encode()
            body = b"\xff\xfe<html>\x00" * 1000 if garbage else page
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
        if request.path == "/metrics":
            with self._looked:
                self._pages += 1
                self._looked.notify_all()

    def _drip(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        while not self.ended.wait(0.05):
            request.wfile.write(b"#")


@contextmanager
def engine_server(behaviour: str = "good") -> Iterator[tuple[EngineServer, str]]:
    """Serve; gives the engine and its URL. A POST is kept in `bodies`."""
    engine = EngineServer(behaviour)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                engine.answer(self)
            except OSError:
                self.close_connection = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            engine.bodies.append((self.headers["Content-Type"], body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield engine, f"http://127.0.0.1:{server.server_port}"
    finally:
        engine.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
