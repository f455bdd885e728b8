"""The unit and what is installed beside it, as systemd itself judges them."""

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from tests.support.tools import REPOSITORY, run, tool

from jouled.app.config import load, settings_for

SYSTEMD = REPOSITORY / "systemd"
UNIT = SYSTEMD / "jouled.service"
EXAMPLE = SYSTEMD / "jouled.toml"


def with_every_comment_in_force(text: str) -> str:
    """The example with its commented keys and tables uncommented."""
    return re.sub(r"(?m)^# (?=\[|\w+ = )", "", text)


def exposure(unit: Path, most: float) -> int:
    # systemd counts in tenths.
    threshold = f"--threshold={round(most * 10)}"
    return run([tool("systemd-analyze"), "security", "--offline=true", "--no-pager", threshold, unit]).returncode


def test_the_unit_has_no_fault_that_systemd_knows(tmp_path: Path) -> None:
    program = tmp_path / "jouled"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "jouled.service"
    unit.write_text(UNIT.read_text().replace("/opt/jouled/bin/jouled", str(program)))
    verified = run([tool("systemd-analyze"), "verify", "--man=no", unit])
    # An unknown key is only a warning to systemd: any line about this unit is a fault here.
    assert (verified.returncode, [line for line in verified.stdout.splitlines() if "jouled" in line]) == (0, [])


def test_the_service_is_as_closed_as_promised() -> None:
    assert exposure(UNIT, 1.5) == 0


def test_the_exposure_gate_can_fail(tmp_path: Path) -> None:
    opened = tmp_path / "jouled.service"
    opened.write_text(re.sub(r"(?m)^(PrivateUsers|IPAddress|SystemCallFilter|ProtectSystem).*\n", "", UNIT.read_text()))
    assert exposure(opened, 1.5) == 1


@pytest.mark.parametrize(
    ("names", "most"),
    [
        ("[!d]*.conf", 2.0),
        ("discovery.conf", 2.0),  # its capabilities are the widest: it is for those who need it
        ("*.conf", 2.1),
    ],
)
def test_drop_ins_leave_the_exposure_below_the_floor(tmp_path: Path, names: str, most: float) -> None:
    merged = tmp_path / "jouled.service"
    drop_ins = [path.read_text() for path in sorted((SYSTEMD / "drop-ins").glob(names))]
    assert drop_ins
    merged.write_text("\n".join([UNIT.read_text(), *drop_ins]))
    assert exposure(merged, most) == 0


def test_a_stop_keeps_the_number_of_the_last_published_commit() -> None:
    assert "RuntimeDirectoryPreserve=yes" in UNIT.read_text().splitlines()


@pytest.mark.parametrize("whole", [False, True], ids=["as shipped", "every comment in force"])
def test_the_example_configuration_is_valid(tmp_path: Path, whole: bool) -> None:
    text = EXAMPLE.read_text()
    path = tmp_path / "config.toml"
    path.write_text(with_every_comment_in_force(text) if whole else text)
    config = load(path, {})
    assert config.engines
    for name, table in config.power.items():
        [collector] = entry_points(group="jouled.power", name=name)
        settings_for(collector.load(), table)


def test_every_setting_of_the_example_can_be_uncommented() -> None:
    example = EXAMPLE.read_text()
    whole = tomllib.loads(with_every_comment_in_force(example))
    assert {"serve", "node", "engines", "slo", "tier", "power", "requests", "cost"} == set(whole)
    assert len(whole["engines"]) > len(tomllib.loads(example)["engines"])


def test_the_account_is_what_sysusers_makes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    made = run(
        [tool("systemd-analyze").with_name("systemd-sysusers"), f"--root={tmp_path}", SYSTEMD / "sysusers/jouled.conf"]
    )
    assert made.returncode == 0, made.stdout
    account = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("jouled:"))
    assert account.endswith(":/var/lib/jouled:/usr/sbin/nologin")
