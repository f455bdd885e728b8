"""A real Triton Inference Server on this machine's CPU, with models of our own for its Python backend.

Server, backend, page and HTTP endpoints are real; the models only count (`triton_models/`). Prepared by
scripts/setup_real_triton.sh.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.live import Page, wait_for
from tests.support.tools import REPOSITORY, free_port

TRITON_VENV = REPOSITORY / ".venv-triton"
MODELS = Path(__file__).parent / "triton_models"
DEFAULT_METRICS_PORT = 8002
START_TIMEOUT_SECONDS = 120.0
EXIT_TIMEOUT_SECONDS = 5

# One line of the log for each request, of the HTTP port and of the metrics port alike.
_ASKED = re.compile(r'"HTTP request: \d+ (\S+)"')
_CONFIGURATION = """
name: "{name}"
backend: "python"
input [ {{ name: "ASK" data_type: TYPE_INT32 dims: [ 3 ] }} ]
output [ {{ name: "TOKENS" data_type: TYPE_INT32 dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "backend" value {{ string_value: "{backend}" }} }}
parameters {{ key: "places" value {{ string_value: "{places}" }} }}
parameters {{ key: "drops" value {{ string_value: "{drops}" }} }}
"""


class Model(NamedTuple):
    """A model of the repository.

    backend: whose metrics it exports (`vllm`, `vllm_v1`, `tensorrt_llm`); empty: none. places: requests that run at one
    time. drops: its metrics leave the page when it is unloaded, as those of a backend in C++ do.
    """

    name: str
    backend: str = ""
    places: int = 2
    drops: bool = False


class RealTriton:
    """`tritonserver` as a child process, with the processes of its models.

    metrics_port: `None`: the server is not told one and takes its default. loaded: the models that it begins with, all
    if `None`.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[Model],
        *,
        metrics_port: int | None = None,
        loaded: Sequence[str] | None = None,
    ) -> None:
        self.metrics_port = metrics_port or DEFAULT_METRICS_PORT
        self.url = f"http://127.0.0.1:{free_port()}"
        self.page_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.log = folder / "triton.log"
        self._told_port = metrics_port
        self._models = models
        self._loaded = [model.name for model in models] if loaded is None else loaded
        self._repository = folder / "models"
        self._memory = f"jouled_test_{uuid.uuid4().hex}_"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the server itself; `None` before it was started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it and return at once."""
        server = TRITON_VENV / "server"
        if not (TRITON_VENV / "stamp").exists():
            raise FileNotFoundError(f"{TRITON_VENV} is not ready: run scripts/setup_real_triton.sh")
        for model in self._models:
            self._add(model)
        command = [str(server / "bin" / "tritonserver"), "--model-repository", str(self._repository)]
        command += ["--backend-directory", str(server / "backends"), "--model-control-mode=explicit"]
        command += [f"--load-model={name}" for name in self._loaded]
        command += [f"--backend-config=python,shm-region-prefix-name={self._memory}"]
        command += ["--http-address=127.0.0.1", f"--http-port={self.url.rpartition(':')[2]}", "--allow-grpc=false"]
        command += [f"--metrics-port={self._told_port}"] if self._told_port else []
        command += ["--log-verbose=1", f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}"]
        # The backend starts its processes with the Python that it finds on the path.
        environment = {**os.environ, "PATH": f"{TRITON_VENV / 'bin'}:{os.environ['PATH']}"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _add(self, model: Model) -> None:
        folder = self._repository / model.name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(MODELS / ("language.py" if model.backend else "plain.py"), folder / "model.py")
        drops = "yes" if model.drops else "no"
        configuration = _CONFIGURATION.format(name=model.name, backend=model.backend, places=model.places, drops=drops)
        (folder.parent / "config.pbtxt").write_text(configuration)

    def wait_until_ready(self) -> None:
        """Wait until all models that it begins with are loaded: its page is there from then on."""
        wait_for(self._answers, START_TIMEOUT_SECONDS, f"Triton did not get ready; see {self.log}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"Triton ended with code {self._process.returncode}; see {self.log}")
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5):
                return True
        except OSError:
            return False

    def infer(self, model: str, prompt_tokens: int, generation_tokens: int, milliseconds: int = 0) -> int:
        """Send one request and wait for its answer: the number of generated tokens."""
        tensor = {"name": "ASK", "shape": [3], "datatype": "INT32"}
        tensor["data"] = [prompt_tokens, generation_tokens, milliseconds]
        told = self._post(f"/v2/models/{model}/infer", {"inputs": [tensor]})
        [output] = json.loads(told)["outputs"]
        [tokens] = output["data"]
        return int(tokens)

    def load(self, model: str) -> None:
        """Load a model of the repository and wait until it can be asked."""
        self._post(f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str) -> None:
        """Unload a model and wait until it is gone."""
        self._post(f"/v2/repository/models/{model}/unload", {})
        done = f"successfully unloaded '{model}'"
        wait_for(lambda: self._log().rpartition("/unload")[2].count(done), 30, f"{model} stays; see {self.log}")

    def _post(self, path: str, body: object) -> bytes:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            told: bytes = answer.read()
        return told

    def body(self) -> bytes:
        """Its page, byte for byte."""
        with urllib.request.urlopen(self.page_url, timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def page(self) -> Page:
        """Its page."""
        return Page(self.body().decode())

    def asked(self) -> list[str]:
        """The paths of all requests so far, to both of its ports."""
        return _ASKED.findall(self._log())

    def _log(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to the server and its models' processes."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        self._free_memory()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is still there then."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=3 * EXIT_TIMEOUT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        self._free_memory()

    def _free_memory(self) -> None:
        """What processes that were killed shared with each other outlives them."""
        for left in Path("/dev/shm").glob(f"{self._memory}*"):
            left.unlink(missing_ok=True)
