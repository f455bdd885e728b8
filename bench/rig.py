"""The node that is measured: 8 stub GPUs and 4 RAPL zones, with or without two vLLM engines, and a daemon on it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from bench.feeder import make_zones
from tests.support.live import LiveDaemon, wait_for
from tests.support.nvml_stub import build
from tests.support.tools import free_port

JOULED = Path(sys.executable).parent / "jouled"
GPUS = 8
RAPL_ZONES = 4
ENGINES = {"a": (0, 1, 2, 3), "b": (4, 5, 6, 7)}
REQUESTS_PER_SECOND = 50.0


@dataclass(frozen=True)
class Node:
    """Where a daemon finds its configuration, and what it needs in its environment to meet the stub GPUs."""

    folder: Path
    config: Path
    port: int
    environment: dict[str, str]


@contextmanager
def node(*, interval_seconds: float | None, engines: bool = False) -> Iterator[Node]:
    """Meters that count and engines that serve, until left. `interval_seconds` `None` leaves it to the daemon."""
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as temporary:
        folder = Path(temporary)
        port, engine_port = free_port(), free_port()
        library = build(folder / "nvml")
        make_zones(folder / "sys" / "class" / "powercap")
        lines = _meters(folder, port, interval_seconds) + (_engines(engine_port) if engines else [])
        config = folder / "config.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        environment = {"LD_LIBRARY_PATH": str(library), "NVML_STUB_GPUS": str(GPUS)}
        feeder = _start_feeder(folder, engine_port, f"http://127.0.0.1:{port}/v1/traces" if engines else "")
        try:
            yield Node(folder, config, port, environment)
        finally:
            feeder.kill()
            feeder.wait()


@contextmanager
def daemon(on: Node) -> Iterator[LiveDaemon]:
    """A daemon on the node that shows all its devices, until left."""
    running = LiveDaemon([JOULED, "run", "--config", on.config], on.port, on.folder / "daemon.log", on.environment)

    def all_devices_shown() -> bool:
        devices = running.json("/api/v1/snapshot")["devices"]
        return sum(device["last_reading_ns"] is not None for device in devices) >= GPUS + RAPL_ZONES

    running.start()
    try:
        running.wait_until_ready()
        wait_for(all_devices_shown, 30, "the daemon never showed all its devices", every_seconds=0.05)
        yield running
    finally:
        running.stop()


def process_tree(running: LiveDaemon) -> list[psutil.Process]:
    """The daemon and its children."""
    if running.process is None:
        raise RuntimeError("the daemon was never started")
    root = psutil.Process(running.process.pid)
    return [root, *root.children(recursive=True)]


def _start_feeder(folder: Path, engine_port: int, traces_url: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "bench.feeder", "--powercap", str(folder / "sys" / "class" / "powercap")]
    command += ["--port", str(engine_port), "--rate", str(REQUESTS_PER_SECOND)]
    if traces_url:
        command += ["--engines", ",".join(ENGINES), "--traces", traces_url]
    with (folder / "feeder.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _meters(folder: Path, port: int, interval_seconds: float | None) -> list[str]:
    interval = [] if interval_seconds is None else [f"interval_seconds = {interval_seconds}"]
    serve = ["[serve]", f'listen = "127.0.0.1:{port}"', "[state]", f'directory = "{folder / "state"}"']
    return [*serve, "[power.nvml]", *interval, "[power.rapl]", f'sysfs_root = "{folder / "sys"}"', *interval]


def _engines(port: int) -> list[str]:
    lines = []
    for name, gpus in ENGINES.items():
        devices = ", ".join(f'"gpu{gpu}"' for gpu in gpus)
        lines += ["[[engines]]", f'name = "{name}"', 'type = "vllm"', f'url = "http://127.0.0.1:{port}/{name}"']
        lines.append(f"devices = [{devices}]")
    return lines
