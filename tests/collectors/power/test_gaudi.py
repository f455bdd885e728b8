"""The Gaudi collector through the real binding, over a stub of the library at its fixed path."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import hlml_stub

from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled_collectors.power.gaudi import GaudiCollector, GaudiSettings

START_NS = 1_000_000_000_000
NOT_SUPPORTED, DRIVER_NOT_LOADED, LOST = 3, 9, 15


class Child:
    """The driver's process, and the files that steer its stub."""

    def __init__(self, process: subprocess.Popen[str], controls: Path) -> None:
        self._process = process
        self._controls = controls

    def set(self, key: str, value: int) -> None:
        (self._controls / key).write_text(str(value))

    def clear_all(self) -> None:
        for path in self._controls.iterdir():
            path.unlink()

    def open(self, **settings: Any) -> list[Device]:
        return msgspec.convert(self._ask(do="open", settings=settings), list[Device])

    def read(self) -> dict[str, EnergyReading | PowerReading]:
        return {one.device: one for one in self.read_all() if not isinstance(one, DeviceStatus)}

    def read_all(self) -> list[EnergyReading | PowerReading | DeviceStatus]:
        return msgspec.convert(self._ask(do="read"), list[EnergyReading | PowerReading | DeviceStatus])

    def close(self) -> None:
        self._ask(do="close")

    def advance(self, seconds: int) -> None:
        self._ask(do="advance", ns=seconds * 1_000_000_000)

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(command).decode() + "\n")
        self._process.stdin.flush()
        answer = msgspec.json.decode(self._process.stdout.readline())
        if isinstance(answer, dict) and "error" in answer:
            error = answer["error"]
            state = SourceState(error.pop("state"))
            raise SourceError(state, error.pop("reason"), error.pop("message"), **error)
        return answer


@contextmanager
def start(controls: Path, usr_lib: Path | None, **environment: str) -> Iterator[Child]:
    in_front = hlml_stub.over_usr_lib(usr_lib) if usr_lib else []
    process = subprocess.Popen(
        [*in_front, sys.executable, Path(hlml_stub.__file__).with_name("driver.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HLML_STUB_DIR": str(controls), **environment},
    )
    with process:
        yield Child(process, controls)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def usr_lib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hlml_stub.build(tmp_path_factory.mktemp("hlml") / "lib")
    if not hlml_stub.is_possible(folder):
        pytest.skip("pyhlml loads one fixed path: needs root and overlayfs to put the stub there")
    return folder


@pytest.fixture
def child(usr_lib: Path, tmp_path: Path) -> Iterator[Child]:
    with start(tmp_path, usr_lib) as running:
        yield running


def refusal(action: Callable[[], object]) -> SourceError:
    with pytest.raises(SourceError) as caught:
        action()
    return caught.value


def test_a_card_says_who_it_is_and_they_are_numbered_by_address(child: Child) -> None:
    first, second = child.open(idle_watts=100.0)
    assert (first.name, second.name) == ("gaudi0", "gaudi1")
    assert (first.product, first.uuid) == ("HL-325L 1", "01P0-HL3090A0-18-U4V193-22-07-01")
    assert (first.pci_bus_id, second.pci_bus_id) == ("0000:3f:00.0", "0000:40:00.0")
    assert (first.kind, first.vendor, first.source) == (DeviceKind.GPU, "intel", "gaudi")
    assert (first.method, first.quality) == ("hlml_energy", Quality.MEASURED)
    assert (first.max_watts, first.idle_watts) == (900.0, 100.0)


def test_each_card_is_read_by_a_handle_of_its_own(child: Child) -> None:
    """pyhlml gives the same handle object for all cards: read through it, every card would be the last one."""
    child.open()
    assert child.read() == {
        "gaudi0": EnergyReading("gaudi0", START_NS, 1_000_001_000),
        "gaudi1": EnergyReading("gaudi1", START_NS, 1_000_000_000),
    }


def test_power_where_there_is_no_counter(child: Child) -> None:
    child.set("card0.energy.code", NOT_SUPPORTED)
    child.set("card1.millijoules", 0)
    for device in child.open():
        assert (device.method, device.quality) == ("hlml_power", Quality.DERIVED)
    assert child.read() == {
        "gaudi0": PowerReading("gaudi0", START_NS, 400.0),
        "gaudi1": PowerReading("gaudi1", START_NS, 300.0),
    }


@pytest.mark.parametrize("sentinel", [0, 0xFFFFFFFF])
def test_a_sentinel_is_a_reading_less(child: Child, sentinel: int) -> None:
    child.set("card1.energy.code", NOT_SUPPORTED)
    child.open()
    child.set("card1.milliwatts", sentinel)
    assert list(child.read()) == ["gaudi1"]


def test_limit_and_driver_come_every_ten_seconds(child: Child) -> None:
    child.open()
    statuses = [one for one in child.read_all() if isinstance(one, DeviceStatus)]
    assert [(one.power_limit_watts, one.driver) for one in statuses] == [(900.0, "1.22.0-stub")] * 2
    child.advance(5)
    assert len(child.read_all()) == 2
    child.advance(5)
    assert len(child.read_all()) == 4


def test_missing_descriptions_cost_no_joules(child: Child) -> None:
    for call in ("name", "uuid", "pci", "limit"):
        child.set(f"card0.{call}.code", NOT_SUPPORTED)
    device = child.open()[0]
    assert (device.product, device.uuid, device.pci_bus_id, device.max_watts) == ("", "", "", None)
    assert len(child.read()) == 2


def test_a_lost_card_is_left_out_and_asked_again(child: Child) -> None:
    child.open()
    child.set("card0.all.code", LOST)
    assert list(child.read()) == ["gaudi0"]
    child.clear_all()
    child.advance(29)
    assert list(child.read()) == ["gaudi0"]
    child.advance(1)
    assert list(child.read()) == ["gaudi0", "gaudi1"]
    child.set("card1.all.code", LOST)
    assert list(child.read()) == ["gaudi1"], "they were lost one after the other, never both"


def test_all_lost_is_the_source_down(child: Child) -> None:
    child.open()
    for card in (0, 1):
        child.set(f"card{card}.all.code", LOST)
    error = refusal(child.read)
    assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "card_lost", False)
    assert "hl-smi" in error.mend


