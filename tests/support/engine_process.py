"""A vLLM server as a process of its own, as far as discovery and a scrape can see one: of any user, in any network."""

import contextlib
import os
import random
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.engine_server import PAGE

SYSTEM_PYTHON = "/usr/bin/python3"
"""Other users cannot use an interpreter that lies in a home."""

OTHER_USER = 12_345

# Called as `vllm serve MODEL --port PORT`; without a port it takes that of $TEST_PORT, as if from a file. What it is
# asked goes to its standard output.
SERVER = """
import http.server, os, sys
page = open(os.path.dirname(os.path.abspath(sys.argv[0])) + "/page", "rb").read()
port = int(sys.argv[sys.argv.index("--port") + 1] if "--port" in sys.argv else os.environ["TEST_PORT"])
host = sys.argv[sys.argv.index("--host") + 1] if "--host" in sys.argv else "0.0.0.0"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("GET", self.path, flush=True)
        body = b'{"version": "0.33.0"}' if self.path == "/version" else page
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer((host, port), Handler)
print("listening", server.server_port, flush=True)
server.serve_forever()
"""

PROXY = """
import socket, threading
def copy(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
server = socket.create_server(("127.0.0.1", {port}))
print("listening", flush=True)
while True:
    client, _ = server.accept()
    engine = socket.create_connection(("{to_address}", {to_port}))
    for ends in ((client, engine), (engine, client)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
"""


def engine_port() -> int:
    """A port that nobody listens on, and that the kernel gives to no connection until a server takes it."""
    while True:
        port = random.randrange(20_000, 32_000)  # below the range of ip_local_port_range
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


class EngineProcess:
    """The running server. `asked`: the paths that it was asked for so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.port = int(process.stdout.readline().split()[1])
        self.asked: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Of the server itself: what starts it in another network or as another user becomes it."""
        return self.process.pid

    def kill(self) -> None:
        """End it, and hear it out."""
        self.process.kill()
        self.process.wait(10)
        self._listener.join(10)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.asked.extend(line.split()[1] for line in self.process.stdout)


@contextlib.contextmanager
def engine_process(
    *arguments: str, user: int | None = None, namespace: str = "", environ: dict[str, str] | None = None
) -> Iterator[EngineProcess]:
    """Serve with these arguments after `vllm serve tiny`, as this user, in this named network namespace."""
    before: list[str] = ["ip", "netns", "exec", namespace] if namespace else []
    if user is not None:
        before += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - another user runs what lies there
        server = Path(folder, "vllm")
        server.write_text(SERVER)
        Path(folder, "page").write_text(PAGE.format(running=0, prompt=1000, generation=500))
        with ended(
            [*before, SYSTEM_PYTHON, str(server), "serve", "tiny", *arguments],
            env={"PATH": os.environ["PATH"], **(environ or {})},
        ) as process:
            engine = EngineProcess(process)
            try:
                yield engine
            finally:
                engine.kill()


@contextlib.contextmanager
def port_proxy(kind: str, port: int, to_address: str, to_port: int) -> Iterator[None]:
    """A real proxy of TCP from this port of loopback, whose command line is that of `docker-proxy` or of `socat`."""
    command_lines = {
        "docker-proxy": f"-proto tcp -host-ip 127.0.0.1 -host-port {port} -container-ip {to_address} "
        f"-container-port {to_port}",
        "socat": f"TCP-LISTEN:{port},fork,bind=127.0.0.1 TCP:{to_address}:{to_port}",
    }
    code = PROXY.format(port=port, to_address=to_address, to_port=to_port)
    with ended([kind, "-c", code, *command_lines[kind].split()], executable=SYSTEM_PYTHON) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield


@contextlib.contextmanager
def ended(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program and kill it afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
