"""The daemon beside a real Triton Inference Server that nobody told it of: two language models and a plain one.

`make test-real` prepares Triton; not part of `make test`. The GPUs are those of a stub driver below NVIDIA's own
binding; what runs on them is told by process, as a driver does.
"""

import itertools
import json
import socket
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.real.triton import DEFAULT_METRICS_PORT, Model, RealTriton
from tests.support.live import LiveDaemon, Page, wait_for
from tests.support.nvml_stub import Controls, build
from tests.support.tools import free_port

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(600)]

CHAT, TENSORRT, PLAIN = "chat", "tensorrt_llm", "plain"
PLACES = 2
MODELS = [Model(CHAT, "vllm", PLACES), Model(TENSORRT, "tensorrt_llm", PLACES, drops=True), Model(PLAIN)]
BUSY_MILLISECONDS = 12_000
"""Longer than the daemon takes to read the page once more, and to show it."""
RECEIPTS_TIMEOUT_SECONDS = 240.0
OWNERS = ("prefill", "decode", "resident", "unreported", "idle", "unattributed", "downtime", "open")
MADE = {"prompt": "prompt_computed", "generation": "generation"}
CONFIGURATION = """
[serve]
listen = "127.0.0.1:{port}"

[state]
directory = "{state}"

[power.nvml]
"""
Tokens = dict[str, int]
Figures = dict[str, object]


@dataclass
class Look:
    """Both sides at one time: Triton's page and its sums of tokens, the daemon's page and snapshot."""

    triton: Page
    daemon: Page
    snapshot: dict[str, Any]

    def told(self) -> Tokens:
        """By kind, as Triton's page has them of both backends; what it lacks is left out."""
        names = {
            "prompt": ("vllm:request_prompt_tokens_sum", "nv_llm_input_token_len_sum"),
            "generation": ("vllm:request_generation_tokens_sum", "nv_llm_output_token_len_sum"),
        }
        there = {series.partition("{")[0] for series in self.triton.values}
        return {
            kind: round(sum(self.triton.total(name) for name in both if name in there)) for kind, both in names.items()
        }


@dataclass
class Observed:
    """What was seen, by the step of the run after which it was; `sent`: all tokens asked of models that tell them."""

    name: str
    looks: dict[str, Look] = field(default_factory=dict)
    sent: dict[str, Tokens] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    second_pid: int | None = None

    def engine(self, step: str) -> dict[str, Any]:
        """The engine as the daemon showed it."""
        [found] = [each for each in self.looks[step].snapshot["engines"] if each["name"] == self.name]
        told: dict[str, Any] = found
        return told

    def counted(self, step: str, since: str = "start") -> Tokens:
        """How far the daemon's counters of the engine's tokens went between two steps."""
        return {
            kind: round(counted(self.looks[step].daemon, self.name, kind))
            - round(counted(self.looks[since].daemon, self.name, kind))
            for kind in MADE
        }


def counted(page: Page, engine: str, kind: str) -> float:
    """Over all names that the engine's model had; nothing yet is zero."""
    try:
        return page.total("jouled_engine_tokens_total", engine=engine, kind=MADE[kind])
    except KeyError:
        return 0.0


