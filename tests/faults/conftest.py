"""A whole daemon with sinks, and servers that are treated badly."""

import itertools
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import METER, QUICK, environment, launch  # noqa: F401 - fixtures
from tests.e2e.engine_server import EngineServer, engine_server
from tests.support.live import LiveDaemon, wait_for
from tests.support.tools import free_port, tool

ENGINE = "tiny-0"

__all__ = ["ENGINE", "METER", "QUICK", "LiveDaemon", "Victoria"]


class Victoria:
    """A VictoriaMetrics that can be killed, hung and brought back on the same data and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        with (self._folder / "victoria.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(tool("victoria-metrics")),
                    f"-storageDataPath={self._folder / 'data'}",
                    f"-httpListenAddr=127.0.0.1:{self._port}",
                    "-retentionPeriod=100y",
                    "-search.latencyOffset=0s",
                    # What is sent again is there once.
                    "-dedup.minScrapeInterval=1ms",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, 20, "victoria-metrics did not start", 0.05)

    def _answers(self) -> bool:
        try:
            self.get("/health")
        except OSError:
            return False
        return True

    def get(self, path: str, **parameters: str) -> bytes:
        """The body of a 200 answer; `OSError` for everything else."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=5) as answer:
            body: bytes = answer.read()
        return body

    def series(self, name: str) -> list[dict[str, Any]]:
        """Every series of a metric with all its samples, as `/api/v1/export` has them."""
        import json

        self.get("/internal/force_flush")
        lines = self.get("/api/v1/export", **{"match[]": name}).splitlines()
        return [json.loads(line) for line in lines]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


@pytest.fixture
def victoria(tmp_path: Path) -> Iterator[Victoria]:
    folder = tmp_path / "victoria"
    folder.mkdir()
    server = Victoria(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def engine() -> Iterator[tuple[EngineServer, str]]:
    with engine_server() as served:
        yield served


def configuration(engine_url: str, *sinks: str) -> str:
    """A meter, an engine with a page, and sinks."""
    table = f'[[engines]]\nname = "{ENGINE}"\ntype = "vllm"\nurl = "{engine_url}"\ndevices = ["gpu0"]\n'
    return "\n".join([METER, f"{table}interval_seconds = 0.2", "[spool]\ninterval_seconds = 1", *sinks])


def influx(victoria: Victoria) -> str:
    """The sink table for a VictoriaMetrics."""
    return f'[sinks.influx]\nurl = "{victoria.url}"\napi = "v1"\ndatabase = "jouled"\ntimeout_seconds = 2'


class Lives:
    """One daemon after the other on the same state and port numbers of its own; `url` is that of the present one."""

    def __init__(self, start: Callable[..., LiveDaemon], toml: str) -> None:
        self._launch = start
        self._toml = toml
        self.count = itertools.count()
        self.daemon = start(toml)

    @property
    def url(self) -> str:
        """Where the present one listens."""
        return self.daemon.url

    def kill_and_return(self, *, ready: bool = True) -> None:
        """SIGKILL, and another one at once."""
        self.daemon.kill()
        self.daemon = self._launch(self._toml, ready=ready)
