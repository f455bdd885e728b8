"""Engines of other users as the real unit finds them: as shipped, in a container's network, by the drop-in."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.engine_server import PAGE
from tests.support.engine_process import PROXY, SERVER, SYSTEM_PYTHON
from tests.support.tools import REPOSITORY, run
from tests.systemd.machine import Machine, booted, install_python

pytestmark = pytest.mark.timeout(240)

CONFIGURATION = """
[power.estimate]
"""
OURS, THEIRS = "10.213.91.1", "10.213.91.2"
DROP_INS = "etc/systemd/system/jouled.service.d"
ASK = (
    "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9966/metrics', timeout=10).read().decode())"
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, installed_wheel: Path) -> Iterator[Machine]:
    def prepare(root: Path) -> None:
        installed = run(["env", f"DESTDIR={root}", REPOSITORY / "scripts/install_service.sh"])
        assert installed.returncode == 0, installed.stdout
        install_python(root, installed_wheel)
        (root / "etc/jouled/config.toml").write_text(CONFIGURATION)
        engine = root / "opt/engine"
        engine.mkdir()
        (engine / "vllm").write_text(SERVER)
        (engine / "page").write_text(PAGE.format(running=0, prompt=1000, generation=500))
        (engine / "proxy").write_text(PROXY.format(port=8005, to_address=THEIRS, to_port=8000))

    with booted(tmp_path_factory.mktemp("machine"), prepare) as machine:
        machine.checked("systemd-sysusers", "jouled.conf")
        machine.checked("systemd-tmpfiles", "--create", "jouled.conf")
        for command in (
            "netns add box",
            "link add ours type veth peer name theirs netns box",
            f"addr add {OURS}/24 dev ours",
            "link set ours up",
            "link set lo up",
            f"-n box addr add {THEIRS}/24 dev theirs",
            "-n box link set theirs up",
            "-n box link set lo up",
            f"-n box route add default via {OURS}",
        ):
            machine.checked("ip", *command.split())
        yield machine


def serve(machine: Machine, name: str, *arguments: str, properties: tuple[str, ...] = ()) -> None:
    """Start an engine as a user that is not the daemon's."""
    machine.checked(
        *("systemd-run", f"--unit={name}", "--uid=daemon", *properties),
        *(SYSTEM_PYTHON, "/opt/engine/vllm", "serve", "tiny", *arguments),
    )


def page(machine: Machine) -> str:
    return machine.run("/opt/jouled/bin/python3", "-c", ASK).stdout


def is_read(machine: Machine, engine: str) -> bool:
    return f'jouled_source_up{{source="{engine}"}} 1' in page(machine)


def restarted(machine: Machine) -> Machine:
    machine.checked("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "jouled.service")
    done = machine.run("systemctl", "restart", "jouled.service")
    assert done.returncode == 0, machine.log()
    return machine


def test_as_shipped_it_finds_engines_of_another_user(machine: Machine) -> None:
    serve(machine, "plain", "--port", "8001")
    restarted(machine)
    machine.wait_for("the engine's page", lambda: is_read(machine, "vllm-8001"))
    assert 'version="0.33.0"' in page(machine)


def test_as_shipped_it_finds_an_engine_in_a_container_at_its_published_port(machine: Machine) -> None:
    inside = ("-p", "NetworkNamespacePath=/run/netns/box")
    serve(machine, "contained", "--port", "8000", properties=inside)
    proxied = f"-proto tcp -host-ip 127.0.0.1 -host-port 8005 -container-ip {THEIRS} -container-port 8000"
    machine.checked(
        *("systemd-run", "--unit=proxy", "/bin/bash", "-c"),
        f"exec -a docker-proxy {SYSTEM_PYTHON} /opt/engine/proxy {proxied}",
    )
    machine.wait_for("the proxy", lambda: ":8005" in machine.run("ss", "-ltn").stdout)
    restarted(machine)
    machine.wait_for("the engine's page", lambda: is_read(machine, "vllm-8005"))


def test_what_it_may_not_see_is_in_its_log_and_the_drop_in_lets_it_see(machine: Machine) -> None:
    told_by_a_file = ("-p", "Environment=TEST_PORT=8000")
    serve(machine, "hidden", "--config", "engine.yaml", properties=told_by_a_file)
    machine.wait_for("the engine", lambda: "0.0.0.0:8000" in machine.run("ss", "-ltn").stdout)
    restarted(machine)
    machine.wait_for("the note", lambda: "its command line does not tell its port" in machine.log())
    assert not is_read(machine, "vllm-8000")
    checked = machine.run("/opt/jouled/bin/jouled", "check").stdout
    assert "cannot the service as shipped; install systemd/drop-ins/discovery.conf" in checked
    folder = machine.root / DROP_INS
    folder.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "systemd/drop-ins/discovery.conf", folder)
    try:
        restarted(machine)
        machine.wait_for("the engine's page", lambda: is_read(machine, "vllm-8000"))
    finally:
        (folder / "discovery.conf").unlink()
