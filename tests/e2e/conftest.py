"""A whole daemon as a process of its own, with a synthetic meter that comes as a third party's package would."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.e2e.engine_server import EngineServer
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for
from tests.support.tools import REPOSITORY, free_port

QUICK = [sys.executable, REPOSITORY / "tests/e2e/quick_daemon.py"]

METER = """
[power.fake]
"""

FINAL_SECONDS = 180.0
"""Until a receipt is final at the latest: a book that lacks an event waits two minutes for it in its first hour. It
seems to lack one where the page was asked for just before a request came or went, and answered just after."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables under which the package of a meter and a sink is installed, and no other state is touched."""
    package = tmp_path / "packages" / "fakepower-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fakepower\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[jouled.power]\nfake = tests.app.runtime.fakes:FakeCollector\n"
        "[jouled.sinks]\nprinter = tests.app.runtime.fakes:PrinterSink\n"
    )
    path = f"{package.parent}:{REPOSITORY}"
    return {"PYTHONPATH": path, "XDG_STATE_HOME": str(tmp_path / "xdg"), "NO_PROXY": "*", "RUNTIME_DIRECTORY": ""}


Launch = Callable[..., LiveDaemon]


@pytest.fixture
def launch(tmp_path: Path, environment: dict[str, str]) -> Iterator[Launch]:
    """Starts daemons on one state directory; whatever still runs at the end is stopped.

    inside: what stands in front of the command, and runs it.
    """
    daemons: list[LiveDaemon] = []

    def start(
        toml: str = METER, *options: str | Path, ready: bool = True, inside: Sequence[str | Path] = ()
    ) -> LiveDaemon:
        config = tmp_path / "config.toml"
        config.write_text(toml)
        port = free_port()
        command = [*inside, *QUICK, "run", "--config", config, "--state", tmp_path / "state", "--no-discovery"]
        command += ["--listen", f"127.0.0.1:{port}", *options]
        daemon = LiveDaemon(command, port, tmp_path / f"daemon-{len(daemons)}.log", environment)
        daemons.append(daemon)
        daemon.start()
        if ready:
            daemon.wait_until_ready()
        return daemon

    yield start
    for daemon in daemons:
        daemon.stop(5)


def until_covered(daemon: LiveDaemon, engine: EngineServer, seconds: float) -> None:
    """Wait until a request that took so long and ends now is within what was read of meter and engine."""
    wait_for(lambda: "jouled_device_power_watts{" in daemon.get("/metrics").decode(), PATIENCE_SECONDS, "no meter")
    engine.until_looked_at()
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > seconds, PATIENCE_SECONDS, "time stands still")


def children_of(daemon: LiveDaemon) -> list[int]:
    """Process ids of the daemon's children."""
    assert daemon.process is not None
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until_ended(pid: int, seconds: float = 30.0) -> bool:
    """Wait for a process that is not ours to end."""
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)
