"""A stand-in for a dcgm-exporter: serves a page, or misbehaves, on a port of the loopback.

The pages `h100.txt` and `a30_mig.txt` have the form of the exporter's template: pods and MIG instances repeat the watts
of their GPU.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

H100 = (Path(__file__).parent / "h100.txt").read_bytes()
A30_MIG = (Path(__file__).parent / "a30_mig.txt").read_bytes()


class FakeExporter:
    """What is served, to be changed under way. `authorization`: the header of the last request."""

    def __init__(self) -> None:
        self.body = H100
        self.status = 200
        self.delay_seconds = 0.0
        self.authorization: str | None = None
        self.paths: list[str] = []
        self.url = ""

    def replace(self, old: str, new: str) -> None:
        """Change the page; `old` must be there."""
        assert old.encode() in self.body
        self.body = self.body.replace(old.encode(), new.encode())


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[FakeExporter]:
    """An HTTP server; with a certificate (and its key) it speaks TLS."""
    exporter = FakeExporter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exporter.paths.append(self.path)
            exporter.authorization = self.headers["Authorization"]
            time.sleep(exporter.delay_seconds)
            self.send_response(exporter.status)
            self.send_header("Content-Length", str(len(exporter.body)))
            self.end_headers()
            self.wfile.write(exporter.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        scheme = "https"
    exporter.url = f"{scheme}://127.0.0.1:{server.server_port}/metrics"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def speak(pieces: Iterable[bytes], pause_seconds: float = 0.0, stays: bool = False) -> Iterator[str]:
    """A server that sends these bytes to whoever connects, whatever it asks. Yields its address.

    pause_seconds: between two pieces. stays: it keeps the connection open afterwards.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve_one() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                try:
                    for piece in pieces:
                        peer.sendall(piece)
                        if over.wait(pause_seconds):
                            return
                    if stays:
                        over.wait()
                    else:
                        peer.recv(65536)
                except OSError:
                    continue

    thread = threading.Thread(target=serve_one)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
