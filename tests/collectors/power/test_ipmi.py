"""The IPMI collector: the real ipmitool against BMCs that speak RMCP+, and a fake one for what no BMC here says."""

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collectors.power.clocks import StepClock
from tests.support.ipmi_bmc import PASSWORD, SENSORS, IpmiBmc
from tests.support.ipmi_sim import IpmiSim
from tests.support.tools import tool

from jouled.api import PowerSource
from jouled.model.device import DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import PowerReading
from jouled_collectors.power import ipmi_meter, ipmi_process, ipmi_request, ipmi_sensor
from jouled_collectors.power.ipmi import IpmiCollector, IpmiSettings
from jouled_collectors.power.ipmi_faults import fault
from jouled_collectors.power.ipmi_output import readout
from jouled_collectors.power.ipmi_process import MOST_BYTES, Output
from jouled_collectors.power.ipmi_sensor import sensor_watts

ABSENT, DENIED, DOWN = SourceState.ABSENT, SourceState.DENIED, SourceState.DOWN
NOBODY = 65534

READING = """
    Instantaneous power reading:                   812 Watts
    Minimum during sampling period:                 20 Watts
    Maximum during sampling period:                900 Watts
    Average power reading over sample period:      700 Watts
    IPMI timestamp:                           11/26/26 18:03:19 UTC    Sampling period:        \
                  00000001 Seconds.
    Power reading state is:                   activated


"""
"""As ipmitool 1.8.19 of Debian 12 prints it."""

OPENBMC = """
    Instantaneous power reading:                   319 Watts
    Minimum during sampling period:                319 Watts
    Maximum during sampling period:                319 Watts
    Average power reading over sample period:      319 Watts
    IPMI timestamp:                           Thu Jan  1 00:00:00 1970
    Sampling period:                          00000000 Seconds.
    Power reading state is:                   deactivated
"""
"""openbmc/openbmc#3257; there with 0 W where no sensor is wired up (openbmc/phosphor-host-ipmid#167)."""

LOOK_ALIKE = """
Instantaneous power reading              : 214      Watts
Minimum during sampling period           : 2        Watts
Maximum during sampling period           : 468      Watts
Average power reading over sample period : 184      Watts
IPMI timestamp                           : 2024-05-05 13:06:44 UTC
Sampling period                          : 1000 Milliseconds
Power reading state is                   : activated
"""
"""wdes/ipmitool-dcmi-power-reading, README."""


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture(scope="module")
def shared_bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpmiBmc]:
    tool("ipmitool")
    bmc = IpmiBmc(tmp_path_factory.mktemp("bmc"))
    yield bmc
    bmc.kill()


@pytest.fixture
def bmc(shared_bmc: IpmiBmc) -> IpmiBmc:
    """The shared BMC, awake, with its usual answer."""
    shared_bmc.answer()
    return shared_bmc


