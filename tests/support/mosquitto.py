"""The real MQTT broker, mosquitto, on a free port of 127.0.0.1; and what a subscriber of it has heard."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
from tests.support.tools import free_port, run, tool

START_SECONDS = 10
HEARD_SECONDS = 5


class Mosquitto:
    """One broker. `tls`: with the certificate in `certificates`, for 127.0.0.1 and localhost. Stop it with `kill`."""

    def __init__(self, directory: Path, *lines: str, tls: Path | None = None) -> None:
        self._directory = directory
        self.port = free_port()
        certificates = [f"cafile {tls}/ca.crt", f"certfile {tls}/server.crt", f"keyfile {tls}/server.key"]
        config = [
            "user root",
            f"listener {self.port} 127.0.0.1",
            *(certificates if tls else ()),
            *(lines if "allow_anonymous false" in lines else ("allow_anonymous true", *lines)),
        ]
        directory.mkdir(exist_ok=True)
        (directory / "mosquitto.conf").write_text("\n".join(config) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again on the same port; comes back when it listens."""
        with (self._directory / "log").open("ab") as log:
            command = [str(_mosquitto()), "-c", str(self._directory / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
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

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def log(self) -> str:
        """What it has said."""
        return (self._directory / "log").read_text(errors="replace")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _mosquitto() -> Path:
    at_its_place = Path("/usr/sbin/mosquitto")  # not in the PATH of every user
    return at_its_place if at_its_place.exists() else tool("mosquitto")


def passwords(directory: Path, **of_users: str) -> str:
    """The configuration line of a password file with these users."""
    file = directory / "passwords"
    file.touch(mode=0o600)
    for user, password in of_users.items():
        said = run([tool("mosquitto_passwd"), "-b", file, user, password])
        assert said.returncode == 0, said.stdout
    return f"password_file {file}"


def access(directory: Path, *lines: str) -> str:
    """The configuration line of an access list."""
    file = directory / "access"
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o600)
    return f"acl_file {file}"


def certificates(directory: Path) -> Path:
    """An authority of its own (`ca.crt`), and a server and a client certificate signed by it."""
    directory.mkdir()
    new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(directory, *new_key, "-x509", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.crt")
    for name in ("server", "client"):
        subject = f"/CN={name}"
        _openssl(directory, *new_key, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (directory / "names").write_text("subjectAltName = IP:127.0.0.1, DNS:localhost\n")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        _openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    return directory


def _openssl(directory: Path, *words: str) -> None:
    said = subprocess.run(
        [tool("openssl"), *words], cwd=directory, capture_output=True, text=True, timeout=30, check=False
    )
    assert said.returncode == 0, said.stderr


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + HEARD_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def subscriber(port: int, topics: str = "#", **options):
    """The list of messages that a subscriber hears while the context lasts."""
    heard: list[aiomqtt.Message] = []
    protocol = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client("127.0.0.1", port, protocol=protocol, timeout=HEARD_SECONDS, **options) as client:
        await client.subscribe(topics, qos=1)

        async def listen() -> None:
            async for message in client.messages:
                heard.append(message)  # noqa: PERF401 - seen at once, not at the end

        listening = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
