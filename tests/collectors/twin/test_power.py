"""The twin as a power source, over a real connection."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled_collectors.twin.load import Load
from jouled_collectors.twin.node import Node
from jouled_collectors.twin.power import TwinCollector, TwinSettings

SECOND = 1_000_000_000


class Clock:
    """A clock that goes on by a millisecond whenever it is asked."""

    def __init__(self):
        self.ns = 1_700_000_000 * SECOND

    def now_ns(self):
        self.ns += 1_000_000
        return self.ns


class FakeTwin(ThreadingHTTPServer):
    """Answers as the twin does, about a node that stands at three seconds; `answers` override by path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        node = Node(1, Load(), 0)
        node.advance(3 * SECOND)
        self.node = node
        self.connections = 0
        self.answers = {
            "/node": msgspec.json.encode({"devices": [node.describe(name, tell_idle=True) for name in node.devices]}),
            "/devices": msgspec.json.encode(
                {"t_ns": 0, "readings": {name: node.shown(name, node.now_ns) for name in node.devices}}
            ),
        }

    def get_request(self):
        self.connections += 1
        return super().get_request()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.server.answers.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def twin():
    with FakeTwin() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source(twin, clock):
    opened = TwinCollector().open(TwinSettings(url=url(twin)), clock)
    yield opened
    opened.close()


def test_its_devices(source, twin):
    assert source.interval_seconds == 0.1
    devices = {device.name: device for device in source.devices}
    assert len(devices) == 14
    gpu = devices["gpu0"]
    assert (gpu.kind, gpu.source, gpu.max_watts) == (DeviceKind.GPU, "twin", 700.0)
    assert gpu.idle_watts == pytest.approx(twin.node.devices["gpu0"].part.idle_watts, rel=0.051)
    assert devices["cpu1"].wrap_microjoules == 262_143_328_850
    assert devices["outlet_b"].parent == "feed"


def test_idle_power_is_kept_back_on_demand(twin, clock):
    source = TwinCollector().open(TwinSettings(url=url(twin), tell_idle=False), clock)
    assert {(d.idle_watts, d.uplift_watts) for d in source.devices} == {(None, None)}
    source.close()


def test_readings_are_stamped_at_the_middle_of_the_read(source, twin, clock):
    before = clock.ns
    readings = source.read()
    energies = [reading for reading in readings if isinstance(reading, EnergyReading)]
    assert {reading.device for reading in energies} == set(twin.node.devices) - {"outlet_a", "outlet_b"}
    assert {reading.t_ns for reading in energies} == {before + 1_500_000}
    by_name = {reading.device: reading for reading in energies}
    assert by_name["gpu3"].microjoules == twin.node.shown("gpu3", twin.node.now_ns).microjoules
    assert by_name["gpu3"].quality is Quality.MEASURED


def test_outlets_are_told_once_a_second_half_a_second_late(source, clock):
    first = [reading for reading in source.read() if isinstance(reading, PowerReading)]
    assert {reading.device for reading in first} == {"outlet_a", "outlet_b"}
    assert all(reading.watts > 800 for reading in first)
    assert clock.ns - SECOND < first[0].t_ns < clock.ns - SECOND // 4
    assert not [reading for reading in source.read() if isinstance(reading, PowerReading)]
    clock.ns += SECOND
    assert len([reading for reading in source.read() if isinstance(reading, PowerReading)]) == 2


def test_limits_are_told_now_and_then(source, clock):
    statuses = [reading for reading in source.read() if isinstance(reading, DeviceStatus)]
    assert {status.power_limit_watts for status in statuses} == {700.0}
    assert len(statuses) == 8
    assert not [reading for reading in source.read() if isinstance(reading, DeviceStatus)]


def test_one_connection_is_kept(source, twin):
    for _ in range(5):
        source.read()
    assert twin.connections == 1


def test_a_twin_that_is_away_is_down_with_the_command_that_mends_it(clock):
    with pytest.raises(SourceError, match=r"jouled_collectors\.twin ensure") as failure:
        TwinCollector().open(TwinSettings(url="http://127.0.0.1:1"), clock)
    assert failure.value.state is SourceState.DOWN


def test_reading_goes_on_after_a_failure(source, twin):
    good = twin.answers["/devices"]
    for bad, reason in ((b"<html>", "bad_answer"), (b'{"readings": 3}', "bad_answer"), (None, "bad_answer")):
        twin.answers["/devices"] = bad
        with pytest.raises(SourceError) as failure:
            source.read()
        assert failure.value.reason == reason
    twin.answers["/devices"] = good
    assert source.read()


def test_an_address_that_is_none_is_refused(clock):
    with pytest.raises(SourceError, match=r"power\.twin\.url"):
        TwinCollector().open(TwinSettings(url="ftp://somewhere"), clock)
