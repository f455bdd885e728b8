"""The real daemon in its real unit under a real systemd."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.tools import REPOSITORY, run
from tests.systemd.machine import Machine, booted, install_python

pytestmark = pytest.mark.timeout(120)

CONFIGURATION = """
[power.estimate]
startup = "require"
idle_watts = 60
max_watts = 250
"""
# Reaches into the sandbox of the service as it starts, before the daemon itself.
PROBE = (
    "import ctypes, mmap, sqlite3, aiohttp, msgspec, pynvml; "
    "ctypes.CDLL(None).getpid(); ctypes.CFUNCTYPE(ctypes.c_int)(int); print('probe: done')"
)
TEST_DROP_IN = f"""
[Service]
WatchdogSec=3
ExecStartPre=/opt/jouled/bin/python3 -c "{PROBE}"
"""
ASK = """
import sys, urllib.request
headers = dict(header.split("=", 1) for header in sys.argv[2:])
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=10).read().decode())
"""
URL = "http://127.0.0.1:9966"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, installed_wheel: Path) -> Iterator[Machine]:
    def prepare(root: Path) -> None:
        installed = run(["env", f"DESTDIR={root}", REPOSITORY / "scripts/install_service.sh"])
        assert installed.returncode == 0, installed.stdout
        install_python(root, installed_wheel)
        (root / "etc/jouled/config.toml").write_text(CONFIGURATION)
        add_drop_in(root, "test.conf", TEST_DROP_IN)

    with booted(tmp_path_factory.mktemp("machine"), prepare) as machine:
        machine.checked("systemd-sysusers", "jouled.conf")
        machine.checked("systemd-tmpfiles", "--create", "jouled.conf")
        yield machine


@pytest.fixture
def started(machine: Machine) -> Machine:
    machine.run("systemctl", "reset-failed", "jouled.service")
    done = machine.run("systemctl", "start", "jouled.service")
    assert done.returncode == 0, machine.log()
    return machine


def add_drop_in(root: Path, name: str, text: str) -> None:
    folder = root / "etc/systemd/system/jouled.service.d"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def ask(machine: Machine, path: str, *headers: str) -> str:
    return machine.checked("/opt/jouled/bin/python3", "-c", ASK, URL + path, *headers)


def energy_joules(machine: Machine) -> float:
    page = ask(machine, "/metrics")
    found = re.findall(r"(?m)^jouled_energy_joules_total\{.*?\} (\S+)$", page)
    return sum(map(float, found))


def restarted(machine: Machine, old_pid: str) -> bool:
    return machine.unit("ActiveState") == "active" and machine.unit("MainPID") not in {"0", old_pid}


def test_the_service_gets_ready_and_serves(started: Machine) -> None:
    assert started.unit("ActiveState") == "active"
    assert started.unit("StatusText")
    ask(started, "/healthz")
    assert 'jouled_source_up{source="estimate"} 1' in ask(started, "/metrics")
    assert "probe: done" in started.log()


def test_the_daemon_has_no_privilege(started: Machine) -> None:
    status = started.checked("cat", f"/proc/{started.unit('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name].strip("0") for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {""}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    owner = started.checked("stat", "-c", "%U %a", "/var/lib/jouled", "/run/jouled").split("\n")[:2]
    assert owner == ["jouled 700", "jouled 750"]


def test_a_killed_daemon_comes_back_and_its_counters_go_on(started: Machine) -> None:
    started.wait_for("the first joule", lambda: energy_joules(started) > 0)
    before, pid = energy_joules(started), started.unit("MainPID")
    started.checked("kill", "-KILL", pid)
    started.wait_for("a new process", lambda: restarted(started, pid))
    assert energy_joules(started) >= before


def test_a_hung_daemon_is_ended_by_the_watchdog(started: Machine) -> None:
    pid = started.unit("MainPID")
    started.checked("kill", "-STOP", pid)
    started.wait_for("a new process", lambda: restarted(started, pid), timeout_seconds=40)
    assert "Watchdog timeout" in started.log()


def test_stop_is_quick_and_keeps_the_published_number(started: Machine) -> None:
    started.wait_for("the first commit", lambda: started.run("test", "-e", "/run/jouled/published").returncode == 0)
    started.checked("systemctl", "stop", "jouled.service", timeout_seconds=10)
    assert started.unit("Result") == "success"
    assert int(started.checked("cat", "/run/jouled/published")) > 0


def test_a_wrong_configuration_is_said_once_and_not_tried_again(machine: Machine) -> None:
    machine.run("systemctl", "stop", "jouled.service")
    path = machine.root / "etc/jouled/config.toml"
    path.write_text(CONFIGURATION.replace("idle_watts", "idel_watts"))
    try:
        assert machine.run("systemctl", "start", "jouled.service").returncode != 0
        assert machine.unit("ActiveState") == "failed"
        assert machine.unit("ExecMainStatus") == "2"
        assert "idle_watts" in machine.log()
    finally:
        path.write_text(CONFIGURATION)


def test_the_token_comes_from_systemd(machine: Machine) -> None:
    machine.run("systemctl", "stop", "jouled.service")
    secret = machine.root / "etc/jouled/secrets/token"
    secret.write_text("correct-horse-battery-staple\n")
    secret.chmod(0o600)
    folder = machine.root / "etc/systemd/system/jouled.service.d"
    shutil.copy(REPOSITORY / "systemd/drop-ins/token.conf", folder)
    path = machine.root / "etc/jouled/config.toml"
    path.write_text(CONFIGURATION + '[serve]\ntoken_file = "/run/credentials/jouled.service/token"\n')
    try:
        machine.checked("systemctl", "daemon-reload")
        assert machine.run("systemctl", "start", "jouled.service").returncode == 0, machine.log()
        denied = machine.run("/opt/jouled/bin/python3", "-c", ASK, f"{URL}/api/v1/snapshot")
        assert "401" in denied.stdout
        answer = ask(machine, "/api/v1/snapshot", "Authorization=Bearer correct-horse-battery-staple")
        assert json.loads(answer)
    finally:
        (folder / "token.conf").unlink()
        path.write_text(CONFIGURATION)
        machine.checked("systemctl", "daemon-reload")
        machine.run("systemctl", "stop", "jouled.service")
