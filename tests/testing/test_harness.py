"""The harness for authors of power sources: it finds what breaks the contract, and an installed package passes it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tools import REPOSITORY, run

from jouled.api import PowerSettings
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.testing import ManualClock, hold_to_contract, outcome, trial

EXAMPLE = REPOSITORY / "tests/examples/wattmeter"


class Good:
    """A source that keeps the contract; tests break one thing of it."""

    name = "good"
    isolation = "thread"
    settings_type = PowerSettings
    device = Device(name="m0", kind=DeviceKind.NODE, source="good")

    def open(self, settings, clock):
        self.clock = clock
        self.devices = (self.device,)
        self.interval_seconds = 1.0
        self.energy = 0
        return self

    def read(self):
        self.energy += 100
        return [EnergyReading("m0", self.clock.now_ns(), self.energy)]

    def close(self):
        """Nothing to do."""


def broken(**changes: Any) -> Good:
    return type("Broken", (Good,), changes)()


def reading(make: Callable[[int], list]) -> Callable:
    return lambda self: make(self.clock.now_ns())


def test_a_good_source_passes():
    first = hold_to_contract(Good(), PowerSettings())
    assert [len(readings) for readings in first.reads] == [1] * 5


def raises_absent(self, settings, clock):
    raise SourceError(SourceState.ABSENT, "none", "there is none")


names = iter(f"m{k}" for k in range(100))


def opens_with_new_names(self, settings, clock):
    name = next(names)
    self.devices, self.interval_seconds = (Device(name=name, kind=DeviceKind.NODE, source="good"),), 1.0
    self.read = lambda: [EnergyReading(name, clock.now_ns(), 1)]
    return self


class Lax(PowerSettings, forbid_unknown_fields=False):
    pass


TWINS = (Good.device, Good.device)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "two words"}, "no name for a table"),
        ({"isolation": "fiber"}, "isolation"),
        ({"settings_type": Lax}, "these are no Lax"),
        ({"open": raises_absent}, "it does not work: absent"),
        ({"open": opens_with_new_names}, "names must be stable"),
        ({"read": reading(lambda t: [])}, "told nothing"),
        ({"read": reading(lambda t: [EnergyReading("other", t, 1)])}, "none of its devices"),
        ({"read": reading(lambda t: [EnergyReading("m0", t + 10**12, 1)])}, "use the clock that was given"),
        ({"read": reading(lambda t: [EnergyReading("m0", 5, 1)])}, "use the clock that was given"),
        ({"read": reading(lambda t: [EnergyReading("m0", t, 1.5)])}, "no whole number"),
        ({"read": reading(lambda t: [EnergyReading("m0", t, -1)])}, "negative"),
        ({"read": reading(lambda t: [PowerReading("m0", t, float("nan"))])}, "absent is absent"),
        ({"read": reading(lambda t: [PowerReading("m0", t, -3.0)])}, "leave out what is no power"),
        ({"read": reading(lambda t: [PowerReading("m0", 10**12, 3.0)])}, "have one time"),
        ({"device": Device(name="m0", kind=DeviceKind.NODE)}, "does not say its source"),
        ({"device": Device(name="m0", kind=DeviceKind.NODE, source="g", max_watts=0.0)}, "no power"),
        ({"device": Device(name="m0", kind=DeviceKind.NODE, source="g", parent="m0")}, "contains itself"),
    ],
)
def test_what_breaks_the_contract_is_said(changes, said):
    with pytest.raises(AssertionError, match=said):
        hold_to_contract(broken(**changes), PowerSettings())


def test_a_trial_ends_with_the_error_and_tells_the_parts():
    down = SourceError(SourceState.DOWN, "timeout", "pdu2 does not answer", mend="ping pdu2")

    class Parted(Good):
        def open(self, settings, clock):
            self.parts = {"pdu1": None, "pdu2": down}
            return super().open(settings, clock)

    done = trial(Parted(), PowerSettings(), ManualClock(), reads=3)
    assert (done.state, len(done.reads), done.parts) == (
        SourceState.OK,
        3,
        {"pdu1": ("ok", ""), "pdu2": ("down", "timeout")},
    )
    assert outcome(broken(open=raises_absent), PowerSettings()) == ("absent", "none")


@pytest.mark.timeout(120)
def test_a_package_of_a_third_party_is_built_installed_tested_and_found(tmp_path: Path):
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    installed = run([*pip, "--target", packages, EXAMPLE], timeout_seconds=60)
    assert installed.returncode == 0, installed.stdout
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    own_tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    tested = subprocess.run(own_tests, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout
    meter = tmp_path / "watts"
    meter.write_text("640.0")
    config = tmp_path / "config.toml"
    config.write_text(f'[power.wattmeter]\npath = "{meter}"\n')
    check = [Path(sys.executable).with_name("jouled"), "check", "--config", str(config)]
    checked = subprocess.run(check, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "wattmeter    ok        1 device" in checked.stdout
    assert "640.0 W" in checked.stdout
    meter.unlink()
    checked = subprocess.run(check, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "wattmeter    absent" in checked.stdout
    assert "Start the meter, or name its file" in checked.stdout
