"""The MQTT meters against the real broker, mosquitto."""

import logging
import signal
import socket
import struct
import threading
import time
from contextlib import closing

import msgspec
import pytest
from tests.collectors.power.clocks import StepClock
from tests.support import mosquitto
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_meter import Publisher, may_subscribe
from tests.support.tools import free_port

from jouled.app.runtime.samplers import sample
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.mqtt_meter import MqttMeterCollector
from jouled_collectors.power.mqtt_meter_client import LARGEST_PACKET_BYTES
from jouled_collectors.power.mqtt_meter_settings import MqttMeterSettings
from jouled_collectors.power.mqtt_meter_state import MOST_PENDING

SECRET = "broker-secret-4711"
HEAR_SECONDS = 5
SHELLY = {"name": "plug-a", "kind": "shelly", "topic": "shelly-1/status/switch:0"}
TASMOTA = {"name": "plug-b", "kind": "tasmota", "topic": "tele/rack/SENSOR", "feed": "utility"}
ZIGBEE = {"name": "plug-c", "kind": "zigbee2mqtt", "topic": "zigbee2mqtt/rack"}
PLAIN = {"name": "main", "kind": "json", "topic": "meters/1", "power_path": "p", "role": "feed"}


@pytest.fixture
def start(tmp_path):
    """Starts brokers; they end with the test."""
    started = []

    def make(*lines: str, tls=None) -> Mosquitto:
        started.append(Mosquitto(tmp_path / f"broker{len(started)}", *lines, tls=tls))
        return started[-1]

    yield make
    for broker in started:
        broker.kill()


