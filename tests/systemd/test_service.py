"""The real daemon in its real unit under a real systemd."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.tools import REPOSITORY, run
from tests.systemd.machine import Machine, booted, install_python

pytestmark = pytest.mark.timeout(240)

ZONE = "/opt/sys/class/powercap/intel-rapl:0"
CONFIGURATION = """
[power.rapl]
startup = "require"
sysfs_root = "/opt/sys"
"""
# A RAPL counter of 50 W. Fixed width and in place, so that no reader ever sees half of it.
METER = f"""
import itertools, os, time
counter = os.open("{ZONE}/energy_uj", os.O_WRONLY)
for step in itertools.count(1):
    os.pwrite(counter, b"%012d" % (step * 1_000_000), 0)
    time.sleep(0.02)
"""
# What NVML's binding does, in the sandbox of the service.
FOREIGN_FUNCTIONS = """
import ctypes, pynvml
assert ctypes.CDLL(None).getpid() > 1
ctypes.CFUNCTYPE(ctypes.c_int)(int)
"""
TEST_DROP_IN = """
[Service]
WatchdogSec=3
ExecStartPre=/opt/jouled/bin/python3 /opt/foreign_functions.py
"""
ASK = """
import sys, urllib.error, urllib.request
url, body, *headers = sys.argv[1:]
asked = urllib.request.Request(url, body.encode() or None, dict(header.split("=", 1) for header in headers))
try:
    print(urllib.request.urlopen(asked, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    sys.exit(f"{error.code} {error.read().decode()}")
"""
TOKEN = "correct-horse-battery-staple"
DROP_INS = "etc/systemd/system/jouled.service.d"
URL = "http://127.0.0.1:9966"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, installed_wheel: Path) -> Iterator[Machine]:
    def prepare(root: Path) -> None:
        installed = run(["env", f"DESTDIR={root}", REPOSITORY / "scripts/install_service.sh"])
        assert installed.returncode == 0, installed.stdout
        install_python(root, installed_wheel)
        (root / "etc/jouled/config.toml").write_text(CONFIGURATION)
        (root / "opt/foreign_functions.py").write_text(FOREIGN_FUNCTIONS)
        (root / "opt/meter.py").write_text(METER)
        zone = root / ZONE.removeprefix("/")
        zone.mkdir(parents=True)
        for name, text in (
            ("name", "package-0"),
            ("max_energy_range_uj", "262143328850"),
            ("energy_uj", "000000000000"),
        ):
            (zone / name).write_text(f"{text}\n")
        folder = root / DROP_INS
        folder.mkdir()
        (folder / "test.conf").write_text(TEST_DROP_IN)

    with booted(tmp_path_factory.mktemp("machine"), prepare) as machine:
        machine.checked("systemd-sysusers", "jouled.conf")
        machine.checked("systemd-tmpfiles", "--create", "jouled.conf")
        # What the udev rule runs; a container has no udev.
        machine.checked("chgrp", "jouled", f"{ZONE}/energy_uj")
        machine.checked("chmod", "0440", f"{ZONE}/energy_uj")
        machine.checked("systemd-run", "--unit=meter", "/usr/bin/python3", "/opt/meter.py")
        yield machine


@pytest.fixture
def started(machine: Machine) -> Machine:
    machine.run("systemctl", "reset-failed", "jouled.service")
    done = machine.run("systemctl", "start", "jouled.service")
    assert done.returncode == 0, machine.log()
    return machine


def ask(machine: Machine, path: str) -> str:
    return machine.checked("/opt/jouled/bin/python3", "-c", ASK, URL + path, "")


def post_no_events(machine: Machine, *headers: str) -> tuple[int, str]:
    """Exit status and answer of an empty list of requests."""
    command = ("/opt/jouled/bin/python3", "-c", ASK, f"{URL}/api/v1/requests", "[]", "Content-Type=application/json")
    done = machine.run(*command, *headers)
    return done.returncode, done.stdout


def energy_joules(machine: Machine) -> float:
    page = ask(machine, "/metrics")
    return sum(map(float, re.findall(r"(?m)^jouled_device_energy_joules_total\{.*?\} (\S+)$", page)))


def restarted(machine: Machine, old_pid: str) -> bool:
    return machine.unit("ActiveState") == "active" and machine.unit("MainPID") not in {"0", old_pid}


def test_the_service_gets_ready_and_serves(started: Machine) -> None:
    assert started.unit("ActiveState") == "active"
    assert started.unit("StatusText")
    ask(started, "/healthz")
    assert 'jouled_source_up{source="rapl"} 1' in ask(started, "/metrics")


def test_the_sandbox_lets_foreign_functions_work(started: Machine) -> None:
    assert "code=exited ; status=0 }" in started.checked("systemctl", "show", "-p", "ExecStartPreEx", "jouled.service")


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
    path.write_text(CONFIGURATION.replace("sysfs_root", "sysfs_rot"))
    try:
        assert machine.run("systemctl", "start", "jouled.service").returncode != 0
        assert machine.unit("ActiveState") == "failed"
        assert machine.unit("ExecMainStatus") == "2"
        assert "sysfs_root" in machine.log()
    finally:
        path.write_text(CONFIGURATION)


def test_a_reload_takes_effect_in_the_same_process(started: Machine) -> None:
    started.wait_for("the first joule", lambda: energy_joules(started) > 0)
    before, pid = energy_joules(started), started.unit("MainPID")
    path = started.root / "etc/jouled/config.toml"
    path.write_text(CONFIGURATION + "[metrics]\noff = ['jouled_build_info']\n")
    try:
        started.checked("systemctl", "reload", "jouled.service")
        started.wait_for("the reload", lambda: told(started, "/metrics", lambda page: "jouled_build_info" not in page))
    finally:
        path.write_text(CONFIGURATION)
    assert (started.unit("ActiveState"), started.unit("MainPID")) == ("active", pid)
    assert energy_joules(started) >= before


def told(machine: Machine, path: str, holds: Callable[[str], bool]) -> bool:
    """Whether the page says so; not while nobody answers."""
    done = machine.run("/opt/jouled/bin/python3", "-c", ASK, URL + path, "")
    return done.returncode == 0 and holds(done.stdout)


def test_the_token_comes_from_systemd(machine: Machine) -> None:
    machine.run("systemctl", "stop", "jouled.service")
    secret = machine.root / "etc/jouled/secrets/token"
    secret.write_text(f"{TOKEN}\n")
    secret.chmod(0o600)
    folder = machine.root / DROP_INS
    shutil.copy(REPOSITORY / "systemd/drop-ins/token.conf", folder)
    path = machine.root / "etc/jouled/config.toml"
    path.write_text(CONFIGURATION + '[serve]\ntoken_file = "/run/credentials/jouled.service/token"\n')
    try:
        machine.checked("systemctl", "daemon-reload")
        assert machine.run("systemctl", "start", "jouled.service").returncode == 0, machine.log()
        status, answer = post_no_events(machine)
        assert (status, answer[:3]) == (1, "401")
        assert post_no_events(machine, f"Authorization=Bearer {TOKEN}")[0] == 0
    finally:
        (folder / "token.conf").unlink()
        path.write_text(CONFIGURATION)
        machine.checked("systemctl", "daemon-reload")
        machine.run("systemctl", "stop", "jouled.service")
