"""The real agents: net-snmp's snmpd and snmpsim, on UDP ports of 127.0.0.1."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.tools import tool

START_SECONDS = 20


def free_udp_port() -> int:
    """A UDP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A process that listens on a UDP port; killed by `kill`, started again by `start`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_udp_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it on its port; comes back when it listens."""
        with (self.directory / "log").open("ab") as log:
            environment = {**os.environ, "SNMP_PERSISTENT_DIR": str(self.directory / "persistent")}
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def kill(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """As an orderly restart does: it keeps what it is to keep."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text(errors="replace")

    def _listens(self) -> bool:
        local = f"0100007F:{self.port:04X}"
        return any(local in line for line in Path("/proc/net/udp").read_text().splitlines())


class Snmpd(Server):
    """net-snmp's agent. `lines`: of its configuration, beside a community `public` and a user `meter`."""

    def __init__(self, directory: Path, lines: Iterable[str]) -> None:
        super().__init__(directory)
        (directory / "persistent").mkdir()
        self.configure(lines)

    def configure(self, lines: Iterable[str], privacy_key: str = "privpass12") -> None:
        """Write its configuration, for the next start."""
        fixed = [
            f"agentAddress udp:127.0.0.1:{self.port}",
            "rocommunity public 127.0.0.1",
            f"createUser meter SHA256 authpass12 AES {privacy_key}",
            "rouser meter priv",
        ]
        (self.directory / "snmpd.conf").write_text("\n".join([*fixed, *lines]) + "\n")

    def forget(self) -> None:
        """Lose what it keeps over restarts: the number of its boots and its users."""
        shutil.rmtree(self.directory / "persistent")
        (self.directory / "persistent").mkdir()

    def command(self) -> list[str]:
        at_its_place = Path("/usr/sbin/snmpd")  # not in the PATH of every user
        program = at_its_place if at_its_place.exists() else tool("snmpd")
        kept = self.directory / "persistent" / "snmpd.conf"  # with -C it is written, but not read by itself
        files = [self.directory / "snmpd.conf", *([kept] if kept.exists() else [])]
        return [str(program), "-f", "-Lo", "-C", "-c", ",".join(map(str, files))]


class Snmpsim(Server):
    """snmpsim with one device per community. `devices`: the lines of its .snmprec file by community, sorted here."""

    def __init__(self, directory: Path, devices: Mapping[str, Iterable[str]]) -> None:
        super().__init__(directory)
        data = directory / "data"
        data.mkdir()
        for community, lines in devices.items():
            (data / f"{community}.snmprec").write_text("\n".join(sorted(lines, key=_oid)) + "\n")

    def command(self) -> list[str]:
        return [
            str(Path(sys.executable).with_name("snmpsim-command-responder")),
            f"--data-dir={self.directory / 'data'}",
            f"--cache-dir={self.directory / 'cache'}",
            f"--agent-udpv4-endpoint=127.0.0.1:{self.port}",
            *(["--process-user=root", "--process-group=root"] if os.geteuid() == 0 else []),
            *("--v3-user=simulator", "--v3-auth-key=auctoritas", "--v3-auth-proto=SHA256"),
            *("--v3-priv-key=privatus", "--v3-priv-proto=AES"),
        ]


def _oid(line: str) -> tuple[int, ...]:
    return tuple(int(number) for number in line.partition("|")[0].split("."))