@pytest.mark.parametrize("code", [1, DRIVER_NOT_LOADED])
def test_a_driver_that_goes_under_way_needs_a_new_process(child: Child, code: int) -> None:
    child.open()
    child.set("all.code", code)
    error = refusal(child.read)
    assert (error.state, error.fatal) == (SourceState.DOWN, True)


@pytest.mark.parametrize(
    ("faults", "state", "reason", "mend"),
    [
        ({"init.code": DRIVER_NOT_LOADED}, SourceState.DOWN, "driver_not_loaded", "modprobe habanalabs"),
        ({"init.code": 49}, SourceState.DOWN, "hlml_49", ""),
        ({"count": 0}, SourceState.ABSENT, "no_card", "hl-smi"),
        ({"card0.handle.code": 15, "card1.handle.code": 15}, SourceState.ABSENT, "no_card", "hl-smi"),
    ],
)
def test_what_opening_says(child: Child, faults: dict[str, int], state: SourceState, reason: str, mend: str) -> None:
    for key, value in faults.items():
        child.set(key, value)
    error = refusal(child.open)
    assert (error.state, error.reason, error.fatal) == (state, reason, False)
    assert mend in error.mend
    child.clear_all()
    assert len(child.open()) == 2, "it heals in the same process"
    child.close()


def test_a_failed_opening_leaves_nothing_initialised(child: Child) -> None:
    child.open()
    child.set("count", 0)
    assert refusal(child.open).reason == "no_card"
    assert refusal(child.read).reason == "hlml_1", "the source of before finds the library shut down"


def test_without_the_library_the_source_is_absent_and_prints_nothing(tmp_path: Path) -> None:
    with start(tmp_path, None) as child:
        for _ in range(2):
            error = refusal(child.open)
            assert (error.state, error.reason) == (SourceState.ABSENT, "library_not_found")
            assert "/usr/lib/habanalabs/libhlml.so" in error.message


def without_binding(tmp_path: Path) -> str:
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / "pyhlml.py").write_text("raise ModuleNotFoundError('no pyhlml', name='pyhlml')\n")
    return str(tmp_path / "hiding")


def test_without_the_binding_it_says_what_to_install(usr_lib: Path, tmp_path: Path) -> None:
    with start(tmp_path, usr_lib, PYTHONPATH=without_binding(tmp_path)) as child:
        error = refusal(child.open)
    assert (error.state, error.reason) == (SourceState.ABSENT, "binding_not_found")
    assert "pip install pyhlml" in error.mend


def test_without_binding_and_library_it_is_absent(tmp_path: Path) -> None:
    with start(tmp_path, None, PYTHONPATH=without_binding(tmp_path)) as child:
        assert refusal(child.open).reason == "library_not_found"


def test_a_library_that_cannot_be_loaded_is_no_absence(usr_lib: Path, tmp_path: Path) -> None:
    (tmp_path / "lib" / "habanalabs").mkdir(parents=True)
    (tmp_path / "lib" / "habanalabs" / "libhlml.so").write_text("not an ELF file")
    with start(tmp_path, tmp_path / "lib") as child:
        error = refusal(child.open)
    assert (error.state, error.reason) == (SourceState.DOWN, "library_unloadable")


def test_the_collector_is_for_a_child_process_and_found_without_being_told() -> None:
    assert (GaudiCollector.name, GaudiCollector.isolation) == ("gaudi", "process")
    assert msgspec.convert({}, GaudiCollector.settings_type) == GaudiSettings()


@pytest.mark.parametrize("wrong", [{"interval_seconds": 0}, {"idle_watts": -1}, {"devices": [0]}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, GaudiSettings)
