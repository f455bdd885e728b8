"""Find the twin that runs for a state directory, start one if there is none, or stop it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from jouled_collectors.twin.server import STATE_FILE

_ASK_SECONDS = 2.0
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class TwinError(Exception):
    """The twin cannot be started; says why and where its own words are."""


class TwinInfo(Struct, frozen=True, kw_only=True):
    """A twin that runs. engines: one mapping each, with name, type, url, model, devices and the model's sizes."""

    url: str
    pid: int
    engines: list[dict[str, Any]]
    spans_url: str = ""


class _Record(Struct, frozen=True):
    pid: int
    url: str


def ensure_running(
    directory: Path, spans_url: str, *, seed: int = 1, load: float = 0.6, linger: float = 1800.0
) -> TwinInfo:
    """The twin of this state directory, started if none runs; its spans go to `spans_url` from now on.

    A twin that runs keeps its seed and load. Raises `TwinError`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        info = running(directory)
        if info is None:
            info = _start(directory, spans_url, seed=seed, load=load, linger=linger)
    if info.spans_url != spans_url:
        _ask(f"{info.url}/spans", msgspec.json.encode({"url": spans_url}))
    return info


def running(directory: Path) -> TwinInfo | None:
    """The healthy twin recorded in a state directory, if there is one."""
    try:
        record = msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=_Record)
        info = msgspec.json.decode(_ask(f"{record.url}/healthz"), type=TwinInfo)
    except (OSError, ValueError):
        return None
    return info if info.pid == record.pid else None


def stop(directory: Path) -> bool:
    """Stop the twin of a state directory; false if none runs. Raises `TwinError` if it does not end."""
    info = running(directory)
    if info is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(info.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while running(directory) is not None:
        if time.monotonic() > deadline:
            raise TwinError(f"the twin (process {info.pid}) does not end; end it with `kill -9 {info.pid}`")
        time.sleep(_LOOK_SECONDS)
    return True


def _start(directory: Path, spans_url: str, *, seed: int, load: float, linger: float) -> TwinInfo:
    command = [sys.executable, "-m", "jouled_collectors.twin", "run", "--port", "0", "--state", str(directory)]
    command += ["--spans", spans_url, "--seed", str(seed), "--load", str(load), "--linger-seconds", str(linger)]
    log_path = directory / "twin.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        info = running(directory)
        if info is not None and info.pid == process.pid:
            # It outlives us on purpose: nobody waits for it.
            process.returncode = 0
            return info
        if process.poll() is not None:
            raise TwinError(f"the twin ended at once with code {process.returncode}; see {log_path}")
        time.sleep(_LOOK_SECONDS)
    process.kill()
    process.wait()
    raise TwinError(f"the twin did not listen within {_START_SECONDS:.0f} s; see {log_path}")


def _ask(url: str, body: bytes | None = None) -> bytes:
    """GET, or POST a body; only to the loopback address that a state file or a twin told of."""
    request = urllib.request.Request(url, data=body)  # noqa: S310 - the record holds http URLs of a twin only
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_ASK_SECONDS) as answer:
        content: bytes = answer.read()
        return content


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two that look at the same time must not start two twins."""
    with (directory / "twin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
