"""Drives the AMD collector in a process whose `libamd_smi.so` is the stub."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.support.amdsmi_stub import Controls

from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading

DRIVER = Path(__file__).with_name("driver.py")
START_NS = 1_000_000_000_000


class Child:
    """One process; errors of the collector are raised here as they were there."""

    def __init__(self, process: subprocess.Popen[str], controls: Controls) -> None:
        self._process = process
        self._controls = controls
        self._now_ns = START_NS
        self.devices: list[Device] = []
        self.interval_seconds = 0.0

    def open(self, **settings: Any) -> list[Device]:
        """Open the source; what was open before is closed first if the test says so."""
        answer = self._ask(do="open", settings={"sysfs_root": str(self._controls.sysfs), **settings})
        self.devices = msgspec.convert(answer["devices"], list[Device])
        self.interval_seconds = answer["interval_seconds"]
        return self.devices

    def read(self) -> list[EnergyReading | PowerReading | DeviceStatus]:
        """One read."""
        return msgspec.convert(self._ask(do="read"), list[EnergyReading | PowerReading | DeviceStatus])

    def meters(self) -> dict[str, EnergyReading | PowerReading]:
        """One read without the status, by device."""
        return {one.device: one for one in self.read() if not isinstance(one, DeviceStatus)}

    def statuses(self) -> dict[str, DeviceStatus]:
        """One read's status, by device."""
        return {one.device: one for one in self.read() if isinstance(one, DeviceStatus)}

    def parts(self) -> dict[str, SourceError | None]:
        """What is wrong with single GPUs since the last read."""
        return {name: told and source_error(told) for name, told in self._ask(do="parts").items()}

    def refused(self, *, for_seconds: float, step_seconds: float = 1.0) -> SourceError:
        """Read on until a read is refused; fails where none is within this time of the clock."""
        for _ in range(round(for_seconds / step_seconds)):
            self.advance(step_seconds)
            try:
                self.read()
            except SourceError as error:
                return error
        raise AssertionError(f"no read was refused within {for_seconds} s")

    def close(self) -> None:
        """Close the source."""
        self._ask(do="close")

    def close_if_open(self) -> None:
        """Close the source, if one was opened."""
        if self.devices:
            self.close()

    def advance(self, seconds: float) -> None:
        """Move the standing clock."""
        self._now_ns += round(seconds * 1e9)
        self._ask(do="clock", now_ns=self._now_ns)

    def rewind(self) -> None:
        """Set the standing clock back to where it began."""
        self._now_ns = START_NS
        self.advance(0)

    def real_clock(self) -> None:
        """From now on the machine's own clock."""
        self._ask(do="clock", now_ns=None)

    def cost(self, reads: int) -> dict[str, float]:
        """CPU and wall milliseconds of one read, on the machine's own clock."""
        return self._ask(do="cost", reads=reads)

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(command).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the driver ended: its traceback is above"
        answer = msgspec.json.decode(line)
        if isinstance(answer, dict) and "error" in answer:
            raise source_error(answer["error"])
        return answer


def source_error(told: dict[str, Any]) -> SourceError:
    """The error as it was in the child."""
    state = SourceState(told["state"])
    return SourceError(state, told["reason"], told["message"], mend=told["mend"], fatal=told["fatal"])


@contextmanager
def start(rocm: Path | None, controls: Controls, **environment: str) -> Iterator[Child]:
    """A running child; `rocm` is the stub's folder, `None` leaves the process without any ROCm."""
    stub = controls.environment(rocm) if rocm else {}
    process = subprocess.Popen(
        [sys.executable, DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ.get("PATH", ""), **stub, **environment},
    )
    with process:
        yield Child(process, controls)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)
