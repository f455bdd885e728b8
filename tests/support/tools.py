"""Programs that tests need beside Python, and how to run them."""

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
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
