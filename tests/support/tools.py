"""Programs that tests need beside Python, and how to run them."""

import random
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

_PACKAGES = {
    "chromium": "chromium",
    "gcc": "gcc",
    "ipmi_sim": "openipmi",
    "mosquitto": "mosquitto",
    "nft": "nftables",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
    "tc": "iproute2",
    "unshare": "util-linux",
    "victoria-metrics": "victoria-metrics",
}

LOWEST_PORT = 10_000
_taken: list[socket.socket] = []


def tool(name: str) -> Path:
    """The path of a program; without it the test fails with the command that installs it."""
    found = shutil.which(name)
    if found is None:
        package = _PACKAGES.get(name, name)
        pytest.fail(f"this test needs {name}: apt-get install -y --no-install-recommends {package}", pytrace=False)
    return Path(found)


def run(
    command: Sequence[str | Path], *, timeout_seconds: float = 30, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it says on standard error stands in `stdout` too."""
    return subprocess.run(
        [str(word) for word in command],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that no test is given again while this process lives.

    It is none of those that the kernel gives to outgoing connections, of which some may come before it is used.
    """
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(LOWEST_PORT, max(outgoing, 2 * LOWEST_PORT)), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                _taken.append(_take(port))
            except OSError:
                continue
        return port
    raise OSError("of a hundred ports of 127.0.0.1 none is free")


def _take(port: int) -> socket.socket:
    """Hold the port's name among all test runs of this machine; the kernel lets go of it with the process."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0jouled-test-port-{port}")
    except OSError:
        name.close()
        raise
    return name
