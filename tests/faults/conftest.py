"""A whole daemon with sinks, and servers that are treated badly."""

import itertools
import json
import os
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import FINAL_SECONDS, METER, QUICK, environment, launch  # noqa: F401 - fixtures
from tests.e2e.engine_server import EngineServer, engine_server
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for
from tests.support.network import Network, ip, network
from tests.support.tools import free_port, tool

ENGINE = "tiny-0"

__all__ = ["ENGINE", "FINAL_SECONDS", "METER", "QUICK", "LiveDaemon", "Victoria"]


class Server:
    """A server that can be killed, hung and brought back on the same data and port."""

    ready_path = "/"

    def __init__(self, folder: Path, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.address = f"{host}:{free_port()}"
        self.url = f"http://{self.address}"
        self.process: subprocess.Popen[bytes] | None = None
        self._prefix = prefix

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def start(self) -> None:
        """Start and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            command = [*self._prefix, *self.command()]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._answers, PATIENCE_SECONDS, f"{command[0]} did not start", 0.05)

    def _answers(self) -> bool:
        try:
            self.get(self.ready_path)
        except OSError:
            return False
        return True

    def get(self, path: str, **parameters: str) -> bytes:
        """The body of a 200 answer; `OSError` for everything else."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=30) as answer:
            body: bytes = answer.read()
        return body

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


class Victoria(Server):
    """VictoriaMetrics."""

    ready_path = "/health"

    def command(self) -> list[str]:
        return [
            str(tool("victoria-metrics")),
            f"-storageDataPath={self.folder / 'data'}",
            f"-httpListenAddr={self.address}",
            "-retentionPeriod=100y",
            "-search.latencyOffset=0s",
            # What is sent again is there once.
            "-dedup.minScrapeInterval=1ms",
        ]

    def series(self, name: str) -> list[dict[str, Any]]:
        """Every series of a metric with all its samples, as `/api/v1/export` has them."""
        self.get("/internal/force_flush")
        lines = self.get("/api/v1/export", **{"match[]": name}).splitlines()
        return [json.loads(line) for line in lines]


class Prometheus(Server):
    """Prometheus with its receiver for remote write."""

    ready_path = "/-/ready"

    def command(self) -> list[str]:
        (self.folder / "prometheus.yml").write_text("")
        return [
            str(tool("prometheus")),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--web.enable-remote-write-receiver",
        ]

    def samples(self, query: str) -> list[tuple[float, float]]:
        """Time and value of all samples of the only series that a query finds in the last hour; empty if none."""
        found = json.loads(self.get("/api/v1/query", query=f"{query}[1h]"))["data"]["result"]
        return [(float(at), float(value)) for at, value in found[0]["values"]] if found else []


@pytest.fixture
def victoria(tmp_path: Path) -> Iterator[Victoria]:
    folder = tmp_path / "victoria"
    folder.mkdir()
    server = Victoria(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    server = Prometheus(folder)
    server.start()
    yield server
    server.kill()


class Cable:
    """The cable to a network, which can be pulled: what is sent then gets no answer at all."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def pull(self) -> None:
        """Cut it."""
        ip("-n", self.network.name, "link", "set", self.network.their_end, "down")

    def plug(self) -> None:
        """Mend it."""
        ip("-n", self.network.name, "link", "set", self.network.their_end, "up")

    def firewall(self, verdict: str) -> None:
        """A rule over there for all that comes in: `drop` it, or `reject with tcp reset`."""
        chain = f"type filter hook input priority 0\nmeta l4proto tcp {verdict}"
        self._rules(f"table inet jouled {{\nchain incoming {{\n{chain}\n}}\n}}")

    def no_firewall(self) -> None:
        """No rule."""
        self._rules("")

    def _rules(self, rules: str) -> None:
        command = ["ip", "netns", "exec", self.network.name, str(tool("nft")), "-f", "-"]
        subprocess.run(command, input=f"flush ruleset\n{rules}\n", text=True, check=True)

    def throttle(self, kilobits: int) -> None:
        """So many kilobits a second pass to the other end."""
        limit = ["tbf", "rate", f"{kilobits}kbit", "burst", "8kb", "latency", "400ms"]
        subprocess.run([str(tool("tc")), "qdisc", "add", "dev", self.network.our_end, "root", *limit], check=True)

    def no_throttle(self) -> None:
        """All passes."""
        subprocess.run([str(tool("tc")), "qdisc", "del", "dev", self.network.our_end, "root"], check=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0:
        pytest.skip("a network of its own takes root")
    with network() as made:
        yield Cable(made)


@pytest.fixture
def victoria_far_away(tmp_path: Path, cable: Cable) -> Iterator[Victoria]:
    """At the other end of the cable."""
    folder = tmp_path / "victoria"
    folder.mkdir()
    server = Victoria(folder, cable.network.theirs, ["ip", "netns", "exec", cable.network.name])
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

    def kill_and_return(self, *, ready: bool = True) -> float:
        """SIGKILL, and another one at once; how many seconds that took."""
        began = time.monotonic()
        self.daemon.kill()
        self.daemon = self._launch(self._toml, ready=ready)
        return time.monotonic() - began