@pytest.fixture
def quick_lan(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second for a dead BMC instead of four."""
    monkeypatch.setattr(ipmi_request, "LAN_RETRIES", ("-N", "1", "-R", "1"))


class FakeTool:
    """`ipmitool` at the head of PATH, a shell script."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.calls = directory / "calls"
        self.calls.touch()
        self.does("exit 1")

    def does(self, script: str) -> None:
        """From now on it does this, having noted its arguments."""
        fresh = self._directory / "fresh"
        fresh.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\n{script}\n')
        fresh.chmod(0o755)
        fresh.replace(self._directory / "ipmitool")

    def prints(self, text: str) -> None:
        """From now on it prints this and ends."""
        (self._directory / "text").write_text(text)
        self.does(f"cat {self._directory}/text")

    @property
    def starts(self) -> int:
        return len(self.calls.read_text().splitlines())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTool:
    """A fake ipmitool, a device, and little patience."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (tmp_path / "ipmi0").touch()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(ipmi_request, "DEVICE_PATHS", (str(tmp_path / "ipmi0"),))
    monkeypatch.setattr(ipmi_meter, "TIME_LIMIT_SECONDS", 0.3)
    return FakeTool(directory)


def open_source(clock: StepClock, collector: IpmiCollector | None = None, **options: object) -> PowerSource:
    return (collector or IpmiCollector()).open(msgspec.convert(options, IpmiSettings), clock)


def failure(clock: StepClock, collector: IpmiCollector | None = None, **options: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_source(clock, collector, **options)
    return caught.value


def watts(source: PowerSource) -> list[float]:
    return [reading.watts for reading in source.read() if isinstance(reading, PowerReading)]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
    return path.read_text()


def runs(pid: int) -> bool:
    """Whether it is alive; one that nobody waited for is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runs(pid)


class TestReading:
    def test_the_node_as_its_bmc_measures_it(self, bmc: IpmiBmc, clock: StepClock) -> None:
        clock.step_ns = 1_000_000
        source = open_source(clock, max_watts=3_000, **bmc.settings())
        begun_ns = clock.time_ns
        (device,) = source.devices
        assert (device.name, device.kind, device.source) == ("ipmi-node", DeviceKind.NODE, "ipmi")
        assert (device.method, device.max_watts, device.wrap_microjoules) == ("dcmi_power_reading", 3_000, None)
        assert source.interval_seconds == 10.0
        assert source.read() == [PowerReading("ipmi-node", begun_ns - 1_500_000, 812.0)]
        source.close()

    def test_it_follows_the_node(self, bmc: IpmiBmc, clock: StepClock) -> None:
        source = open_source(clock, interval_seconds=2, **bmc.settings())
        assert source.interval_seconds == 2
        assert watts(source) == [812.0]
        for power in (4_000, 1, 65_534):
            bmc.answer(watts=power)
            clock.advance(2)
            assert watts(source) == [float(power)]

    @pytest.mark.parametrize(
        "options", [{"cipher_suite": 3}, {"privilege": "operator"}, {"privilege": "administrator"}]
    )
    def test_ways_in(self, bmc: IpmiBmc, clock: StepClock, options: dict[str, object]) -> None:
        assert watts(open_source(clock, **bmc.settings(**options))) == [812.0]

    def test_in_band_it_asks_the_device_and_nothing_else(self, fake: FakeTool, clock: StepClock) -> None:
        fake.prints(READING)
        assert watts(open_source(clock)) == [812.0]
        assert fake.calls.read_text() == "-I open -v dcmi power reading\n"

    def test_the_password_stands_in_no_argument(self, fake: FakeTool, bmc: IpmiBmc, clock: StepClock) -> None:
        fake.does(f'env > "{fake.calls}.env"; cat << END{READING}END')
        assert watts(open_source(clock, **bmc.settings())) == [812.0]
        assert fake.calls.read_text() == (
            f"-I lanplus -H 127.0.0.1 -p {bmc.port} -U admin -E -L USER -N 2 -R 1 -v dcmi power reading\n"
        )
        environment = Path(f"{fake.calls}.env").read_text().splitlines()
        assert f"IPMI_PASSWORD={PASSWORD}" in environment
        assert {line.partition("=")[0] for line in environment} <= {"PATH", "LC_ALL", "IPMI_PASSWORD", "PWD", "_"} | {
            "SHLVL",
            "OLDPWD",
        }


class TestPace:
    def test_a_bmc_is_never_asked_twice_within_two_seconds(self, fake: FakeTool, clock: StepClock) -> None:
        fake.prints(READING)
        source = open_source(clock)
        assert (watts(source), fake.starts) == ([812.0], 1)
        clock.advance(1.5)
        assert (watts(source), fake.starts) == ([], 1)
        clock.advance(0.5)
        assert (watts(source), fake.starts) == ([812.0], 2)

    def test_nor_when_it_failed_and_is_opened_again(self, fake: FakeTool, clock: StepClock) -> None:
        collector = IpmiCollector()
        fake.prints("DCMI request failed because: Node busy (c0)")
        first = failure(clock, collector)
        clock.advance(1)
        assert failure(clock, collector).reason == first.reason == "busy"
        assert fake.starts == 1
        clock.advance(1)
        fake.prints(READING)
        assert watts(open_source(clock, collector)) == [812.0]

    def test_a_failed_read_is_not_repeated_by_the_next_open(self, fake: FakeTool, clock: StepClock) -> None:
        collector = IpmiCollector()
        fake.prints(READING)
        source = open_source(clock, collector)
        source.read()
        clock.advance(10)
        fake.prints("Unable to get DCMI information")
        with pytest.raises(SourceError, match="does not answer"):
            source.read()
        clock.advance(1)
        assert failure(clock, collector).reason == "no_answer"
        assert fake.starts == 2


BMC_ANSWERS = {
    "0 W": ({"watts": 0}, DOWN, "zero"),
    "no value": ({"watts": 0xFFFF}, DOWN, "sentinel"),
    "not measuring": ({"watts": 300, "lowest": 20, "highest": 310, "state": 0}, DOWN, "not_measuring"),
    "not measuring, a value of long ago": ({"watts": 300, "state": 0}, DOWN, "not_measuring"),
    "not measuring, statistics without a period": (
        {"watts": 300, "lowest": 20, "highest": 310, "period_ms": 0, "state": 0},
        DOWN,
        "not_measuring",
    ),
    "OpenBMC without a sensor": ({"watts": 0, "period_ms": 0, "state": 0}, DOWN, "not_measuring"),
    "node busy": ({"code": 0xC0}, DOWN, "busy"),
    "invalid command": ({"code": 0xC1}, ABSENT, "no_dcmi"),
    "timeout inside": ({"code": 0xC3}, DOWN, "busy"),
    "invalid field": ({"code": 0xCC}, ABSENT, "no_dcmi"),
    "no such sensor": ({"code": 0xCB}, ABSENT, "no_dcmi"),
    "starting": ({"code": 0xD2}, DOWN, "busy"),
    "privilege": ({"code": 0xD4}, DENIED, "privilege"),
    "turned off": ({"code": 0xD6}, ABSENT, "dcmi_disabled"),
    "unspecified": ({"code": 0xFF}, DOWN, "refused"),
    "unknown code": ({"code": 0x80}, DOWN, "refused"),
    "not DCMI": ({"group": 0x57}, ABSENT, "no_dcmi"),
}


class TestRealFaults:
    """The real ipmitool, and BMCs that fail."""

    @pytest.mark.parametrize(("answer", "state", "reason"), BMC_ANSWERS.values(), ids=BMC_ANSWERS)
    def test_what_the_bmc_says(
        self, bmc: IpmiBmc, clock: StepClock, answer: dict[str, int], state: SourceState, reason: str
    ) -> None:
        bmc.answer(**answer)
        error = failure(clock, **bmc.settings())
        assert (error.state, error.reason) == (state, reason)
        assert error.mend
        assert PASSWORD not in str(error)

    def test_openbmc_reads_its_sensor_live_and_says_deactivated(self, bmc: IpmiBmc, clock: StepClock) -> None:
        bmc.answer(watts=319, period_ms=0, state=0)
        assert watts(open_source(clock, **bmc.settings())) == [319.0]

    @pytest.mark.parametrize("limit", [255, 1_023])
    def test_a_register_at_its_limit_is_no_measurement(self, bmc: IpmiBmc, clock: StepClock, limit: int) -> None:
        collector = IpmiCollector()
        source = open_source(clock, collector, **bmc.settings())
        source.read()
        bmc.answer(watts=limit)
        for _ in range(5):
            clock.advance(10)
            assert watts(source) == [float(limit)]
        for _ in range(2):
            clock.advance(10)
            assert failure(clock, collector, **bmc.settings()).reason == "clipped"
        bmc.answer(watts=limit - 1)
        clock.advance(10)
        assert watts(open_source(clock, collector, **bmc.settings())) == [limit - 1.0]

    def test_a_node_that_happens_to_draw_as_much_is_believed(self, bmc: IpmiBmc, clock: StepClock) -> None:
        source = open_source(clock, **bmc.settings())
        source.read()
        bmc.answer(watts=1_023, highest=1_500)
        for _ in range(8):
            clock.advance(10)
            assert watts(source) == [1_023.0]

    def test_a_wrong_password_is_denied_and_never_told(self, bmc: IpmiBmc, clock: StepClock, tmp_path: Path) -> None:
        wrong = tmp_path / "password"
        wrong.write_text("guess-27\n")
        error = failure(clock, **bmc.settings(password_file=str(wrong)))
        assert (error.state, error.reason) == (DENIED, "credentials")
        assert "guess-27" not in str(error)
        assert "password_file" in error.mend

    def test_a_password_that_ipmi_cannot_take(self, bmc: IpmiBmc, clock: StepClock, tmp_path: Path) -> None:
        long = tmp_path / "password"
        long.write_text("x" * 21)
        error = failure(clock, **bmc.settings(password_file=str(long)))
        assert (error.state, error.reason) == (DENIED, "credentials")
        assert "20 bytes" in error.mend

    def test_a_cipher_suite_that_the_bmc_has_not(self, bmc: IpmiBmc, clock: StepClock) -> None:
        error = failure(clock, **bmc.settings(cipher_suite=17))
        assert (error.state, error.reason) == (DOWN, "cipher")
        assert "cipher_suite" in error.mend

    def test_a_host_of_no_name(self, bmc: IpmiBmc, clock: StepClock) -> None:
        error = failure(clock, **bmc.settings(host="bmc.invalid"))
        assert (error.state, error.reason) == (DOWN, "unknown_host")

    @pytest.mark.usefixtures("quick_lan")
    def test_killed_and_back(self, tmp_path: Path, clock: StepClock) -> None:
        bmc, collector = IpmiBmc(tmp_path / "bmc"), IpmiCollector()
        try:
            source = open_source(clock, collector, **bmc.settings())
            assert watts(source) == [812.0]
            bmc.kill()
            clock.advance(10)
            with pytest.raises(SourceError) as caught:
                source.read()
            assert (caught.value.state, caught.value.reason) == (DOWN, "unreachable")
            assert "IPAddressAllow" in caught.value.mend
            bmc.answer(watts=500)
            bmc.start()
            clock.advance(10)
            assert watts(open_source(clock, collector, **bmc.settings())) == [500.0]
        finally:
            bmc.kill()

    def test_one_that_hangs_takes_no_longer_than_its_limit(self, tmp_path: Path, clock: StepClock) -> None:
        bmc = IpmiBmc(tmp_path / "bmc")
        try:
            source = open_source(clock, **bmc.settings())
            source.read()
            bmc.hang()
            clock.advance(10)
            begun = time.monotonic()
            with pytest.raises(SourceError) as caught:
                source.read()
            assert (caught.value.state, caught.value.reason) == (DOWN, "unreachable")
            assert time.monotonic() - begun < ipmi_meter.TIME_LIMIT_SECONDS + 0.5
        finally:
            bmc.kill()

    @pytest.mark.usefixtures("quick_lan")
    def test_one_that_is_silent_to_an_unknown_user(
        self, bmc: IpmiBmc, clock: StepClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ipmi_meter, "TIME_LIMIT_SECONDS", 2.0)
        error = failure(clock, **bmc.settings(user="nobody"))
        assert (error.state, error.reason) == (DOWN, "no_answer")
        assert "user of [power.ipmi]" in error.mend

    def test_a_bmc_without_dcmi(self, tmp_path: Path, clock: StepClock) -> None:
        with IpmiSim(tmp_path / "sim") as simulated:
            error = failure(clock, **simulated.settings(privilege="administrator"))
            assert (error.state, error.reason) == (ABSENT, "no_dcmi")
            error = failure(clock, **simulated.settings(user="nobody"))
            assert (error.state, error.reason) == (DENIED, "credentials")
            error = failure(clock, **simulated.settings(privilege="user"))
            assert (error.state, error.reason) == (DENIED, "privilege")


class TestSensor:
    """A sensor in place of DCMI, on the BMC that has 42 of them."""

    def test_the_sensor_of_this_name(self, bmc: IpmiBmc, clock: StepClock) -> None:
        source = open_source(clock, sensor="Power Meter", **bmc.settings())
        assert [device.method for device in source.devices] == ["ipmi_sensor"]
        assert watts(source) == [812.0]
        bmc.answer(raw=250)
        clock.advance(10)
        assert watts(source) == [1_000.0]

    def test_its_records_are_fetched_once(self, bmc: IpmiBmc, clock: StepClock) -> None:
        source = open_source(clock, sensor="Power Meter", **bmc.settings())
        source.read()
        bmc.requests.unlink()
        clock.advance(10)
        assert watts(source) == [812.0]
        assert len(bmc.requests.read_text().splitlines()) < 10

    def test_and_again_when_it_failed(self, bmc: IpmiBmc, clock: StepClock) -> None:
        collector = IpmiCollector()
        options = bmc.settings(sensor="Power Meter")
        open_source(clock, collector, **options)
        good, bmc.password_file = bmc.password_file, bmc.password_file.with_name("wrong")
        bmc.password_file.write_text("wrong")
        clock.advance(10)
        assert failure(clock, collector, **bmc.settings(sensor="Power Meter")).reason == "credentials"
        bmc.password_file = good
        bmc.requests.unlink()
        clock.advance(60)
        assert watts(open_source(clock, collector, **options)) == [812.0]
        assert len(bmc.requests.read_text().splitlines()) > len(SENSORS)

    def test_the_time_of_fetching_does_not_shift_the_stamp(self, bmc: IpmiBmc, clock: StepClock) -> None:
        clock.step_ns = 1_000_000
        source = open_source(clock, sensor="Power Meter", **bmc.settings())
        assert [reading.t_ns for reading in source.read()] == [clock.time_ns - 1_500_000]

    @pytest.mark.parametrize(
        ("sensor", "raw", "state", "reason"),
        [
            ("Power Meter", 0, DOWN, "zero"),
            ("Power Meter", None, DOWN, "not_measuring"),
            ("Inlet Temp", 20, DOWN, "unreadable"),
            ("Pwr Consumption", 20, ABSENT, "no_sensor"),
            ("Power", 20, ABSENT, "no_sensor"),
        ],
    )
    def test_no_measurement(
        self, bmc: IpmiBmc, clock: StepClock, sensor: str, raw: int | None, state: SourceState, reason: str
    ) -> None:
        bmc.answer(raw=raw)
        error = failure(clock, **bmc.settings(sensor=sensor))
        assert (error.state, error.reason) == (state, reason)
        assert "ipmitool sdr list full" in error.mend

    def test_records_that_cannot_be_fetched(self, fake: FakeTool, clock: StepClock) -> None:
        fake.does("echo 'Error obtaining SDR info: Invalid command' >&2")
        error = failure(clock, sensor="Power Meter")
        assert (error.state, error.reason) == (DOWN, "garbage")
        assert fake.calls.read_text().startswith("-I open -v sdr dump /")

    def test_half_of_the_records_is_none(
        self, fake: FakeTool, clock: StepClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ipmi_sensor, "FETCH_SECONDS", 0.3)
        fake.does('for file; do :; done; echo records > "$file"; exec sleep 60')
        assert failure(clock, sensor="Power Meter").reason == "no_answer"
        assert fake.starts == 1

    @pytest.mark.parametrize("before", ["", "echo Power Meter,812,Watts,ok,7.1"])
    def test_one_that_hangs(self, fake: FakeTool, clock: StepClock, before: str) -> None:
        fake.does(f'case "$*" in *dump*) for file; do :; done; echo x > "$file" ;; *) {before}\nexec sleep 60 ;; esac')
        assert failure(clock, sensor="Power Meter").reason == "no_answer"

    def test_no_file_stays_behind(
        self, bmc: IpmiBmc, clock: StepClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        source = open_source(clock, sensor="Power Meter", **bmc.settings())
        assert list(tmp_path.glob("jouled-ipmi-*/*"))
        source.close()
        del source
        gc.collect()
        assert not list(tmp_path.glob("jouled-ipmi-*"))

    def test_the_whole_name_counts(self) -> None:
        text = "Power Meter 2,5,Watts,ok,7.1\nPower Meter,812.5,Watts,nc,7.1\n"
        assert sensor_watts(text, "Power Meter") == 812.5

    @given(st.binary(max_size=500))
    def test_any_bytes(self, data: bytes) -> None:
        text = f"Power Meter,{data.decode(errors='replace')}"
        try:
            told = sensor_watts(text, "Power Meter")
        except SourceError as error:
            told = error.reason
        assert told in {"not_measuring", "unreadable", "zero"} or (isinstance(told, float) and 0 < told < 1e9)


TOOL_FAULTS = {
    "nothing": ("exit 1", DOWN, "garbage"),
    "garbage": ("head -c 2000 /dev/urandom", DOWN, "garbage"),
    "cut off": ("echo '    Instantaneous power reading:                   812 Watts'", DOWN, "garbage"),
    "no device any more": (
        "echo 'Could not open device at /dev/ipmi0 or /dev/ipmi/0: No such device' >&2",
        DOWN,
        "device",
    ),
    "no answer": ("echo; echo '    Unable to get DCMI information' >&2; exit 1", DOWN, "no_answer"),
    "driver is silent": ("echo 'No data available' >&2; exit 1", DOWN, "no_answer"),
    "hanging": ("exec sleep 60", DOWN, "no_answer"),
    "hanging after a reading": (f"cat << END{READING}END\nexec sleep 60", DOWN, "no_answer"),
    "without end": ("yes", DOWN, "garbage"),
    "a reading, then without end": (f"cat << END{READING}END\nexec yes", DOWN, "garbage"),
    "no more sessions": (
        "echo 'Error in open session response message : insufficient resources for session' >&2",
        DOWN,
        "busy",
    ),
    "unknown name": ("echo 'RAKP 2 message indicates an error : unauthorized name' >&2", DENIED, "credentials"),
    "role": ("echo 'RAKP 2 message indicates an error : unauthorized role or privilege' >&2", DENIED, "privilege"),
    "level": ("echo 'Set Session Privilege Level to USER failed: Unknown (0x81)' >&2", DENIED, "privilege"),
    "old": ("echo 'This BMC does not support IPMI v2 / RMCP+' >&2", DOWN, "no_ipmi_2"),
    "no route": ("echo 'Could not open socket!' >&2", DOWN, "unreachable"),
    "firewall of this node": (
        "echo 'IPMI LAN send command failed\nGet Auth Capabilities error' >&2",
        DOWN,
        "unreachable",
    ),
}


class TestToolFaults:
    """What ipmitool may do that no BMC here makes it do."""

    @pytest.mark.parametrize(("script", "state", "reason"), TOOL_FAULTS.values(), ids=TOOL_FAULTS)
    def test_what_ipmitool_does(
        self, fake: FakeTool, clock: StepClock, script: str, state: SourceState, reason: str
    ) -> None:
        collector = IpmiCollector()
        fake.does(script)
        begun = time.monotonic()
        error = failure(clock, collector)
        assert (error.state, error.reason) == (state, reason)
        assert error.mend
        assert time.monotonic() - begun < 2
        fake.prints(READING)
        clock.advance(10)
        assert watts(open_source(clock, collector)) == [812.0]

    def test_no_process_stays_behind(self, fake: FakeTool, clock: StepClock, tmp_path: Path) -> None:
        fake.does(f"sleep 60 & echo $$ $! > {tmp_path}/pids; sleep 60")
        assert failure(clock).reason == "no_answer"
        leader, other = (int(pid) for pid in (tmp_path / "pids").read_text().split())
        assert not psutil.pid_exists(leader)
        assert ended(other)

    def test_nor_one_that_goes_on_in_the_background(self, fake: FakeTool, clock: StepClock, tmp_path: Path) -> None:
        fake.does(f"sleep 60 > /dev/null 2>&1 & echo $! > {tmp_path}/pid; cat << END{READING}END")
        assert watts(open_source(clock)) == [812.0]
        assert ended(int((tmp_path / "pid").read_text()))

    def test_nor_when_the_daemon_ends_in_the_middle(self, fake: FakeTool, tmp_path: Path) -> None:
        fake.does(f"echo $$ > {tmp_path}/pid; exec sleep 60")
        program = (
            "import threading, time, sys\n"
            "from pathlib import Path\n"
            "from tests.collectors.power.clocks import StepClock\n"
            "from jouled_collectors.power import ipmi, ipmi_request\n"
            f"ipmi_request.DEVICE_PATHS = ({str(tmp_path / 'ipmi0')!r},)\n"
            "arguments = (ipmi.IpmiSettings(), StepClock())\n"
            "threading.Thread(target=ipmi.IpmiCollector().open, args=arguments, daemon=True).start()\n"
            f"while not Path({str(tmp_path / 'pid')!r}).exists(): time.sleep(0.01)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=20, cwd=Path(__file__).parents[3])
        assert ended(int(wait_for(tmp_path / "pid")))

    def test_one_that_cannot_be_killed_is_not_joined_by_more(
        self, fake: FakeTool, clock: StepClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ipmi_process, "_kill_group", lambda leader: None)
        monkeypatch.setattr(ipmi_process, "KILL_SECONDS", 0.05)
        collector = IpmiCollector()
        fake.does(f"echo $$ > {tmp_path}/pid; exec sleep 1")
        assert failure(clock, collector).reason == "no_answer"
        clock.advance(10)
        error = failure(clock, collector)
        assert (error.state, error.reason) == (DOWN, "hangs")
        assert fake.starts == 1
        time.sleep(1)
        fake.prints(READING)
        clock.advance(10)
        assert watts(open_source(clock, collector)) == [812.0]
        assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))

    def test_one_that_is_no_program(self, fake: FakeTool, clock: StepClock) -> None:
        (fake.calls.parent / "ipmitool").write_bytes(b"\x7fELF?")
        error = failure(clock)
        assert (error.state, error.reason) == (DOWN, "not_started")

    def test_many_open_files_do_not_matter(self, fake: FakeTool, clock: StepClock) -> None:
        fake.prints(READING)
        files = [os.dup(0) for _ in range(1_100)]
        try:
            assert watts(open_source(clock)) == [812.0]
        finally:
            for file in files:
                os.close(file)


class TestAccess:
    def test_a_node_without_a_bmc(self, fake: FakeTool, clock: StepClock, tmp_path: Path) -> None:
        (tmp_path / "ipmi0").unlink()
        error = failure(clock)
        assert (error.state, error.reason) == (ABSENT, "no_device")
        assert "modprobe" in error.mend
        assert fake.starts == 0

    def test_without_ipmitool(self, fake: FakeTool, clock: StepClock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        error = failure(clock)
        assert (error.state, error.reason) == (ABSENT, "no_ipmitool")
        assert "install ipmitool" in error.mend

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes root to lose a permission")
    def test_a_device_for_root_alone(self, clock: StepClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = Path("/tmp") / f"jouled-ipmi-{os.getpid()}"
        folder.mkdir(mode=0o755)
        device = folder / "ipmi0"
        device.touch(mode=0o600)
        monkeypatch.setattr(ipmi_request, "DEVICE_PATHS", (str(device),))
        os.seteuid(NOBODY)
        try:
            error = failure(clock)
        finally:
            os.seteuid(0)
            device.unlink()
            folder.rmdir()
        assert (error.state, error.reason) == (DENIED, "permission")
        assert 'SUBSYSTEM=="ipmi", GROUP="root", MODE="0660"' in error.mend
        assert "DeviceAllow=char-ipmidev rw" in error.mend

    def test_a_device_without_its_driver(
        self, fake: FakeTool, clock: StepClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ipmi_request, "DEVICE_PATHS", (str(tmp_path),))
        assert (failure(clock).state, failure(clock).reason) == (DOWN, "device")

    @pytest.mark.skipif(Path("/dev/ipmi0").exists(), reason="this machine has a BMC")
    def test_the_real_ipmitool_without_a_device(
        self, clock: StepClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tool("ipmitool")
        (tmp_path / "ipmi0").touch()
        monkeypatch.setattr(ipmi_request, "DEVICE_PATHS", (str(tmp_path / "ipmi0"),))
        assert (failure(clock).state, failure(clock).reason) == (DOWN, "device")

    @pytest.mark.parametrize("content", [None, "", "\n", "nul\0"])
    def test_a_password_file_that_holds_none(
        self, bmc: IpmiBmc, clock: StepClock, tmp_path: Path, content: str | None
    ) -> None:
        path = tmp_path / "password"
        if content is not None:
            path.write_text(content)
        error = failure(clock, **bmc.settings(password_file=str(path)))
        assert (error.state, error.reason) == (DENIED, "secret_unreadable")
        assert str(path) in error.message

    def test_a_new_password_is_read_when_it_is_opened_again(
        self, bmc: IpmiBmc, clock: StepClock, tmp_path: Path
    ) -> None:
        path, collector = tmp_path / "password", IpmiCollector()
        path.write_text("old")
        assert failure(clock, collector, **bmc.settings(password_file=str(path))).state is DENIED
        path.write_text(PASSWORD)
        clock.advance(60)
        assert watts(open_source(clock, collector, **bmc.settings(password_file=str(path)))) == [812.0]


class TestSettings:
    def test_it_is_found_without_being_configured(self) -> None:
        assert msgspec.convert({}, IpmiSettings).host == ""

    @pytest.mark.parametrize(
        "table",
        [
            {"interval_seconds": 1.9},
            {"interval_seconds": 61},
            {"host": "bmc"},
            {"host": "bmc", "user": "admin"},
            {"user": "admin"},
            {"password_file": "/secret"},
            {"host": "bmc", "user": "seventeen-letters", "password_file": "/secret"},
            {"privilege": "root"},
            {"port": 0},
            {"cipher_suite": -1},
            {"max_watts": -1},
            {"sensor": "-v"},
            {"password": "never here"},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, table: dict[str, object]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(table, IpmiSettings)


class TestOutput:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (READING, (812, 900)),
            (READING.lower(), (812, 900)),
            (READING.upper(), (812, 900)),
            (READING.replace("  ", "\t"), (812, 900)),
            (READING.replace(" ", "\N{NO-BREAK SPACE}"), (812, 900)),
            (READING.replace("\n", "\r\n"), (812, 900)),
            (READING.replace(" ", ""), None),
            (LOOK_ALIKE, (214, 468)),
            (OPENBMC, (319, 319)),
            ("\n".join(line for line in READING.splitlines() if "aximum" not in line), (812, None)),
            ("Invalid completion code received: Invalid command\n" + READING, (812, 900)),
            ("", None),
            ("Current Power                        : 332 Watts", None),
            (READING.replace("Watts", "Kelvin"), None),
            (READING.replace("812 Watts", "1.2 kW"), None),
        ],
    )
    def test_forms(self, text: str, expected: tuple[int, int | None] | None) -> None:
        assert readout(text) == expected

    @pytest.mark.parametrize("number", ["N/A", "NaN", "-1", "1.5", "1,234", "0x32c", "1e3", "٣٠٠", "9" * 30])
    def test_a_number_that_is_none(self, number: str) -> None:
        with pytest.raises(SourceError) as caught:
            readout(READING.replace("812", number))
        assert (caught.value.state, caught.value.reason) == (DOWN, "unreadable")

    @pytest.mark.parametrize("number", [65_535, 65_536, 4_294_967_295 % 10**9])
    def test_a_number_that_stands_for_no_value(self, number: int) -> None:
        with pytest.raises(SourceError) as caught:
            readout(READING.replace("812", str(number)))
        assert caught.value.reason == "sentinel"

    @given(st.binary(max_size=2_000))
    def test_any_bytes(self, data: bytes) -> None:
        check(data.decode(errors="replace"))

    @given(st.lists(st.sampled_from([*READING.split(" "), *OPENBMC.splitlines(), "-", "0", "\0", "Watts", "(c1)"])))
    def test_any_shuffle_of_a_reading(self, words: list[str]) -> None:
        check(" ".join(words))

    @given(st.integers(0, len(READING)), st.integers(0, len(READING)), st.text(max_size=10))
    def test_any_hole_in_a_reading(self, begin: int, end: int, filling: str) -> None:
        check(READING[:begin] + filling + READING[end:])

    @pytest.mark.parametrize(
        "phrase",
        [
            "Instantaneous power reading",
            "Instantaneous power reading: 812 Watts Power reading state is",
            "Maximum during sampling period",
            "sampling period 0",
            "DCMI request failed because:",
            "Set Session Privilege Level to ",
            "is longer than ",
        ],
    )
    @pytest.mark.parametrize("filling", [" ", "0", "instantaneous "])
    def test_the_longest_output_is_searched_at_once(self, phrase: str, filling: str) -> None:
        begun = time.monotonic()
        check((phrase + filling * MOST_BYTES)[:MOST_BYTES])
        assert time.monotonic() - begun < 1


def check(text: str) -> None:
    """Watts that can be, or a reason why there are none; and nothing else."""
    told = outcome(text)
    if isinstance(told, SourceError):
        assert told.state in {ABSENT, DENIED, DOWN}
        assert told.reason
        assert told.mend
        assert len(told.message) < 200
    else:
        assert 0 < told < 0xFFFF


def outcome(text: str) -> int | SourceError:
    try:
        told = readout(text)
    except SourceError as error:
        return error
    return fault(Output(text), "The BMC") if told is None else told.watts
