"""OpenIPMI's simulator as a BMC on 127.0.0.1 that has no DCMI."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.support.tools import free_port, tool

START_SECONDS = 10
PING = bytes.fromhex("0600ff06000011be80000000")
"""An RMCP presence ping (ASF 2.0, 3.2.4.2), which any BMC answers."""

LEVELS = ("callback", "user", "operator", "admin")
EMULATOR = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""


class IpmiSim:
    """One simulator, while the context lasts. User admin, password secret."""

    def __init__(self, directory: Path) -> None:
        (directory / "state").mkdir(parents=True)
        self._directory = directory
        self.port = free_port()
        self.password_file = directory / "password"
        self.password_file.write_text("secret\n")
        lan = [
            'name "sim"',
            "set_working_mc 0x20",
            "startlan 1",
            f"addr 127.0.0.1 {self.port}",
            "priv_limit admin",
            *(f"allowed_auths_{level} none md2 md5 straight" for level in LEVELS),
            "guid a123456789abcdefa123456789abcdef",  # without it, it speaks no RMCP+
            "endlan",
            'user 2 true "admin" "secret" admin 10 none md2 md5 straight',
        ]
        (directory / "lan.conf").write_text("\n".join(lan) + "\n")
        (directory / "emulator").write_text(EMULATOR)

    def __enter__(self) -> Self:
        folder = self._directory
        command = [tool("ipmi_sim"), "-c", folder / "lan.conf", "-f", folder / "emulator", "-s", folder / "state", "-n"]
        with (folder / "log").open("wb") as log:  # its standard input has to stay open
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()
        self._process.communicate()

    def settings(self, **others: object) -> dict[str, object]:
        """The table `[power.ipmi]` that reaches it, at once: without a cipher suite it is asked for some, in vain."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "admin",
            "password_file": str(self.password_file),
            "cipher_suite": 3,
            **others,
        }

    def _answers(self) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.1)
            probe.connect(("127.0.0.1", self.port))
            try:
                probe.send(PING)
                return bool(probe.recv(64))
            except OSError:
                time.sleep(0.02)
                return False
