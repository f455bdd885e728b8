"""A real server on a free port, with everything behind its door made by hand."""

import json
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
    shown: object = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.running.port}{path}"

    async def get(self, path: str, status: int = 200, **options):
        async with self.session.get(self.url(path), **options) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return json.loads(text) if answer.content_type == "application/json" else text

    async def post(self, path: str, body: bytes, status: int = 200, *, unix: bool = False, **headers):
        session = self.unix_session if unix else self.session
        sent = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        async with session.post(self.url(path), data=body, headers=sent) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return json.loads(text)


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a server; keyword arguments replace fields of its door."""
    opened: list[Served] = []

    async def start_server(**changes: object) -> Served:
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
            extra=dict,
            health=lambda: (True, "ok"),
            ready=lambda: (True, "ready"),
            token=None,
        )
        app = build_app(replace(door, **changes))
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