class Run:
    """One Triton, one daemon, and what has been asked of them."""

    def __init__(self, folder: Path) -> None:
        self.triton = RealTriton(folder, MODELS, metrics_port=free_port())
        self.name = f"triton-{self.triton.metrics_port}"
        self.observed = Observed(self.name)
        self.controls = Controls(folder / "nvml")
        port = free_port()
        configuration = folder / "config.toml"
        configuration.write_text(CONFIGURATION.format(port=port, state=folder / "state"))
        command: list[str | Path] = [Path(sys.executable).parent / "jouled", "run", "--config", configuration]
        environment = self.controls.environment(build(folder / "library"))
        self.daemon = LiveDaemon(command, port, folder / "daemon.log", environment)
        self._sent: list[Tokens] = []
        self.events: list[dict[str, Any]] = []

    def start_triton(self) -> None:
        """Its models' processes compute on the first GPU."""
        self.triton.start()
        self.triton.wait_until_ready()
        children = psutil.Process(self.triton.pid).children(recursive=True)
        self.controls.set("gpu0.processes", " ".join(str(child.pid) for child in children))

    def ask(self, model: str, prompt: int, generated: int, milliseconds: int = 50, *, tells: bool = True) -> None:
        """One request by way of a gateway, which tells jouled of it: all that it has seen is the whole answer."""
        begun_ns = time.time_ns()
        assert self.triton.infer(model, prompt, generated, milliseconds) == generated
        if model == PLAIN:
            return
        self._sent.append({"prompt": prompt, "generation": generated})
        if not tells:
            return
        seconds = (time.time_ns() - begun_ns) / 1e9
        event = {
            "id": uuid.uuid4().hex,
            "engine": self.name,
            "arrival_ns": begun_ns,
            "ttft_seconds": seconds,
            "e2e_seconds": seconds,
            "prompt_tokens": prompt,
            "generation_tokens": generated,
        }
        self.events.append(event)
        url, headers = f"{self.daemon.url}/api/v1/requests", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(event).encode(), headers), timeout=30):
            pass

    def engine(self) -> dict[str, Any]:
        """The engine in the daemon's snapshot; empty while it is not known."""
        found: list[dict[str, Any]] = self.daemon.json("/api/v1/snapshot")["engines"]
        return next((each for each in found if each["name"] == self.name), {})

    def wait_for_its_gpu(self) -> None:
        """Wait until the daemon has seen on which GPU its models compute; before, it is taken to use both."""
        wait_for(lambda: self.engine().get("devices") == ["gpu0"], 90, f"its GPU is not found; see {self.daemon.log}")

    def look(self, step: str) -> None:
        """Wait until the daemon shows what it read of the page after now, and look at both."""
        now_ns = time.time_ns()

        def has_read() -> bool:
            self.daemon.raise_if_ended()
            return (self.engine().get("last_sample_ns") or 0) > now_ns

        wait_for(has_read, 90, f"{self.name} is not read; see {self.daemon.log}")
        snapshot = self.daemon.json("/api/v1/snapshot")
        self.observed.looks[step] = Look(self.triton.page(), self.daemon.page(), snapshot)
        self.observed.sent[step] = {kind: sum(sent[kind] for sent in self._sent) for kind in MADE}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """The whole run, some three minutes; logs of all processes stay in its folders."""
    run = Run(tmp_path_factory.mktemp("triton"))
    second = RealTriton(tmp_path_factory.mktemp("by_default"), [Model("only", "vllm_v1")])
    try:
        run.start_triton()
        run.daemon.start()
        run.daemon.wait_until_ready()
        run.wait_for_its_gpu()
        run.look("start")
        serve_and_look(run)
        unload_and_look(run)
        if is_free(DEFAULT_METRICS_PORT):
            second.start()
            run.observed.second_pid = second.pid
        kill_and_look(run)
        wait_for_receipts(run)
        run.observed.asked = run.triton.asked()
        yield run.observed
    finally:
        run.daemon.stop()
        run.triton.stop()
        second.stop()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def serve_and_look(run: Run) -> None:
    for number in range(12):
        run.ask((CHAT, TENSORRT, PLAIN)[number % 3], 300 + number, 20 + number)
    run.look("served")
    with ThreadPoolExecutor(3 * (PLACES + 1)) as clients:
        asked = [
            clients.submit(run.ask, model, 100 + number, 40 + number, BUSY_MILLISECONDS)
            for number in range(PLACES + 1)
            for model in (CHAT, TENSORRT, PLAIN)
        ]
        run.look("busy")
    for each in asked:
        each.result()
    run.look("served at once")


def unload_and_look(run: Run) -> None:
    run.triton.unload(TENSORRT)
    run.ask(CHAT, 11, 7)
    run.look("one unloaded")
    run.triton.load(TENSORRT)
    run.ask(TENSORRT, 12, 5)
    run.look("and loaded again")
    run.triton.unload(CHAT)
    run.ask(TENSORRT, 13, 3)
    run.look("the other unloaded")
    run.triton.load(CHAT)
    run.ask(CHAT, 14, 2)
    run.look("and loaded again, too")


def kill_and_look(run: Run) -> None:
    run.triton.kill()

    def state() -> str:
        sources = run.daemon.json("/api/v1/snapshot")["sources"]
        return next(source["state"] for source in sources if source["source"] == run.name)

    wait_for(lambda: state() != "ok", 60, f"nobody misses Triton; see {run.daemon.log}")
    run.start_triton()
    run.ask(CHAT, 15, 6, tells=False)
    run.look("back")
    run.ask(TENSORRT, 16, 8)
    run.look("killed and back")


def wait_for_receipts(run: Run) -> None:
    def are_final() -> bool:
        run.daemon.raise_if_ended()
        told = run.daemon.json("/api/v1/requests?all=1&limit=1000")["requests"]
        run.observed.receipts = [receipt for receipt in told if not receipt["provisional"]]
        return len(run.observed.receipts) == len(run.events)

    wait_for(are_final, RECEIPTS_TIMEOUT_SECONDS, f"no final receipts; see {run.daemon.log}", every_seconds=2.0)
    run.look("end")
    run.observed.events = run.events


def test_it_is_found_by_its_process_and_its_metrics_port(observed: Observed) -> None:
    engine = observed.engine("start")
    assert engine["type"] == "triton"
    assert engine["url"] == f"http://127.0.0.1:{observed.name.rpartition('-')[2]}"


def test_its_gpu_is_the_one_that_its_models_compute_on(observed: Observed) -> None:
    for step in ("start", "killed and back"):
        assert observed.engine(step)["devices"] == ["gpu0"]


def test_engine_info_is_what_the_page_tells(observed: Observed) -> None:
    """No version: that is told on another port. The model is the one that has made most tokens."""
    [info] = [
        series
        for series in observed.looks["served at once"].daemon.values
        if series.startswith("jouled_engine_info{") and f'engine="{observed.name}"' in series
    ]
    for label in ('engine_type="triton"', f'model_name="{TENSORRT}"', 'version=""', 'token_counters="at_finish"'):
        assert label in info


