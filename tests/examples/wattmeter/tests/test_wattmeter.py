"""How a third party tests its collector: by the harness that jouled ships."""

from pathlib import Path

import pytest
from jouled_wattmeter import WattmeterCollector, WattmeterSettings

from jouled.model.readings import PowerReading
from jouled.testing import hold_to_contract, outcome, trial


@pytest.fixture
def meter(tmp_path: Path) -> Path:
    file = tmp_path / "watts"
    file.write_text("812.5\n")
    return file


def settings(meter: Path) -> WattmeterSettings:
    return WattmeterSettings(path=str(meter))


def test_it_keeps_the_contract(meter: Path) -> None:
    hold_to_contract(WattmeterCollector(), settings(meter), tick=lambda k: meter.write_text(f"{800 + k}\n"))


def test_it_tells_the_power(meter: Path) -> None:
    [reading] = trial(WattmeterCollector(), settings(meter)).readings
    assert isinstance(reading, PowerReading)
    assert reading.watts == 812.5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ("absent", "no_file")),
        ("", ("down", "garbage")),
        ("nan", ("down", "garbage")),
        ("-1", ("down", "garbage")),
        ("twelve", ("down", "garbage")),
        ("0", ("ok", "")),
    ],
)
def test_each_fault_has_its_state_and_reason(meter: Path, content: str | None, expected: tuple[str, str]) -> None:
    def fault(read: int) -> None:
        if read == 1 and content is None:
            meter.unlink()
        elif read == 1:
            meter.write_text(content or "")

    assert outcome(WattmeterCollector(), settings(meter), between=fault) == expected