@pytest.fixture
def device():
    """Connects publishers; they end with the test."""
    made = []

    def make(port: int, will=None, **login: str) -> Publisher:
        made.append(Publisher(port, will, **login))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    deadline = time.monotonic() + HEAR_SECONDS
    while any(thread.name == "mqtt_meter" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settings(port: int, *meters: dict, **keys: object) -> MqttMeterSettings:
    return msgspec.convert({"host": "127.0.0.1", "port": port, "meters": list(meters), **keys}, MqttMeterSettings)


def opened(broker_port: int, *meters: dict, clock=None, **keys: object):
    return closing(MqttMeterCollector().open(settings(broker_port, *meters, **keys), clock or StepClock()))


def hear(source, count: int = 1) -> list:
    """Read until so many readings came."""
    readings, deadline = [], time.monotonic() + HEAR_SECONDS
    while len(readings) < count:
        assert time.monotonic() < deadline, readings
        time.sleep(0.005)
        readings += source.read()
    return readings


def wait_for(source, name: str, reason: str) -> SourceError:
    deadline = time.monotonic() + HEAR_SECONDS
    while source.read() is None or getattr(source.parts[name], "reason", "") != reason:
        assert time.monotonic() < deadline, source.parts
        time.sleep(0.005)
    return source.parts[name]


def failure(port: int, *meters: dict, **keys: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        MqttMeterCollector().open(settings(port, *(meters or (TASMOTA,)), **keys), StepClock())
    return caught.value


def ends(source) -> SourceError:
    deadline = time.monotonic() + 2 * HEAR_SECONDS
    while (begun := time.monotonic()) < deadline:
        try:
            source.read()
        except SourceError as error:
            return error
        assert time.monotonic() - begun < 0.5, "a read waits for nobody"
        time.sleep(0.005)
    pytest.fail("it did not end")


class TestHearing:
    def test_each_kind_speaks(self, start, device):
        broker = start()
        plug = device(broker.port)
        with opened(broker.port, SHELLY, TASMOTA, ZIGBEE, PLAIN) as source:
            assert source.read() == []
            names = ["plug-a", "plug-b", "plug-c", "main"]
            assert [one.name for one in source.devices] == names, "a feed is not whole without those not heard yet"
            assert {name: error.reason for name, error in source.parts.items()} == dict.fromkeys(
                ("plug-a", "plug-b", "plug-c", "main"), "waiting"
            )
            plug.say("shelly-1/status/switch:0", {"id": 0, "apower": 100.5, "aenergy": {"total": 2.5}})
            now_ns = source._clock.time_ns
            assert hear(source) == [EnergyReading("plug-a", now_ns, 9_000_000_000)]
            assert [one.name for one in source.devices] == names
            plug.say("tele/rack/SENSOR", {"ENERGY": {"Power": 300, "Total": 1.234}})
            assert hear(source) == [PowerReading("plug-b", now_ns - 500_000_000, 300.0)]
            plug.say("zigbee2mqtt/rack", {"power": 200, "energy": 1.2})
            plug.say("meters/1", {"p": "600.5"})
            assert {reading.device: reading.watts for reading in hear(source, 2)} == {"plug-c": 200.0, "main": 600.5}
            assert [(one.name, one.kind, one.parent) for one in source.devices] == [
                ("plug-a", "outlet", "feed"),
                ("plug-b", "outlet", "utility"),
                ("plug-c", "outlet", "feed"),
                ("main", "feed", ""),
            ]
            assert set(source.parts.values()) == {None}

    def test_a_shelly_that_only_notifies(self, start, device):
        broker = start()
        plug = device(broker.port)
        with opened(broker.port, SHELLY) as source:
            plug.say("shelly-1/events/rpc", {"method": "NotifyStatus", "params": {"switch:0": {"apower": 5}}})
            plug.say(
                "shelly-1/events/rpc",
                {"method": "NotifyStatus", "params": {"switch:0": {"aenergy": {"total": 1.0}}, "sys": {}}},
            )
            assert [reading.microjoules for reading in hear(source)] == [3_600_000_000]

    def test_what_the_broker_retained_is_no_reading(self, start, device):
        broker = start()
        plug = device(broker.port)
        plug.say("tele/rack/SENSOR", {"ENERGY": {"Power": 999, "Total": 1}}, retain=True)
        with opened(broker.port, TASMOTA, PLAIN) as source:
            plug.say("meters/1", {"p": 1})  # behind what was retained
            assert [reading.device for reading in hear(source)] == ["main"]
            assert source.parts["plug-b"].reason == "waiting"
            plug.say("tele/rack/SENSOR", {"ENERGY": {"Power": 300, "Total": 1}}, retain=True)
            assert [reading.watts for reading in hear(source)] == [300.0], "sent now, though retained for others"

    def test_two_meters_of_one_message(self, start, device):
        broker = start()
        both = [{**PLAIN, "name": f"main-{phase}", "power_path": f"p.{phase}"} for phase in (0, 1)]
        with opened(broker.port, *both) as source:
            device(broker.port).say("meters/1", {"p": [10, 20]})
            assert {reading.device: reading.watts for reading in hear(source, 2)} == {"main-0": 10.0, "main-1": 20.0}

    def test_a_flood_is_bounded_and_the_newest_is_heard(self, start, device):
        broker = start("max_queued_messages 0")
        plug = device(broker.port)
        with opened(broker.port, PLAIN) as source:
            plug.flood("meters/1", [b'{"p":%d}' % number for number in range(5_000)])
            deadline = time.monotonic() + HEAR_SECONDS
            state = source._meters[0]
            while not state._pending or state._pending[-1].watts != 4_999:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert len(source.read()) == MOST_PENDING

    def test_a_message_too_large_for_any_meter_does_not_reach_us(self, start, device):
        broker = start()
        plug = device(broker.port)
        with opened(broker.port, PLAIN) as source:
            plug.say("meters/1", b'{"p":1}' + b" " * LARGEST_PACKET_BYTES)
            plug.say("meters/1", {"p": 2})
            assert [reading.watts for reading in hear(source)] == [2.0]
            assert source._meters[0].faults == {}

    def test_silence_is_told_and_ends(self, start, device):
        broker, clock = start(), StepClock()
        plug = device(broker.port)
        with opened(broker.port, TASMOTA, clock=clock) as source:
            plug.say("tele/rack/SENSOR", {"ENERGY": {"Power": 300}})
            hear(source)
            clock.advance(901)
            assert source.read() == []
            assert (source.parts["plug-b"].state, source.parts["plug-b"].reason) == (SourceState.DOWN, "silent")
            assert "access list" in source.parts["plug-b"].mend
            plug.say("tele/rack/SENSOR", {"ENERGY": {"Power": 301}})
            hear(source)
            assert source.parts["plug-b"] is None


class TestAvailability:
    @pytest.mark.parametrize(
        ("meter", "topic", "gone", "back"),
        [
            (SHELLY, "shelly-1/online", "false", "true"),
            (TASMOTA, "tele/rack/LWT", "Offline", "Online"),
            (ZIGBEE, "zigbee2mqtt/rack/availability", '{"state":"offline"}', '{"state":"online"}'),
            ({**PLAIN, "availability_topic": "meters/1/up"}, "meters/1/up", "0", "1"),
        ],
    )
    def test_the_last_will_of_a_device_takes_it_down_at_once(self, start, device, meter, topic, gone, back):
        broker = start()
        plug = device(broker.port, (topic, gone))
        with opened(broker.port, meter) as source:
            plug.say(topic, back, retain=True)
            plug.cut()
            error = wait_for(source, meter["name"], "offline")
            assert error.state is SourceState.DOWN
            device(broker.port).say(topic, back, retain=True)
            wait_for(source, meter["name"], "waiting")

    def test_offline_is_known_from_what_was_retained_and_ends_with_a_reading(self, start, device):
        broker = start()
        plug = device(broker.port)
        plug.say("tele/rack/LWT", "Offline", retain=True)
        with opened(broker.port, TASMOTA) as source:
            wait_for(source, "plug-b", "offline")
            plug.say("tele/rack/SENSOR", {"ENERGY": {"Power": 300}})
            hear(source)
            assert source.parts["plug-b"] is None


class TestBroker:
    def test_password_file_and_wrong_password(self, start, device, tmp_path):
        broker = start("allow_anonymous false", mosquitto.passwords(tmp_path, meter=SECRET))
        (tmp_path / "right").write_text(f"{SECRET}\n")
        (tmp_path / "wrong").write_text("no-" + SECRET)
        with opened(broker.port, PLAIN, user="meter", password_file=str(tmp_path / "right")) as source:
            device(broker.port, user="meter", password=SECRET).say("meters/1", {"p": 1})
            assert len(hear(source)) == 1
        error = failure(broker.port, user="meter", password_file=str(tmp_path / "wrong"))
        assert (error.state, error.reason) == (SourceState.DENIED, "unauthorized")
        assert "password_file" in error.mend
        assert SECRET not in str(error)
        assert failure(broker.port).reason == "unauthorized"

    def test_tls(self, start, device, tmp_path):
        keys = mosquitto.certificates(tmp_path / "keys")
        broker = start(tls=keys)
        with opened(broker.port, PLAIN, tls=True, ca_file=str(keys / "ca.crt")) as source:
            assert source.read() == []
        error = failure(broker.port, tls=True)
        assert (error.state, error.reason) == (SourceState.DENIED, "certificate")
        assert "ca_file" in error.mend
        assert failure(broker.port).reason == "unreachable"  # plain text to a port of TLS

    def test_one_refused_subscription_stops_no_other(self, start, device, tmp_path):
        broker = start(*may_subscribe(tmp_path, "meters/1"))
        with opened(broker.port, TASMOTA, PLAIN) as source:
            device(broker.port).say("meters/1", {"p": 1})
            assert [reading.device for reading in hear(source)] == ["main"]
            error = source.parts["plug-b"]
            assert (error.state, error.reason) == (SourceState.DENIED, "not_authorized")
            assert "tele/rack/SENSOR" in error.mend
            assert source.parts["main"] is None

    def test_a_shelly_is_heard_on_the_topic_that_is_allowed(self, start, device, tmp_path):
        broker = start(*may_subscribe(tmp_path, "shelly-1/status/#"))
        with opened(broker.port, SHELLY) as source:
            device(broker.port).say("shelly-1/status/switch:0", {"aenergy": {"total": 1}})
            assert len(hear(source)) == 1
            assert source.parts["plug-a"] is None

    def test_an_access_list_of_mosquitto_tells_nobody(self, start, device, tmp_path):
        broker, clock = start(mosquitto.access(tmp_path, "topic write #")), StepClock()
        with opened(broker.port, TASMOTA, clock=clock) as source:
            device(broker.port).say("tele/rack/SENSOR", {"ENERGY": {"Power": 300}})
            clock.advance(901)
            source.read()
            assert source.parts["plug-b"].reason == "silent"
            assert "access list" in source.parts["plug-b"].mend

    def test_killed_and_back(self, start, device):
        broker = start()
        with opened(broker.port, PLAIN) as source:
            broker.kill()
            error = ends(source)
            assert (error.state, error.reason) == (SourceState.DOWN, "disconnected")
        assert failure(broker.port).reason == "unreachable"
        broker.start()
        with opened(broker.port, PLAIN) as source:
            device(broker.port).say("meters/1", {"p": 1})
            assert len(hear(source)) == 1

    def test_a_broker_that_hangs_is_noticed(self, start):
        broker = start()
        with opened(broker.port, PLAIN, keepalive_seconds=1) as source:
            broker.signal(signal.SIGSTOP)
            try:
                assert ends(source).reason == "disconnected"
            finally:
                broker.signal(signal.SIGCONT)

    def test_another_client_of_our_name_is_told(self, start):
        broker = start()
        with opened(broker.port, PLAIN, client_id="me") as first, opened(broker.port, PLAIN, client_id="me") as second:
            assert "client_id" in ends(first).mend
            assert second.read() == []

    def test_the_runtime_reopens_and_tells_the_parts(self, start, device):
        broker, batches, stop = start(), [], threading.Event()
        clock = StepClock()
        clock.now_ns = time.monotonic_ns
        arguments = (MqttMeterCollector(), settings(broker.port, PLAIN, interval_seconds=0.02), clock, batches.append)
        sampler = threading.Thread(target=sample, args=(*arguments, stop))
        sampler.start()

        def told(source: str, state: SourceState, after: int = 0) -> None:
            deadline = time.monotonic() + 2 * HEAR_SECONDS
            while not any(
                (report.source, report.state) == (source, state)
                for batch in batches[after:]
                for report in batch.reports
            ):
                assert time.monotonic() < deadline, batches
                time.sleep(0.01)

        try:
            told("mqtt_meter", SourceState.OK)
            device(broker.port).say("meters/1", {"p": 1})
            told("mqtt_meter/main", SourceState.OK)
            broker.kill()
            told("mqtt_meter", SourceState.DOWN)
            told("mqtt_meter/main", SourceState.DOWN)
            seen = len(batches)
            broker.start()
            told("mqtt_meter", SourceState.OK, seen)
            device(broker.port).say("meters/1", {"p": 1})
            told("mqtt_meter/main", SourceState.OK, seen)
        finally:
            stop.set()
            sampler.join()


def no_broker(tmp_path):
    return {"port": free_port()}


def no_such_host(tmp_path):
    return {"port": 1, "host": "a..b"}


def password_missing(tmp_path):
    return {"port": 1, "user": "u", "password_file": str(tmp_path / "missing")}


def password_empty(tmp_path):
    (tmp_path / "empty").write_text("\n")
    return {"port": 1, "user": "u", "password_file": str(tmp_path / "empty")}


def password_of_bytes(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    return {"port": 1, "user": "u", "password_file": str(tmp_path / "bytes")}


def authorities_missing(tmp_path):
    return {"port": 1, "tls": True, "ca_file": str(tmp_path / "missing")}


def authorities_of_noise(tmp_path):
    (tmp_path / "noise").write_text("noise")
    return {"port": 1, "tls": True, "ca_file": str(tmp_path / "noise")}


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        (no_broker, SourceState.DOWN, "unreachable"),
        (no_such_host, SourceState.DOWN, "unreachable"),
        (password_missing, SourceState.DENIED, "secret_unreadable"),
        (password_empty, SourceState.DENIED, "secret_unreadable"),
        (password_of_bytes, SourceState.DENIED, "secret_unreadable"),
        (authorities_missing, SourceState.DENIED, "ca_file"),
        (authorities_of_noise, SourceState.DENIED, "ca_file"),
    ],
)
def test_what_is_wrong_at_the_start(tmp_path, caplog, fault, state, reason):
    caplog.set_level(logging.WARNING)
    keys = fault(tmp_path)
    error = failure(keys.pop("port"), **keys)
    assert (error.state, error.reason) == (state, reason)
    assert state is SourceState.DOWN or error.mend
    assert caplog.records == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="no MQTT"),
        pytest.param(b"\x20\x03\x00\x84\x00", id="MQTT 5 refused"),
        pytest.param(b"\x20\x02\x00\x01", id="MQTT 5 refused by a broker of 3.1.1"),
        pytest.param(b"", id="hangs up"),
        pytest.param("reset", id="resets the connection"),
        pytest.param(None, id="says nothing"),
    ],
)
def test_what_is_no_broker_is_told_in_time_and_let_go_of(answer, caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if answer == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif answer is None:
                    connection.recv(1000)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        begun = time.monotonic()
        error = failure(server.getsockname()[1])
        assert error.state is SourceState.DOWN
        assert time.monotonic() - begun < (5 if answer is None else 2)
        thread.join()
    assert caplog.records == [], "what is wrong is told once, by the error"
