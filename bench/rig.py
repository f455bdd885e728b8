"""The node that is measured: the daemon on 8 stub GPUs and 4 RAPL zones, with or without two vLLM engines."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from bench.feeder import make_zones
from tests.support.live import LiveDaemon, wait_for
from tests.support.nvml_stub import build
from tests.support.tools import free_port

GPUS = 8
ENGINES = {"a": (0, 1, 2, 3), "b": (4, 5, 6, 7)}
REQUESTS_PER_SECOND = 50.0


class Rig:
    """A running daemon and its surroundings; `with Rig(...)` ends and removes them.

    interval_seconds: between two reads of every meter; `None` leaves it to the daemon.
    """

    def __init__(self, *, interval_seconds: float | None, engines: bool = False) -> None:
        self._interval_seconds = interval_seconds
        self._engines = engines
        self._temporary = tempfile.TemporaryDirectory(prefix="jouled-bench-")
        self.folder = Path(self._temporary.name)
        self._feeder: subprocess.Popen[bytes] | None = None
        self._engine_port = free_port()
        self.port = free_port()
        library = build(self.folder / "nvml")
        config = self.folder / "config.toml"
        config.write_text(self._configuration(), encoding="utf-8")
        self.daemon = LiveDaemon(
            [Path(sys.executable).parent / "jouled", "run", "--config", config],
            self.port,
            self.folder / "daemon.log",
            {"LD_LIBRARY_PATH": str(library), "NVML_STUB_GPUS": str(GPUS)},
        )
        self.spawned_ns = 0

    def __enter__(self) -> Self:
        make_zones(self.folder / "sys" / "class" / "powercap")
        self._feeder = self._start_feeder()
        self.spawned_ns = time.time_ns()
        self.daemon.start()
        try:
            self.daemon.wait_until_ready()
            wait_for(self._all_devices_shown, 30, "the daemon never showed all its devices", every_seconds=0.05)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.daemon.stop()
        if self._feeder is not None:
            self._feeder.kill()
            self._feeder.wait()
        self._temporary.cleanup()

    def processes(self) -> list[psutil.Process]:
        """The daemon and its children."""
        assert self.daemon.process is not None
        root = psutil.Process(self.daemon.process.pid)
        return [root, *root.children(recursive=True)]

    def _all_devices_shown(self) -> bool:
        devices = self.daemon.json("/api/v1/snapshot")["devices"]
        return sum(device["last_reading_ns"] is not None for device in devices) >= GPUS + 4

    def _start_feeder(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "bench.feeder", "--powercap", str(self.folder / "sys" / "class" / "powercap")]
        command += ["--port", str(self._engine_port), "--rate", str(REQUESTS_PER_SECOND)]
        if self._engines:
            command += ["--engines", ",".join(ENGINES), "--traces", f"http://127.0.0.1:{self.port}/v1/traces"]
        with (self.folder / "feeder.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _configuration(self) -> str:
        interval = "" if self._interval_seconds is None else f"interval_seconds = {self._interval_seconds}"
        lines = [
            "[serve]",
            f'listen = "127.0.0.1:{self.port}"',
            "[state]",
            f'directory = "{self.folder / "state"}"',
            "[power.nvml]",
            interval,
            "[power.rapl]",
            f'sysfs_root = "{self.folder / "sys"}"',
            interval,
        ]
        for name, gpus in ENGINES.items() if self._engines else ():
            lines += [
                "[[engines]]",
                f'name = "{name}"',
                'type = "vllm"',
                f'url = "http://127.0.0.1:{self._engine_port}/{name}"',
                f"devices = {[f'gpu{gpu}' for gpu in gpus]}",
            ]
        return "\n".join(lines) + "\n"
