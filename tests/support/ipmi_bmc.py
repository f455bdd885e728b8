"""A BMC on 127.0.0.1 that speaks RMCP+ by pyghmi and answers DCMI "Get Power Reading" with what the test wants.

Run as a program it is the BMC; imported, what starts and stops it.
"""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.tools import free_port

USER, PASSWORD = "admin", "s3cret pass"
GROUP = 0xDC
DCMI_POWER_READING, SENSOR_READING = (0x2C, 0x02), (0x04, 0x2D)
SDR_INFO, SDR_RESERVE, SDR_GET = (0x0A, 0x20), (0x0A, 0x22), (0x0A, 0x23)
SENSORS = (*((f"Fan {number}", 18) for number in range(40)), ("Inlet Temp", 1), ("Power Meter", 6))
"""Names and units (IPMI 2.0, table 43-15: 6 is W). Their values are four times the raw one."""

TIMESTAMP = 1_700_000_000
REPOSITORY = Path(__file__).resolve().parents[2]


class IpmiBmc:
    """One BMC. `answer` says what it tells from now on; `kill`, `start` and `signal` as a BMC may fare."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.password_file = directory / "password"
        self.password_file.write_text(f"{PASSWORD}\n")
        self._answer = directory / "answer"
        self._process: subprocess.Popen[str] | None = None
        self.requests = directory / "requests"
        self.answer(watts=812)
        self.start()

    def answer(
        self,
        *,
        watts: int = 812,
        lowest: int | None = None,
        highest: int | None = None,
        mean: int | None = None,
        period_ms: int = 1_000,
        state: int = 0x40,
        code: int = 0,
        group: int = GROUP,
        raw: int | None = 203,
    ) -> None:
        """A reading with these statistics (unset: as `watts`), or a completion code that is no 0.

        raw: of each sensor, `None`: it has no value.
        """
        values = [watts, *(watts if value is None else value for value in (lowest, highest, mean))]
        data = [group, *struct.pack("<HHHHIIB", *values, TIMESTAMP, period_ms, state)]
        fresh = self._answer.with_suffix(".new")
        sensor = [0, 0xE0, 0xC0] if raw is None else [raw, 0xC0, 0xC0]
        fresh.write_text(json.dumps({"dcmi": {"code": code} if code else {"data": data}, "sensor": {"data": sensor}}))
        fresh.replace(self._answer)

    def start(self) -> None:
        """Start it, again on the same port; comes back when it listens."""
        command = [sys.executable, __file__, str(self.port), str(self._answer), str(self.requests)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "listening\n"

    def kill(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def hang(self) -> None:
        """It takes what comes and says nothing more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def settings(self, **others: object) -> dict[str, object]:
        """The table `[power.ipmi]` that reaches it."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": USER,
            "password_file": str(self.password_file),
            **others,
        }


def sensor_record(number: int) -> bytes:
    """The full record of a sensor (IPMI 2.0, table 43-1)."""
    name, unit = SENSORS[number]
    key = bytes([0x20, 0, number, 7, 1])
    reading = bytes([0x7F, 0x68, 0x0B, 0x01, *bytes(6), 0, unit, 0, 0, 4, *bytes(5)])
    body = key + reading + bytes(6 + 6 + 2 + 2 + 1) + bytes([0xC0 | len(name)]) + name.encode()
    return struct.pack("<HBBB", number + 1, 0x51, 0x01, len(body)) + body


def sensor_answer(command: tuple[int, int], data: bytes) -> dict[str, object]:
    """What the repository of sensor records answers."""
    if command == SDR_INFO:
        return {"data": [0x51, *struct.pack("<HHII", len(SENSORS), 0x1000, 1, 1), 0x02]}
    if command == SDR_RESERVE:
        return {"data": [1, 0]}
    _, record, offset, length = struct.unpack("<HHBB", data)
    following = record + 1 if record else 2
    end = following > len(SENSORS)
    content = sensor_record(max(record, 1) - 1)[offset : offset + length]
    return {"data": [*struct.pack("<H", 0xFFFF if end else following), *content]}


def serve(port: int, answer: Path, requests: Path) -> None:
    """Be the BMC."""
    from pyghmi.ipmi import bmc

    class Bmc(bmc.Bmc):
        def get_power_state(self) -> str:
            return "on"

        def handle_raw_request(self, request, session):
            command, data = (request["netfn"], request["command"]), bytes(request["data"])
            with requests.open("a") as log:
                log.write(f"{command} {data.hex()}\n")
            if command == DCMI_POWER_READING:
                assert data == bytes([GROUP, 0x01, 0, 0])
                return session.send_ipmi_response(**json.loads(answer.read_text())["dcmi"])
            if command == SENSOR_READING:
                return session.send_ipmi_response(**json.loads(answer.read_text())["sensor"])
            if command in {SDR_INFO, SDR_RESERVE, SDR_GET}:
                return session.send_ipmi_response(**sensor_answer(command, data))
            return super().handle_raw_request(request, session)

    listening = Bmc({USER: PASSWORD}, port=port, address="127.0.0.1")
    listening.additionaldevices = 0x02  # it has a repository of sensor records
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    listening.listen()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