def test_tokens_are_those_of_the_page_and_of_the_clients(observed: Observed, figures: Figures) -> None:
    for step in ("served", "served at once"):
        assert observed.looks[step].told() == observed.sent[step] == observed.counted(step)
    figures |= {f"triton: {kind} tokens": tokens for kind, tokens in observed.sent["end"].items()}


def test_running_and_waiting_are_those_of_the_page(observed: Observed) -> None:
    look = observed.looks["busy"]
    running = look.triton.total("vllm:num_requests_running")
    running += look.triton.total("nv_trt_llm_request_metrics", request_type="scheduled")
    waiting = look.triton.total("vllm:num_requests_waiting")
    waiting += look.triton.total("nv_trt_llm_request_metrics", request_type="waiting")
    assert (running, waiting) == (2 * PLACES, 2)
    engine = observed.engine("busy")
    assert (engine["requests_running"], engine["requests_waiting"]) == (running, waiting)


def test_tokens_of_requests_at_work_are_not_counted_yet(observed: Observed) -> None:
    """The vLLM backend's other counters, of its steps, have them: mixed in, they would be ahead."""
    look = observed.looks["busy"]
    assert look.triton.total("vllm:prompt_tokens_total") > look.triton.total("vllm:request_prompt_tokens_sum")
    assert observed.counted("busy") == observed.sent["served"]


def test_a_model_that_is_unloaded_takes_its_series_along_and_no_token_counts_twice(observed: Observed) -> None:
    told = {step: observed.looks[step].told() for step in observed.looks}
    assert told["one unloaded"]["generation"] < told["served at once"]["generation"]
    for step in ("one unloaded", "and loaded again"):
        assert observed.counted(step) == observed.sent[step]


def test_series_of_the_vllm_backend_outlive_its_model_and_go_on(observed: Observed) -> None:
    told = {step: observed.looks[step].told() for step in observed.looks}
    added = {"the other unloaded": (13, 3), "and loaded again, too": (14, 2)}
    before = told["and loaded again"]
    for step, (prompt, generated) in added.items():
        assert told[step] == {"prompt": before["prompt"] + prompt, "generation": before["generation"] + generated}
        assert observed.counted(step) == observed.sent[step]
        before = told[step]


def test_a_server_that_was_killed_and_came_back_goes_on_in_the_same_counters(observed: Observed) -> None:
    assert observed.looks["killed and back"].told() == {"prompt": 31, "generation": 14}
    assert observed.counted("killed and back") == observed.sent["killed and back"]
    assert observed.engine("killed and back")["pid"] != observed.engine("start")["pid"]


def test_the_counters_of_the_daemon_never_go_back(observed: Observed) -> None:
    looks = list(observed.looks.values())
    for before, after in itertools.pairwise(looks):
        now = after.daemon.counters()
        assert {name for name, value in before.daemon.counters().items() if now.get(name, 0) < value} == set()


def test_every_request_that_the_gateway_told_of_has_its_receipt(observed: Observed, figures: Figures) -> None:
    receipts = {receipt["id"]: receipt for receipt in observed.receipts}
    for event in observed.events:
        receipt = receipts[event["id"]]
        assert receipt["engine"] == observed.name
        for kind in ("prompt_tokens", "generation_tokens"):
            assert receipt[kind] == event[kind]
    figures["triton: receipts"] = len(receipts)


def test_joules_are_conserved(observed: Observed, figures: Figures) -> None:
    """Σ owners + open = what the meters told, to the microjoule, and receipts are what requests own."""
    snapshot = observed.looks["end"].snapshot
    sums = {owner: sum(book[f"{owner}_uj"] for book in snapshot["groups"]) for owner in (*OWNERS, "measured")}
    assert sum(sums[owner] for owner in OWNERS) == sums["measured"]
    assert sums["measured"] == sum(device["energy_uj"] for device in snapshot["devices"])
    receipts = sum(round(receipt["joules"] * 1e6) for receipt in observed.receipts)
    assert receipts == sums["prefill"] + sums["decode"] + sums["resident"] > 0
    figures |= {f"triton: {owner} J": f"{sums[owner] / 1e6:.1f}" for owner in OWNERS}


def test_nothing_but_the_page_is_asked(observed: Observed) -> None:
    """Triton logs every request to each of its ports; all but the page were the test's own."""
    own = {"/v2/health/ready", *(f"/v2/models/{model.name}/infer" for model in MODELS)}
    own |= {f"/v2/repository/models/{name}/{what}" for name in (CHAT, TENSORRT) for what in ("load", "unload")}
    assert set(observed.asked) == own | {"/metrics"}


def test_a_server_that_is_told_no_port_is_found_at_its_default(observed: Observed) -> None:
    if not observed.second_pid:
        pytest.skip(f"somebody else serves on port {DEFAULT_METRICS_PORT}")
    [engine] = [each for each in observed.looks["end"].snapshot["engines"] if each["pid"] == observed.second_pid]
    assert engine["name"] == f"triton-{DEFAULT_METRICS_PORT}"
    assert (engine["model"], engine["requests_running"], engine["requests_waiting"]) == ("only", None, None)
