"""A real server on a free port, with everything behind its door made by hand."""

import json
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
from tests.support.snapshots import NOW_NS, receipt, snapshot

from jouled.api import MalformedBodyError, Received, ReceivedRequest, Rejected
from jouled.model.requests import RequestEvent
from jouled.outputs.serve import Door, Running, build_app, start
from jouled.outputs.store import Store


class LineIngest:
    """One request id a line; `bad` is refused, `core` too but by the core, `skip` is ignored, `{` breaks the body."""

    name = "lines"
    path = "/api/v1/requests"
    content_types = ("application/json", "text/x-lines")

    def decode(self, body: bytes, content_type: str) -> Received:
        requests, rejected, ignored = [], [], 0
        for number, line in enumerate(body.decode().splitlines(), 1):
            if line == "{":
                raise MalformedBodyError("unexpected end of data", f"line {number}")
            if line == "bad":
                rejected.append(Rejected(f"line {number}", "absurd_tokens", "prompt_tokens is -1"))
            elif line == "skip":
                ignored += 1
            else:
                event = RequestEvent(
                    engine="e", id=line, arrival_ns=1, first_token_ns=2, last_token_ns=3, prompt_tokens=1,
                    generation_tokens=1,
                )  # fmt: skip
                requests.append(ReceivedRequest(event=event))
        return Received(requests=requests, rejected=rejected, ignored=ignored)

    def respond(self, received, content_type):
        answer = {"accepted": len(received.requests), "rejected": len(received.rejected)}
        return json.dumps(answer).encode(), {"Content-Type": "application/json"}


@dataclass
class Served:
    """The running server and what it did."""

    running: Running
    session: aiohttp.ClientSession
    unix_session: aiohttp.ClientSession
    store: Store
    unix_socket: Path
    taken: list[str] = field(default_factory=list)
    forwarded: list[tuple[str, bytes, str]] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    scheme: str = "http"
    shown: object = None

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.running.port}{path}"

    async def get(self, path: str, status: int = 200, **options):
        async with self.session.get(self.url(path), **options) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return json.loads(text) if answer.content_type == "application/json" else text

    async def post(self, path: str, body: bytes, status: int = 200, *, unix: bool = False, **headers):
        session = self.unix_session if unix else self.session
        address = f"http://localhost{path}" if unix else self.url(path)
        sent = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        async with session.post(address, data=body, headers=sent) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return json.loads(text)


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a server; keyword arguments replace fields of its door, `web_config` is the path of its file."""
    opened: list[Served] = []

    async def start_server(web_config: Path | None = None, **changes: object) -> Served:
        store = Store(tmp_path / "state")
        served = Served(None, None, None, store, tmp_path / "api.sock", shown=snapshot())  # type: ignore[arg-type]

        async def accept(_, received):
            served.taken += [r.event.id for r in received.requests if r.event.id != "core"]
            kept = [r for r in received.requests if r.event.id != "core"]
            refused = [Rejected("request core", "unknown_engine", "no engine matches")] * (
                len(received.requests) - len(kept)
            )
            return Received(requests=kept, rejected=[*received.rejected, *refused], ignored=received.ignored)

        async def release(seconds):
            served.released.append(seconds)
            return {"released": ["nvml"], "until_ns": NOW_NS}

        door = Door(
            snapshot=lambda: served.shown,
            provisional=lambda request_id: (
                receipt(50, id="chatcmpl-live", provisional=True) if request_id in {"live", "chatcmpl-live"} else None
            ),
            receipts=store.receipts,
            ingests=[LineIngest()],
            accept=accept,
            forward=lambda ingest, raw, headers: served.forwarded.append(
                (ingest.name, raw, headers.get("Content-Encoding", ""))
            ),
            release=release,
            forget=store.forget,
            extra=dict,
            health=lambda: (True, "ok"),
            ready=lambda: (True, "ready"),
            token=None,
            refused=served.refused,
        )
        app = build_app(replace(door, **changes), web_config)
        served.running = await start(app, listen="127.0.0.1:0", unix_socket=served.unix_socket)
        served.session = aiohttp.ClientSession(auto_decompress=True)
        served.unix_session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(served.unix_socket)))
        opened.append(served)
        return served

    yield start_server
    for served in opened:
        await served.session.close()
        await served.unix_session.close()
        await served.running.close()
        served.store.close()


class Certificates:
    """Files of a CA, two server certificates, two client certificates, and a client certificate of another CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for ca in ("ca", "foreign-ca"):
            self._openssl("req", "-x509", "-subj", f"/CN={ca}", "-out", f"{ca}.pem", *self._key(ca), "-days", "2")
        for name, ca in (("one", "ca"), ("two", "ca"), ("client", "ca"), ("foreign", "foreign-ca")):
            self._openssl("req", "-new", "-subj", f"/CN={name}", "-out", f"{name}.csr", *self._key(name))
            (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
            self._openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
                "-extfile", "names", "-days", "2", "-out", f"{name}.pem",
            )  # fmt: skip

    def client(self, name: str = "", version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """What a client needs that trusts the CA, and shows this certificate."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    def encrypt(self, name: str, target: Path) -> None:
        """The key of a certificate, behind a password."""
        self._openssl("ec", "-in", f"{name}.key", "-aes256", "-passout", "pass:secret", "-out", str(target))

    def put(self, name: str, folder: Path) -> None:
        """Lay certificate and key of this name there as server.pem and server.key."""
        for ending in ("pem", "key"):
            fresh = folder / f"fresh.{ending}"
            fresh.write_bytes((self.folder / f"{name}.{ending}").read_bytes())
            fresh.replace(folder / f"server.{ending}")

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def web_file(tmp_path: Path) -> Callable[[str], Path]:
    """Puts a text in the place of web.yml, all at once."""

    def write(text: str) -> Path:
        fresh = tmp_path / "fresh.yml"
        fresh.write_text(text)
        return fresh.replace(tmp_path / "web.yml")

    return write
