"""A whole daemon as a process of its own, with a synthetic meter that comes as a third party's package would."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.live import LiveDaemon
from tests.support.tools import REPOSITORY

QUICK = [sys.executable, REPOSITORY / "tests/e2e/quick_daemon.py"]

METER = """
[power.fake]
"""


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
def launch(tmp_path: Path, environment: dict[str, str], unused_tcp_port_factory: Callable[[], int]) -> Iterator[Launch]:
    """Starts daemons on one state directory; whatever still runs at the end is stopped."""
    daemons: list[LiveDaemon] = []

    def start(toml: str = METER, *options: str | Path, ready: bool = True) -> LiveDaemon:
        config = tmp_path / "config.toml"
        config.write_text(toml)
        port = unused_tcp_port_factory()
        command = [*QUICK, "run", "--config", config, "--state", tmp_path / "state", "--no-discovery"]
        command += ["--listen", f"127.0.0.1:{port}", *options]
        daemon = LiveDaemon(command, port, tmp_path / f"daemon-{len(daemons)}.log", environment)
        daemons.append(daemon)
        daemon.start()
        if ready:
            daemon.wait_until_ready(20)
        return daemon

    yield start
    for daemon in daemons:
        daemon.stop(5)


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


def until_ended(pid: int, seconds: float = 5.0) -> bool:
    """Wait for a process that is not ours to end."""
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)
