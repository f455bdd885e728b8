"""A real disaggregated Dynamo on this machine: a frontend, a prefill and a decode worker as processes of their own.

Wiring, roles, pages and spans are real; the workers are Dynamo's mocker, which simulates the time that a GPU takes.
Prepared by scripts/setup_real_dynamo.sh.
"""

import os
import random
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

from tests.support.live import wait_for
from tests.support.tools import REPOSITORY, free_port

DYNAMO_VENV = REPOSITORY / ".venv-dynamo"
MODEL = "tiny"
START_TIMEOUT_SECONDS = 180.0
SLOWER = "0.2"
"""Of the mocker's usual speed: a prompt then takes tenths of a second, so that a meter sees it."""

_PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")


def free_system_port() -> int:
    """A port for a worker's page: Dynamo 1.6.1 reads it as a signed 16-bit number."""
    for port in random.Random().sample(range(20_000, 2**15), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no port below 32768 is free")


class RealDynamo:
    """The three processes; each sends its spans by gRPC to `traces_url`."""

    def __init__(self, folder: Path, traces_url: str) -> None:
        self._folder = folder
        self._traces_url = traces_url
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port, self.prefill_port, self.decode_port = free_port(), free_system_port(), free_system_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.worker_urls = [f"http://127.0.0.1:{port}" for port in (self.prefill_port, self.decode_port)]

    def start(self) -> None:
        """Start them and return at once."""
        python = DYNAMO_VENV / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"{python} is missing: run scripts/setup_real_dynamo.sh")
        worker = ["dynamo.mocker", "--model-path", str(DYNAMO_VENV / "model"), "--model-name", MODEL]
        worker += ["--speedup-ratio", SLOWER, "--disaggregation-mode"]
        self._start(python, "prefill", [*worker, "prefill"], self.prefill_port)
        self._start(python, "decode", [*worker, "decode"], self.decode_port)
        self._start(python, "frontend", ["dynamo.frontend", "--http-port", str(self.port)], None)

    def _start(self, python: Path, name: str, module: list[str], system_port: int | None) -> None:
        environment = {
            **os.environ,
            "DYN_FILE_KV": str(self._folder / "kv"),
            "HF_HUB_OFFLINE": "1",
            "DYN_LOGGING_JSONL": "1",
            "OTEL_EXPORT_ENABLED": "1",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": self._traces_url,
            "OTEL_SERVICE_NAME": f"dynamo-{name}",
        }
        if system_port is not None:
            environment["DYN_SYSTEM_PORT"] = str(system_port)
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [python, "-m", *module, *_PLANES]
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            )

    def wait_until_ready(self) -> None:
        """Wait until the frontend can hand a request to both workers."""
        wait_for(self._is_ready, START_TIMEOUT_SECONDS, f"Dynamo did not get ready; see {self._folder}", 1.0)

    def _is_ready(self) -> bool:
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"a process of Dynamo ended with code {process.returncode}; see {self._folder}")
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
                return MODEL.encode() in answer.read()
        except OSError:
            return False

    def stop(self) -> None:
        """End all of them and what they started."""
        for process in self._processes:
            for ending in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, ending)
                    process.wait(timeout=10)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
