"""Drives the NVML collector in a process whose `libnvidia-ml.so.1` is the stub."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.support.nvml_stub import Controls

from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading

DRIVER = Path(__file__).with_name("driver.py")
START_NS = 1_000_000_000_000


class Child:
    """One process; errors of the collector are raised here as they were there."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._now_ns = START_NS
        self.devices: list[Device] = []
        self.interval_seconds = 0.0

    def open(self, **settings: Any) -> list[Device]:
        """Open the source; what was open before is closed first if the test says so."""
        answer = self._ask(do="open", settings=settings)
        self.devices = msgspec.convert(answer["devices"], list[Device])
        self.interval_seconds = answer["interval_seconds"]
        return self.devices

    def read(self) -> list[EnergyReading | PowerReading | DeviceStatus]:
        """One read."""
        return msgspec.convert(self._ask(do="read"), list[EnergyReading | PowerReading | DeviceStatus])

    def meters(self) -> dict[str, EnergyReading | PowerReading]:
        """One read without the status, by device: its counter, or where it has none its power."""
        told: dict[str, EnergyReading | PowerReading] = {}
        for one in self.read():
            if isinstance(one, EnergyReading) or (isinstance(one, PowerReading) and one.device not in told):
                told[one.device] = one
        return told

    def gauges(self) -> dict[str, PowerReading]:
        """The power in one read, by device."""
        return {one.device: one for one in self.read() if isinstance(one, PowerReading)}

    def statuses(self) -> dict[str, DeviceStatus]:
        """One read's status, by device."""
        return {one.device: one for one in self.read() if isinstance(one, DeviceStatus)}

    def devices_now(self) -> dict[str, Device]:
        """The devices by name, which may have become others since the source was opened."""
        return {device.name: device for device in msgspec.convert(self._ask(do="devices"), list[Device])}

    def parts(self) -> dict[str, SourceError | None]:
        """What is wrong with single GPUs."""
        return {name: _error(error) if error else None for name, error in self._ask(do="parts").items()}

    def close(self) -> None:
        """Close the source."""
        self._ask(do="close")

    def advance(self, seconds: float) -> None:
        """Move the standing clock."""
        self._now_ns += round(seconds * 1e9)
        self._ask(do="clock", now_ns=self._now_ns)

    def real_clock(self) -> None:
        """From now on the machine's own clock."""
        self._ask(do="clock", now_ns=None)

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(command).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the driver ended: its traceback is above"
        answer = msgspec.json.decode(line)
        if isinstance(answer, dict) and "error" in answer:
            raise _error(answer["error"])
        return answer


def _error(told: dict[str, Any]) -> SourceError:
    return SourceError(
        SourceState(told["state"]), told["reason"], told["message"], mend=told["mend"], fatal=told["fatal"]
    )


@contextmanager
def start(library: Path | None, controls: Controls) -> Iterator[Child]:
    """A running child; `library` is the stub's folder, `None` leaves the process without any NVML."""
    stub = controls.environment(library) if library else {}
    process = subprocess.Popen(
        [sys.executable, DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ.get("PATH", ""), **stub},
    )
    with process:
        yield Child(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)
