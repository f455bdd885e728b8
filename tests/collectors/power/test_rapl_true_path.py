"""The sources of the host with the defaults they are discovered with: a fake tree lies at /sys itself.

Each runs in a process of its own in a private mount namespace, as root, as a user, and as one with the capability.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.hwmon_tree import make_meter, make_supply
from tests.support.tools import REPOSITORY, run, tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

AS_ROOT = ""
AS_NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"
WITH_CAPABILITY = (
    f"{AS_NOBODY} --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
    " --bounding-set=-all,+dac_read_search"
)
SCRIPT = """set -e
mount --make-rprivate /
mount --rbind "$1" /sys
exec {become} "$2" "$3" "$4"
"""


class Child:
    """A source in its namespace."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def read(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("read\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the source ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def source_at(tree: Path, name: str, become: str = AS_ROOT) -> Iterator[Child]:
    child = REPOSITORY / "tests" / "support" / "rapl_child.py"
    script = SCRIPT.format(become=become)
    command = [tool("unshare"), "-m", "sh", "-c", script, "sh", tree, sys.executable, child, name]
    paths = [REPOSITORY / "daemon", REPOSITORY / "collectors", *map(Path, sys.path)]
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    with process:
        try:
            yield Child(process)
        finally:
            process.kill()


@pytest.fixture
def tree() -> Iterator[Path]:
    """A root that every user can walk into."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        yield root


def make_package(tree: Path, zone: str, name: str, microjoules: int, mode: int = 0o400) -> Path:
    folder = tree / "class" / "powercap" / zone
    folder.mkdir(parents=True)
    for file, content in {"name": name, "energy_uj": microjoules, "max_energy_range_uj": 262_143_328_850}.items():
        (folder / file).write_text(f"{content}\n")
    (folder / "energy_uj").chmod(mode)
    return folder


def test_rapl(tree: Path) -> None:
    make_package(tree, "intel-rapl:0", "package-0", 777_000)
    with source_at(tree, "rapl") as rapl:
        assert rapl.read() == {"values": {"cpu0": 777_000}, "kinds": {"cpu0": "cpu_package"}}
        (tree / "class/powercap/intel-rapl:0/energy_uj").write_text("778000\n")
        assert rapl.read()["values"] == {"cpu0": 778_000}


def test_nothing_at_all(tree: Path) -> None:
    for name in ("rapl", "hwmon", "cray"):
        with source_at(tree, name) as source:
            assert source.read()["state"] == "absent"
            if name == "rapl":
                make_package(tree, "intel-rapl:0", "package-0", 5)
                assert source.read()["values"] == {"cpu0": 5}


def test_hwmon_and_cray_beside_rapl(tree: Path) -> None:
    make_package(tree, "intel-rapl:0", "package-0", 5)
    make_meter(tree, 0, "", 500_000_000, power1_average_interval=1000)
    make_supply(tree, 1, "3-0058", 460_000_000)
    counters = tree / "cray" / "pm_counters"
    counters.mkdir(parents=True)
    for file in ("energy", "cpu_energy", "memory_energy"):
        (counters / file).write_text("12 J 1700000000000000 us\n")
    with source_at(tree, "hwmon") as hwmon:
        assert hwmon.read()["values"] == {"acpi_node": 500.0, "psu-3-0058": 460.0}
    with source_at(tree, "cray") as cray:
        assert cray.read()["values"] == {"cray_node": 12_000_000, "cray_memory": 12_000_000}


@pytest.mark.parametrize("become", [AS_NOBODY, WITH_CAPABILITY])
def test_a_user_needs_the_capability(tree: Path, become: str) -> None:
    if run([*become.split(), sys.executable, "-c", ""]).returncode != 0:
        pytest.skip("this interpreter lies where only root may walk to")
    make_package(tree, "intel-rapl:0", "package-0", 5)
    with source_at(tree, "rapl", become) as rapl:
        answer = rapl.read()
        if become == WITH_CAPABILITY:
            assert answer["values"] == {"cpu0": 5}
            return
        assert (answer["state"], answer["reason"]) == ("denied", "permission")
        assert "/sys/class/powercap/intel-rapl:0/energy_uj" in answer["message"]
        os.chown(tree / "class/powercap/intel-rapl:0/energy_uj", 0, 65534)
        (tree / "class/powercap/intel-rapl:0/energy_uj").chmod(0o440)
        assert rapl.read()["values"] == {"cpu0": 5}
