"""The Modbus meters against pymodbus' own server, and against servers that answer noise."""

import logging
import socket
import struct
import threading
import time
from contextlib import closing, contextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.constants import ExcCodes
from tests.collectors.power.clocks import StepClock
from tests.support.modbus import ModbusServer
from tests.support.tools import free_port

from jouled.app.config.load import settings_for
from jouled.core.ledger.levels import complete, levels
from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import ConfigurationError, SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power import modbus, modbus_gateway
from jouled_collectors.power.modbus import ModbusCollector
from jouled_collectors.power.modbus_registers import (
    PROFILES_FILE,
    EnergyRegister,
    FaultError,
    PowerRegister,
    number,
    read_profiles,
    size,
)
from jouled_collectors.power.modbus_settings import ModbusSettings

WH = 3_600_000_000
WATTS = {"address": 100, "type": "float32", "unit": "W"}
COUNTER = {"address": 200, "type": "uint32", "unit": "Wh"}
TYPES = ["uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]


@pytest.fixture
def server():
    """Starts servers; they end with the test."""
    started = []

    def make(*units: int, port=None) -> ModbusServer:
        started.append(ModbusServer(*units, port=port))
        return started[-1]

    yield make
    for one in started:
        one.stop()


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    deadline = time.monotonic() + 5
    while any(thread.name == "modbus" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def meter(port: int, **keys: object) -> dict:
    return {"name": "main", "host": "127.0.0.1", "port": port, **keys}


def settings(*meters: dict, **keys: object) -> ModbusSettings:
    return msgspec.convert({"meters": list(meters), "timeout_seconds": 0.2, **keys}, ModbusSettings)


def opened(*meters: dict, clock=None, **keys: object):
    return closing(ModbusCollector().open(settings(*meters, **keys), clock or StepClock()))


def failure(*meters: dict, **keys: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        ModbusCollector().open(settings(*meters, **keys), StepClock())
    return caught.value


def hear(source, count: int = 1) -> list:
    readings, deadline = [], time.monotonic() + 5
    while len(readings) < count:
        assert time.monotonic() < deadline, source.parts
        readings += source.read()
    return readings


@contextmanager
def hangs_up_behind_each_answer():
    """A gateway that keeps no connection; gives its port."""

    def serve(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                question = connection.recv(12)
                if question:
                    connection.sendall(question[:4] + struct.pack(">HBBBf", 7, 1, 3, 4, 800.0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class TestNumbers:
    @pytest.mark.parametrize(
        ("kind", "words", "order", "value"),
        [
            ("uint16", [812], "big", 812),
            ("int32", [0, 812], "big", 812),
            ("int32", [812, 0], "little", 812),
            ("uint64", [0, 0, 1, 2], "big", 65538),
            ("uint64", [2, 1, 0, 0], "little", 65538),
            ("float32", [0x4248, 0], "big", 50.0),
            ("float32", [0, 0x4248], "little", 50.0),
        ],
    )
    def test_types_and_word_orders(self, kind, words, order, value):
        assert number(kind, words, order) == value

    @pytest.mark.parametrize(
        ("kind", "words", "fault"),
        [
            ("uint16", [0xFFFF], "sentinel"),
            ("uint32", [0xFFFF, 0xFFFF], "sentinel"),
            ("uint64", [0xFFFF] * 4, "sentinel"),
            ("int16", [0x8000], "sentinel"),
            ("int32", [0x7FFF, 0xFFFF], "sentinel"),
            ("int64", [0x8000, 0, 0, 0], "sentinel"),
            ("int16", [0xFFFF], "negative"),
            ("float32", [0xC248, 0], "negative"),
            ("float32", [0x7FC0, 0], "not_a_number"),
            ("float32", [0x7F80, 0], "not_a_number"),
            ("float32", [0xFFFF, 0xFFFF], "not_a_number"),
        ],
    )
    def test_what_is_no_value(self, kind, words, fault):
        with pytest.raises(FaultError, match=fault):
            number(kind, words, "big")

    @given(kind=st.sampled_from(TYPES), order=st.sampled_from(["big", "little"]), data=st.data())
    def test_any_words_are_a_value_or_a_fault(self, kind, order, data):
        words = data.draw(st.lists(st.integers(0, 65535), min_size=size(kind), max_size=size(kind)))
        register = EnergyRegister(address=1, type=kind, unit="kWh")
        try:
            found = register.microjoules(words, order)
        except FaultError:
            found = None
        assert found is None or 0 <= found < 2**63

    def test_units_scales_and_ranges(self):
        assert PowerRegister(address=1, type="uint16", unit="kW", scale=0.1).watts([25], "big") == 2500.0
        counter = EnergyRegister(address=1, type="uint32", unit="kWh", scale=0.1)
        assert counter.microjoules([0, 3], "big") == 1_080_000_000_000
        assert counter.wrap_microjoules is None, "the books hold less"
        assert EnergyRegister(address=1, type="uint16", unit="kWh").wrap_microjoules == 2**16 * 1000 * WH
        assert EnergyRegister(address=1, type="int64", unit="Wh").wrap_microjoules is None
        assert EnergyRegister(address=1, type="int32", unit="Wh", wraps_at=10**6).wrap_microjoules == 10**6 * WH

    def test_a_counter_of_64_bits_keeps_its_last_microjoule(self):
        register = EnergyRegister(address=1, type="uint64", unit="J")
        joules = 9_007_199_254_741
        words = struct.unpack(">4H", struct.pack(">Q", joules))
        assert register.microjoules(words, "big") == joules * 1_000_000

    def test_profiles_of_the_package(self):
        profiles = read_profiles(PROFILES_FILE)
        assert (profiles["schneider_iem3000"].power.address, profiles["schneider_iem3000"].first_address) == (3060, 1)
        assert (profiles["janitza_umg"].power.address, profiles["janitza_umg"].first_address) == (19026, 0)


class TestReading:
    def test_profiles_and_the_address_on_the_wire(self, server):
        one = server(1, 2)
        one.set(1, 3059, "float32", 1.5)  # kW
        one.set(2, 19026, "float32", 812.5)
        meters = (
            meter(one.port, name="a", profile="schneider_iem3000", role="outlet", feed="utility", max_watts=3600),
            meter(one.port, name="b", profile="janitza_umg", unit=2),
        )
        with opened(*meters) as source:
            readings = hear(source, 2)
            now_ns = StepClock().time_ns
            assert readings[0] == PowerReading("a", now_ns - 500_000_000, 1500.0)
            assert (readings[1].device, readings[1].watts) == ("b", 812.5)
            first, second = source.devices
            assert (first.name, first.kind, first.parent, first.max_watts) == (
                "a",
                DeviceKind.OUTLET,
                "utility",
                3600.0,
            )
            assert (second.kind, second.source, second.method) == (DeviceKind.FEED, "modbus", "modbus_power")
            assert second.quality is Quality.DERIVED
            assert source.parts == {"a": None, "b": None}
            assert {function for function, _, _ in one.asked} == {3}

    def test_a_feed_is_not_whole_without_a_meter_that_was_never_heard(self, server):
        one = server(1)
        one.set(1, 100, "float32", 100.0)
        meters = (
            meter(one.port, name="a", power=WATTS, role="outlet"),
            meter(free_port(), name="b", power=WATTS, role="outlet"),
        )
        with opened(*meters) as source:
            assert {reading.device for reading in hear(source)} == {"a"}
            assert "IPAddressAllow" in source.parts["b"].mend
            (level,) = levels(source.devices)
            assert level.members == ("a", "b")
            assert complete([level], lambda name: name == "a") == []

    def test_a_meter_that_hangs_up_behind_each_answer(self):
        with hangs_up_behind_each_answer() as port, opened(meter(port, power=WATTS)) as source:
            for _ in range(4):
                assert {reading.watts for reading in hear(source)} == {800.0}
                assert source.parts == {"main": None}

    def test_a_counter(self, server):
        one = server(1)
        one.set(1, 3203, "int64", 1_234_567)
        with opened(meter(one.port, profile="schneider_iem3000", reading="energy")) as source:
            hear(source)
            assert hear(source) == [EnergyReading("main", 1_000_000_000_000, 1_234_567 * WH)]
            assert source.devices[0].quality is Quality.MEASURED

    def test_registers_of_the_settings(self, server):
        one = server(7)
        one.set(7, 99, "uint32", 5, "little")
        register = {"address": 100, "type": "uint32", "unit": "Wh", "scale": 0.1, "input": True}
        keys = {"unit": 7, "energy": register, "first_address": 1, "word_order": "little"}
        with opened(meter(one.port, **keys)) as source:
            assert hear(source)[0].microjoules == WH // 2
            assert source.devices[0].wrap_microjoules == 2**32 * WH // 10
            assert set(one.asked) == {(4, 7, 99)}

    def test_profiles_of_the_user(self, server, tmp_path):
        one = server(1)
        one.set(1, 5, "uint16", 42)
        file = tmp_path / "profiles.toml"
        file.write_text('[mine]\npower = { address = 5, type = "uint16", unit = "W" }\n')
        with opened(meter(one.port, profile="mine"), profiles_file=str(file)) as source:
            assert hear(source)[0].watts == 42.0

    def test_one_connection_and_one_question_at_a_time(self, server):
        one = server(1, 2)
        one.delay_seconds = {1: 0.05, 2: 0.05}
        with opened(*(meter(one.port, name=f"m{unit}", unit=unit, power=WATTS) for unit in (1, 2))) as source:
            for _ in range(3):
                source.read()
            assert len(one._server.active_connections) == 1
            assert [unit for _, unit, _ in one.asked[:6]] == [1, 2] * 3

    def test_a_slow_answer_is_handed_out_by_a_later_read(self, server, monkeypatch):
        monkeypatch.setattr(modbus, "WAIT_SECONDS", 0.02)
        one = server(1)
        with opened(meter(one.port, power=WATTS)) as source:
            hear(source)
            one.delay_seconds = {1: 0.1}
            begun = time.monotonic()
            while source.read():
                pass
            assert time.monotonic() - begun < 0.1
            hear(source)


def sentinel(one: ModbusServer) -> None:
    one.set(1, 200, "uint32", 0xFFFFFFFF)


def no_such_register(one: ModbusServer) -> None:
    one.refuse[1] = ExcCodes.ILLEGAL_ADDRESS


def nobody_behind_the_gateway(one: ModbusServer) -> None:
    one.refuse[1] = ExcCodes.GATEWAY_NO_RESPONSE


def busy(one: ModbusServer) -> None:
    one.refuse[1] = ExcCodes.DEVICE_BUSY


def hangs(one: ModbusServer) -> None:
    one.delay_seconds[1] = 1.0


class TestFaults:
    FAULTS = (
        (sentinel, "sentinel"),
        (no_such_register, "no_register"),
        (nobody_behind_the_gateway, "no_answer"),
        (busy, "refused"),
        (hangs, "no_answer"),
    )

    @pytest.mark.parametrize(("fault", "reason"), FAULTS)
    def test_one_meter_fails_and_the_other_goes_on_and_it_comes_back(self, server, fault, reason):
        one, clock = server(1, 2), StepClock()
        one.set(1, 200, "uint32", 7)
        meters = (meter(one.port, name="a", energy=COUNTER), meter(one.port, name="b", unit=2, energy=COUNTER))
        with opened(*meters, clock=clock) as source:
            hear(source, 2)
            fault(one)
            clock.advance(1)
            source.read()
            while source.parts["a"] is None:
                source.read()
            assert (source.parts["a"].state, source.parts["a"].reason) == (SourceState.DOWN, reason)
            assert source.parts["a"].mend
            assert {reading.device for reading in hear(source)} == {"b"}
            assert source.parts["b"] is None
            one.refuse.clear()
            one.delay_seconds.clear()
            one.set(1, 200, "uint32", 8)
            clock.advance(60)
            while source.parts["a"] is not None:
                source.read()
            assert "a" in {reading.device for reading in hear(source, 2)}

    def test_an_answer_that_comes_too_late_is_that_of_nobody(self, server):
        one = server(1, 2)
        one.set(1, 200, "uint32", 1)
        one.set(2, 200, "uint32", 2)
        meters = (meter(one.port, name="a", energy=COUNTER), meter(one.port, name="b", unit=2, energy=COUNTER))
        with opened(*meters, timeout_seconds=0.1) as source:
            hear(source, 2)
            before = one.connections
            one.delay_seconds[1] = 0.15
            readings = hear(source, 4)
            assert {(one.device, one.microjoules) for one in readings} <= {("a", WH), ("b", 2 * WH)}
            assert one.connections == before + 1

    def test_a_dead_meter_is_not_asked_at_every_tick(self, server):
        one, clock = server(1, 2), StepClock()
        one.refuse[1] = ExcCodes.DEVICE_BUSY
        meters = (meter(one.port, name="a", energy=COUNTER), meter(one.port, name="b", unit=2, energy=COUNTER))
        with opened(*meters, clock=clock) as source:
            for _ in range(100):
                clock.advance(10)
                hear(source)
            assert 15 <= sum(unit == 1 for _, unit, _ in one.asked) <= 60, "from 2 s to a minute apart"
            assert sum(unit == 2 for _, unit, _ in one.asked) > 90

    def test_a_server_that_ends_and_comes_back(self, server):
        one, clock = server(1), StepClock()
        with opened(meter(one.port, power=WATTS), clock=clock) as source:
            hear(source)
            one.stop()
            clock.advance(60)
            with pytest.raises(SourceError, match=r"does not answer|cannot be reached"):
                source.read()
        assert failure(meter(one.port, power=WATTS)).reason == "unreachable"
        again = server(1, port=one.port)
        with opened(meter(again.port, power=WATTS)) as source:
            hear(source)

    def test_all_meters_behind_a_host_go_down_with_it(self, server):
        one, other, clock = server(1, 2), server(1), StepClock()
        behind = [meter(one.port, name=f"m{unit}", unit=unit, power=WATTS) for unit in (1, 2)]
        with opened(*behind, meter(other.port, power=WATTS), clock=clock) as source:
            hear(source, 3)
            one.stop()
            clock.advance(1)
            assert [reading.device for reading in hear(source)] == ["main"]
            assert all(source.parts[name].state is SourceState.DOWN for name in ("m1", "m2"))
            assert source.parts["main"] is None

    def test_a_question_in_flight_at_the_end_leaves_no_connection(self, server, monkeypatch):
        monkeypatch.setattr(modbus, "WAIT_SECONDS", 0.01)
        one = server(1)
        with opened(meter(one.port, power=WATTS)) as source:
            hear(source)
            one.delay_seconds[1] = 0.1
            source.read()
            assert source._gateways[0].is_busy
        deadline = time.monotonic() + 5
        while one._server.active_connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_a_dead_host_delays_no_other(self, server, caplog):
        caplog.set_level(logging.WARNING)
        one = server(1)
        with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
            dead = meter(silent.getsockname()[1], name="dead", power=WATTS)
            with opened(meter(one.port, power=WATTS), dead) as source:
                begun = time.monotonic()
                assert [reading.device for reading in hear(source, 3)] == ["main"] * 3
                assert time.monotonic() - begun < 2
                assert source.parts["dead"].reason == "no_answer"
        assert caplog.records == []


@contextmanager
def noise(answer: bytes):
    """A server that sends this to every question."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)

        def serve():
            connection, _ = listening.accept()
            with connection:
                while question := connection.recv(1000):
                    connection.sendall(question[:2] + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="no Modbus"),
        pytest.param(b"\x00\x00\x00\x05\x01\x03\x02\x00\x07", id="one register of two"),
        pytest.param(b"\x00\x00\x00\x03\x01\x03\x04", id="cut short"),
        pytest.param(b"\x00\x00\x00\x07\x02\x03\x04\x00\x00\x00\x07", id="of another unit"),
        pytest.param(b"\x00\x00\x00\x02\x01\x83", id="an exception without its code"),
        pytest.param(b"\x00" * 300, id="zeros"),
        pytest.param(b"\xff" * 300, id="ones"),
    ],
)
def test_noise_is_told_in_time(answer):
    with noise(answer) as port:
        begun = time.monotonic()
        error = failure(meter(port, power=WATTS))
        assert (error.state, error.reason) in {(SourceState.DOWN, "no_answer"), (SourceState.DOWN, "garbage")}
        assert time.monotonic() - begun < 3


def test_a_thread_that_never_comes_back_is_told(server, monkeypatch):
    monkeypatch.setattr(modbus_gateway, "SLOW_SECONDS", -3.9)  # beside twice the limit of 2 s
    monkeypatch.setattr(modbus, "WAIT_SECONDS", 0.01)
    slow, other = server(1), server(1)
    meters = (meter(slow.port, name="slow", power=WATTS), meter(other.port, power=WATTS))
    with opened(*meters, timeout_seconds=2) as source:
        hear(source, 2)
        slow.delay_seconds[1] = 0.6
        deadline = time.monotonic() + 3
        while source.parts["slow"] is None:
            assert time.monotonic() < deadline
            source.read()
        assert source.parts["slow"].reason == "no_answer"


class TestSettings:
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"power": WATTS, "unit": 300},
            {"power": WATTS, "port": 0},
            {"power": {**WATTS, "unit": "Wh"}},
            {"power": {**WATTS, "type": "float"}},
            {"power": {**WATTS, "adress": 1}},
            {"power": WATTS, "role": "gpu"},
        ],
    )
    def test_meters_that_make_no_sense_are_refused(self, keys):
        with pytest.raises(msgspec.ValidationError):
            settings(meter(502) | keys)

    def test_what_the_operator_writes(self):
        with pytest.raises(ConfigurationError, match=r"meters\[0\].power.*adress"):
            settings_for(ModbusCollector, {"meters": [meter(502, power={"adress": 1})]})

    def test_two_of_a_name_and_none_are_refused(self):
        with pytest.raises(msgspec.ValidationError):
            settings(meter(1, power=WATTS), meter(2, power=WATTS))
        with pytest.raises(msgspec.ValidationError):
            settings()

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"profile": "no_such"}, "janitza_umg"),
            ({"power": WATTS, "reading": "energy"}, "no register of its energy"),
            ({"power": {**WATTS, "address": 0}, "first_address": 1}, "register 0"),
        ],
    )
    def test_meters_that_cannot_be_asked(self, keys, words):
        error = failure(meter(free_port(), **keys))
        assert (error.state, error.reason) == (SourceState.DENIED, "configuration")
        assert words in error.message

    @pytest.mark.parametrize("content", [None, b"[mine", b"\xff", b"[mine]\npower = 5\n", b"[mine]\nwrong = 5\n"])
    def test_profiles_that_cannot_be_used(self, tmp_path, content):
        file = tmp_path / "profiles.toml"
        if content is not None:
            file.write_bytes(content)
        error = failure(meter(free_port(), power=WATTS), profiles_file=str(file))
        assert (error.state, error.reason) == (SourceState.DENIED, "profiles_file")
        assert str(file) in error.message
        assert error.mend

    def test_without_the_library_the_source_is_absent(self, monkeypatch):
        monkeypatch.setattr(modbus, "find_spec", lambda _name: None)
        error = failure(meter(free_port(), power=WATTS))
        assert (error.state, error.reason) == (SourceState.ABSENT, "no_library")
        assert "jouled[modbus]" in error.mend
