"""A real vLLM on this machine's CPU with the tiny model, prepared by scripts/setup_real_engine.sh."""

import os
import signal
import subprocess
import urllib.request
from pathlib import Path

from tests.support.live import Page, wait_for
from tests.support.tools import REPOSITORY, free_port, run

ENGINE_VENV = REPOSITORY / ".venv-engine"
MODEL_LENGTH_TOKENS = 32768
CONCURRENT_SEQUENCES = 32
START_TIMEOUT_SECONDS = 300.0
"""156 s were seen on two busy cores with compilation; without it 30 s are usual."""


def install_plugin(wheel: Path) -> tuple[set[str], set[str]]:
    """Install jouled's wheel beside vLLM and nothing else; all packages with their versions, before and after."""
    pip: list[str | Path] = [ENGINE_VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input"]

    def packages() -> set[str]:
        return set(run([*pip, "list", "--format", "freeze"], timeout_seconds=60).stdout.splitlines())

    run([*pip, "uninstall", "--yes", "jouled"], timeout_seconds=60)
    before = packages()
    installed = run([*pip, "install", "--no-deps", "--no-index", wheel], timeout_seconds=60)
    assert installed.returncode == 0, installed.stdout
    return before, packages()


class RealEngine:
    """`vllm serve` as a child process: its spans go to `traces_url`, its stat-logger plug-in sends to `socket`.

    traces_url: empty, no spans.
    """

    def __init__(self, name: str, traces_url: str, socket: Path, log: Path) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._traces_url = traces_url
        self._socket = socket
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return at once."""
        command = self.command()
        with self.log.open("wb") as log:
            # A process group, so that the engine's worker processes can be stopped with it; not a session: where
            # the kernel schedules sessions as groups (sched_autogroup), the engine's threads, which spin on
            # sched_yield(), left the sessions beside theirs without a turn for many seconds (Linux 6.18, two cores).
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment(), process_group=0)

    def command(self) -> list[str | Path]:
        """What starts it. Raises `FileNotFoundError` if it was never set up."""
        vllm = ENGINE_VENV / "bin" / "vllm"
        if not vllm.exists():
            raise FileNotFoundError(f"{vllm} is missing: run scripts/setup_real_engine.sh")
        command: list[str | Path] = [vllm, "serve", ENGINE_VENV / "model", "--served-model-name", "tiny"]
        command += ["--enforce-eager", "--enable-prompt-tokens-details"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        if self._traces_url:
            command += ["--otlp-traces-endpoint", self._traces_url]
        return [*command, "--max-model-len", str(MODEL_LENGTH_TOKENS), "--max-num-seqs", str(CONCURRENT_SEQUENCES)]

    def environment(self) -> dict[str, str]:
        """The variables that it runs with."""
        return {
            **os.environ,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": self.name,
            "JOULED_SOCKET": str(self._socket),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CACHE_ROOT": str(ENGINE_VENV / "cache"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def wait_until_ready(self) -> None:
        """Wait until it answers /health."""
        wait_for(self._answers, START_TIMEOUT_SECONDS, f"vLLM did not get ready; see {self.log}", every_seconds=1.0)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"vLLM ended with code {self._process.returncode}; see {self.log}")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def page(self) -> Page:
        """Its own /metrics page."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            return Page(answer.read().decode())

    def stop(self) -> None:
        """End the server and its workers."""
        if self._process is None:
            return
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, ending)
                self._process.wait(timeout=30)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
