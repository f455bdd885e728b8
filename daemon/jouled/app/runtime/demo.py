"""`jouled demo`: the daemon on the digital twin of an 8-GPU node, graded against the twin's truth.

The twin is another program, known here by its command line and its HTTP answers only. It outlives the daemon.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jouled.app.config import Config, EngineConfig, RunOptions, paths
from jouled.app.config.types import Node, Serve
from jouled.app.runtime import process
from jouled.app.runtime.engines.pages import fetch, open_session
from jouled.app.runtime.grading import Grader, Truth
from jouled.model.errors import JouledError, SourceError
from jouled.model.parameters import Price, Slo
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot
from jouled.outputs.serve.server import parse_listen
from jouled.outputs.store import Store

_TWIN = (sys.executable, "-m", "jouled_collectors.twin")
_ENSURE_SECONDS = 30.0
_STOP_SECONDS = 15.0
_GRADE_SECONDS = 3.0
_NEVER_NS = 2**62
"""A time after all others: the truth since then is its totals only."""

_SLOS = (
    Slo("interactive", ttft=500.0, tpot=50.0),
    Slo("relaxed", ttft=2_000.0, tpot=100.0),
    Slo("whole_answer", e2el=30_000.0),
)
_PRICE = Price(currency="EUR", price_per_kwh=0.20, hardware_price_per_hour=20.0, pue=1.25, grid_grams_per_kwh=350.0)


class Twin(Struct, frozen=True):
    """Where the twin is, and its engines as an operator would configure them."""

    url: str
    pid: int
    engines: list[EngineConfig]


def run(options: RunOptions) -> int:
    """Start the twin or find it running, and run the daemon on it until SIGTERM or SIGINT; the exit code.

    Raises `JouledError`.
    """
    options = replace(options, demo=True, discover=False, listen=_with_port(options.listen or Serve().listen))
    state = paths(options, Config(), os.environ).state
    _check_free(options.listen or "", state)
    twin = _ensure(state / "twin", f"http://{_reachable(options.listen or '')}/v1/traces")
    config = Config(
        node=Node(name="twin"),
        engines=twin.engines,
        slo=list(_SLOS),
        power={"twin": {"url": twin.url}},
        cost=_PRICE,
    )
    sys.stderr.write(f"The twin of an 8-GPU node runs as process {twin.pid}; the page: http://{options.listen}/\n")
    code = process.run(config, options, _Grading(twin.url))
    command = "jouled demo --stop" + (f" --state {options.state}" if options.state else "")
    sys.stderr.write(f"The twin runs on, for the next demo. It ends by itself after half an hour, or by: {command}\n")
    return code


def stop(options: RunOptions) -> str:
    """End the twin of the state directory; what happened, in words. Raises `JouledError` if it does not end."""
    directory = paths(replace(options, demo=True), Config(), os.environ).state / "twin"
    return _ask_twin("ended", "stop", "--state", str(directory), seconds=_STOP_SECONDS).strip()


class _Grading:
    """Asks the twin for the truth every few seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._grader: Grader | None = None

    async def run(self, snapshot: Callable[[], Snapshot]) -> None:
        """Grade until cancelled. A truth that cannot be had is asked for again."""
        since_ns = _NEVER_NS
        async with open_session() as session:
            while True:
                try:
                    truth = await self._ask(session, since_ns)
                except (SourceError, msgspec.MsgspecError):
                    await asyncio.sleep(_GRADE_SECONDS)
                    continue
                since_ns = truth.next_since_ns
                if self._grader is None:
                    # What a twin that ran before has to tell of earlier requests is not this daemon's to know.
                    self._grader = Grader(truth.t_ns)
                    since_ns = truth.t_ns
                self._grader.take_truth(truth, snapshot())
                await asyncio.sleep(0 if truth.more else _GRADE_SECONDS)

    def take(self, receipts: Sequence[Receipt]) -> None:
        """Hand final receipts to the grader."""
        if self._grader is not None:
            self._grader.take_receipts(receipts)

    def extra(self) -> Mapping[str, Any]:
        """The figures for the page."""
        return {"graded": self._grader.figures()} if self._grader is not None else {}

    async def _ask(self, session: aiohttp.ClientSession, since_ns: int) -> Truth:
        return msgspec.json.decode(await fetch(session, f"{self._url}/truth?since_ns={since_ns}"), type=Truth)


def _ensure(directory: Path, spans_url: str) -> Twin:
    words = ("ensure", "--state", str(directory), "--spans", spans_url)
    return msgspec.json.decode(_ask_twin("started", *words, seconds=_ENSURE_SECONDS), type=Twin)


def _ask_twin(wanted: str, *words: str, seconds: float) -> str:
    """What the twin's own command prints. Raises `JouledError`: it cannot be started, or ended, as wanted."""
    try:
        asked = subprocess.run([*_TWIN, *words], capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JouledError(f"the twin cannot be {wanted}: {error}") from error
    if asked.returncode:
        raise JouledError(f"the twin cannot be {wanted}: {asked.stderr.strip().rpartition(chr(10))[2]}")
    return asked.stdout


def _with_port(listen: str) -> str:
    """The address with a real port: the twin has to know it before the daemon listens."""
    host, port = parse_listen(listen)
    if port:
        return listen
    with socket.create_server((host, 0)) as probe:
        return f"{host}:{probe.getsockname()[1]}"


def _check_free(listen: str, state: Path) -> None:
    """Another demo must not lose its spans to one that cannot start. Raises `JouledError`."""
    Store(state).close()
    host, port = parse_listen(listen)
    try:
        socket.create_server((host, port), reuse_port=False).close()
    except OSError as error:
        raise JouledError(
            f"{listen} cannot be listened on: {error.strerror}", mend="Choose another one with --listen HOST:PORT"
        ) from error


def _reachable(listen: str) -> str:
    """Where the twin, on this host, can send to."""
    return listen.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
