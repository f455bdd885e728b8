"""The collector of dcgm-exporter pages, over real HTTP on the loopback."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from tests.collectors.power.clocks import StepClock
from tests.support.dcgm_exporter import A30_MIG, H100, FakeExporter, serve, speak
from tests.support.tools import free_port, run, tool

from jouled.api import HasParts
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled_collectors.power.dcgm import DcgmCollector, DcgmSettings
from jouled_collectors.power.dcgm_page import METERS, Quantity, parse

START_NS = 1_000_000_000_000
ENERGY_0, ENERGY_1 = 455_287_014_021, 131_858_316_007
ENERGY, POWER = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_POWER_USAGE"
PAGE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeExporter]:
    with serve() as running:
        yield running


@pytest.fixture
def exporter(server: FakeExporter) -> FakeExporter:
    server.body, server.status, server.delay_seconds = H100, 200, 0.0
    server.paths.clear()
    return server


@pytest.fixture
def clock() -> StepClock:
    return StepClock(START_NS)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tls") / "exporter.pem"
    made = run(
        [
            tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=exporter", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout", file,
            "-out", f"{file}.crt",
        ]
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


def opened(url: str, clock: StepClock, **others):
    return DcgmCollector().open(msgspec.convert({"url": url, **others}, DcgmSettings), clock)


def meters(readings):
    return {one.device: one for one in readings if not isinstance(one, DeviceStatus)}


def failure(url: str, **others) -> SourceError:
    with pytest.raises(SourceError) as caught:
        opened(url, StepClock(START_NS), **others)
    return caught.value


def row(name: str, value: object, gpu: object = 0, **labels: str) -> str:
    shown = {"gpu": str(gpu), "UUID": f"GPU-{gpu}", **labels}
    return name + "{" + ",".join(f'{key}="{text}"' for key, text in shown.items()) + f"}} {value}\n"


def page(*rows: str) -> bytes:
    return "".join(rows).encode()


class TestDevices:
    def test_a_gpu_says_who_it_is(self, exporter: FakeExporter, clock: StepClock) -> None:
        first, second = opened(exporter.url, clock, idle_watts=60.0, uplift_watts=30).devices
        assert first == Device(
            name="dcgm-gpu0",
            kind=DeviceKind.GPU,
            vendor="nvidia",
            product="NVIDIA H100 80GB HBM3",
            uuid="GPU-6b1d2f0e-1111-4a3c-9d27-0c5e8a7b1f00",
            pci_bus_id="00000000:18:00.0",
            index=0,
            source="dcgm",
            indirect=True,
            method="dcgm_energy",
            quality=Quality.MEASURED,
            idle_watts=60.0,
            uplift_watts=30.0,
            max_watts=700.0,
        )
        assert (second.name, second.index) == ("dcgm-gpu1", 1)

    def test_a_limit_that_dcgm_leaves_blank_is_absent(self, exporter: FakeExporter, clock: StepClock) -> None:
        assert opened(exporter.url, clock).devices[1].max_watts is None

    def test_the_enforced_limit_wins(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(
            row(POWER, 80), row("DCGM_FI_DEV_POWER_MGMT_LIMIT", 700), row("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", 400)
        )
        source = opened(exporter.url, clock)
        assert source.devices[0].max_watts == 400.0
        status = source.read()[-1]
        assert isinstance(status, DeviceStatus)
        assert status.power_limit_watts == 400.0

    def test_the_status_tells_limit_and_driver(self, exporter: FakeExporter, clock: StepClock) -> None:
        status = opened(exporter.url, clock).read()[1]
        assert status == DeviceStatus(device="dcgm-gpu0", t_ns=START_NS, power_limit_watts=700.0, driver="550.90.07")

    def test_descriptions_are_unescaped_and_bounded(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(row(POWER, 80, modelName='\x1bA\\"B\\\\C' + "x" * 500))
        product = opened(exporter.url, clock).devices[0].product
        assert product.startswith('A"B\\Cxxx')
        assert len(product) == 128

    def test_an_older_exporter_writes_uuid_small(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = (POWER + '{gpu="3",uuid="GPU-abc",device="nvidia3"} 55.5\n').encode()
        device = opened(exporter.url, clock).devices[0]
        assert (device.name, device.uuid) == ("dcgm-gpu3", "GPU-abc")


class TestReadings:
    def test_the_energy_counter_comes_first(self, exporter: FakeExporter, clock: StepClock) -> None:
        assert meters(opened(exporter.url, clock).read()) == {
            "dcgm-gpu0": EnergyReading("dcgm-gpu0", START_NS, ENERGY_0 * 1000),
            "dcgm-gpu1": EnergyReading("dcgm-gpu1", START_NS, ENERGY_1 * 1000),
        }

    def test_it_is_stamped_in_the_middle_of_asking(self, exporter: FakeExporter) -> None:
        clock = StepClock(START_NS, step_ns=1_000_000)
        source = opened(exporter.url, clock)
        begun_ns = clock.time_ns
        assert meters(source.read())["dcgm-gpu0"].t_ns == begun_ns + 500_000

    @pytest.mark.parametrize(
        ("name", "method"),
        [
            (POWER, "dcgm_power"),
            ("DCGM_FI_DEV_BOARD_POWER_WATTS", "dcgm_power"),
            ("DCGM_FI_DEV_POWER_USAGE_INSTANT", "dcgm_power_instant"),
            ("DCGM_FI_DEV_BOARD_POWER_RAW_WATTS", "dcgm_power_instant"),
        ],
    )
    def test_watts_by_old_and_new_names(self, exporter: FakeExporter, clock: StepClock, name: str, method: str) -> None:
        exporter.body = page(row(name, "212.5"))
        source = opened(exporter.url, clock)
        assert source.devices[0].method == method
        assert source.devices[0].quality is Quality.DERIVED
        assert meters(source.read()) == {"dcgm-gpu0": PowerReading("dcgm-gpu0", START_NS, 212.5)}

    def test_old_and_new_name_on_one_page_are_one_meter(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(row(POWER, 200), row("DCGM_FI_DEV_BOARD_POWER_WATTS", 200))
        assert meters(opened(exporter.url, clock).read())["dcgm-gpu0"].watts == 200.0

    def test_pods_that_share_a_gpu_repeat_its_meter(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(*(row(POWER, "612.482", pod=f"pod-{number}") for number in range(40)))
        assert meters(opened(exporter.url, clock).read())["dcgm-gpu0"].watts == pytest.approx(612.482)

    def test_mig_instances_repeat_the_meter_of_their_gpu(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = A30_MIG
        assert meters(opened(exporter.url, clock).read()) == {
            "dcgm-gpu0": EnergyReading("dcgm-gpu0", START_NS, 257_863_589_000)
        }

    def test_mig_watts_read_at_slightly_other_times(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = A30_MIG.replace(ENERGY.encode(), b"OTHER")
        assert meters(opened(exporter.url, clock).read())["dcgm-gpu0"].watts == pytest.approx(52.7)

    def test_the_row_of_the_whole_gpu_wins_over_its_instances(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(
            row(POWER, 10, GPU_I_ID="1", GPU_I_PROFILE="3g.40gb"), row(POWER, 300), row(POWER, 20, GPU_I_ID="2")
        )
        assert meters(opened(exporter.url, clock).read())["dcgm-gpu0"].watts == 300.0

    def test_whole_millijoules_are_exact(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(row(ENERGY, 2**53 + 1))
        assert meters(opened(exporter.url, clock).read())["dcgm-gpu0"].microjoules == (2**53 + 1) * 1000

    @pytest.mark.parametrize(
        "none",
        [
            "NaN",
            "+Inf",
            "-1",
            "9223372036854775792",
            "9223372036854775794",
            "18446744073709551615",
            "1e300",
            "9" * 5000,
        ],
    )
    def test_an_energy_that_means_none_is_passed_over(
        self, exporter: FakeExporter, clock: StepClock, none: str
    ) -> None:
        exporter.body = page(row(ENERGY, none), row(POWER, 80))
        assert opened(exporter.url, clock).devices[0].method == "dcgm_power"

    @pytest.mark.parametrize("none", ["NaN", "-5", "0", "0.000000", "140737488355328", "4294967.295", "1e999"])
    def test_watts_that_mean_none_are_passed_over(self, exporter: FakeExporter, clock: StepClock, none: str) -> None:
        exporter.body = page(row(POWER, none), row(POWER, 80, gpu=1))
        assert list(meters(opened(exporter.url, clock).read())) == ["dcgm-gpu1"]

    def test_the_page_of_a_real_client_library(self, exporter: FakeExporter, clock: StepClock) -> None:
        registry = CollectorRegistry()
        gauge = Gauge(POWER, "Power draw (in W).", ["gpu", "UUID", "modelName", "pod"], registry=registry)
        gauge.labels("0", "GPU-x", 'odd "name" \\ {x="y"} 7', "a\nb,c}").set(123.25)
        exporter.body = generate_latest(registry)
        source = opened(exporter.url, clock)
        assert source.devices[0].product == 'odd "name" \\ {x="y"} 7'
        assert meters(source.read())["dcgm-gpu0"].watts == 123.25


class TestCounterBetweenIntervals:
    """The exporter takes new values every 30 s: between them the page says nothing new."""

    def test_a_counter_is_told_when_it_moved(self, exporter: FakeExporter, clock: StepClock) -> None:
        source = opened(exporter.url, clock)
        assert len(meters(source.read())) == 2
        clock.advance(5)
        assert source.read() == []
        exporter.replace(str(ENERGY_0), str(ENERGY_0 + 3_000_000))
        clock.advance(5)
        assert meters(source.read()) == {
            "dcgm-gpu0": EnergyReading("dcgm-gpu0", START_NS + 10_000_000_000, (ENERGY_0 + 3_000_000) * 1000)
        }

    def test_a_decrease_is_passed_on(self, exporter: FakeExporter, clock: StepClock) -> None:
        source = opened(exporter.url, clock)
        source.read()
        exporter.replace(str(ENERGY_0), "17")
        assert meters(source.read())["dcgm-gpu0"].microjoules == 17_000

    def test_watts_are_told_at_each_read(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(row(POWER, 80))
        source = opened(exporter.url, clock)
        for _ in range(3):
            clock.advance(5)
            assert meters(source.read())["dcgm-gpu0"].t_ns == clock.time_ns


class TestFaultsOfOneGpu:
    def test_a_page_that_stands_still_is_told_and_nothing_more_is_read(
        self, exporter: FakeExporter, clock: StepClock
    ) -> None:
        source = opened(exporter.url, clock)
        source.read()
        clock.advance(179)
        assert source.read() == []
        assert source.parts == {"gpu0": None, "gpu1": None}
        for _ in range(100):
            clock.advance(30)
            assert source.read() == []
        told = source.parts["gpu0"]
        assert (told.state, told.reason) == (SourceState.DOWN, "frozen")
        assert "dcgm-exporter" in told.mend
        exporter.replace(str(ENERGY_0), str(ENERGY_0 + 1))
        assert list(meters(source.read())) == ["dcgm-gpu0"]
        assert source.parts["gpu0"] is None
        assert source.parts["gpu1"] is not None

    def test_a_counter_that_stands_still_beside_moving_watts_is_replaced(
        self, exporter: FakeExporter, clock: StepClock
    ) -> None:
        source = opened(exporter.url, clock)
        for second in range(0, 181, 60):
            exporter.body = H100.replace(b"612.482", b"600.%d" % second)
            readings = meters(source.read())
            clock.advance(60)
        assert readings == {"dcgm-gpu0": PowerReading("dcgm-gpu0", START_NS + 180_000_000_000, 600.18)}
        assert source.devices[0].method == "dcgm_power"
        exporter.replace(str(ENERGY_0), str(ENERGY_0 + 1))
        assert isinstance(meters(source.read())["dcgm-gpu0"], EnergyReading)
        assert source.devices[0].method == "dcgm_energy"

    def test_watts_alone_may_stay_for_ten_minutes(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(row(POWER, 80))
        source = opened(exporter.url, clock)
        source.read()
        clock.advance(599)
        assert meters(source.read())
        clock.advance(1)
        assert source.read() == []
        assert source.parts["gpu0"].reason == "frozen"

    def test_a_gpu_that_leaves_the_page_is_told_and_comes_back(self, exporter: FakeExporter, clock: StepClock) -> None:
        source = opened(exporter.url, clock)
        source.read()
        exporter.body = b"\n".join(line for line in H100.split(b"\n") if b'gpu="1"' not in line)
        for _ in range(3):
            clock.advance(5)
            source.read()
        told = source.parts["gpu1"]
        assert (told.state, told.reason) == (SourceState.DOWN, "gpu_missing")
        assert source.parts["gpu0"] is None
        assert len(source.devices) == 2
        exporter.body = H100.replace(str(ENERGY_1).encode(), b"131858316999")
        clock.advance(5)
        assert meters(source.read())["dcgm-gpu1"].microjoules == 131_858_316_999_000
        assert source.parts == {"gpu0": None, "gpu1": None}

    def test_a_field_that_blinks_does_not_change_the_meter(self, exporter: FakeExporter, clock: StepClock) -> None:
        source = opened(exporter.url, clock)
        source.read()
        exporter.body = H100.replace(ENERGY.encode(), b"OTHER")
        for _ in range(2):
            assert source.read() == []
            assert source.devices[0].method == "dcgm_energy"
        assert isinstance(meters(source.read())["dcgm-gpu0"], PowerReading)
        assert source.devices[0].method == "dcgm_power"
        exporter.body = H100.replace(str(ENERGY_0).encode(), b"455287999999")
        assert isinstance(meters(source.read())["dcgm-gpu0"], EnergyReading)

    def test_parts_are_offered(self, exporter: FakeExporter, clock: StepClock) -> None:
        assert isinstance(opened(exporter.url, clock), HasParts)

    def test_a_gpu_with_a_limit_alone_is_no_device(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = page(row("DCGM_FI_DEV_POWER_MGMT_LIMIT", 300, gpu=1), row(POWER, 80))
        source = opened(exporter.url, clock)
        assert [device.name for device in source.devices] == ["dcgm-gpu0"]
        assert source.parts["gpu1"].reason == "gpu_missing"


class TestSeveralHosts:
    TWO = page(row(POWER, 100, Hostname="a"), row(POWER, 200, Hostname="b"))

    def test_they_are_not_mixed(self, exporter: FakeExporter) -> None:
        exporter.body = self.TWO
        told = failure(exporter.url)
        assert (told.state, told.reason) == (SourceState.ABSENT, "several_hosts")
        assert "a, b" in told.message
        assert "`hostname`" in told.mend

    def test_without_host_labels_the_uuids_tell(self, exporter: FakeExporter) -> None:
        exporter.body = page(row(POWER, 100, UUID="GPU-a"), row(POWER, 200, UUID="GPU-b"))
        assert failure(exporter.url).reason == "several_hosts"

    def test_one_is_chosen(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = self.TWO
        assert meters(opened(exporter.url, clock, hostname="b").read())["dcgm-gpu0"].watts == 200.0

    def test_none_has_that_name(self, exporter: FakeExporter) -> None:
        exporter.body = self.TWO
        told = failure(exporter.url, hostname="c")
        assert told.reason == "no_meter"
        assert "`hostname`" in told.mend


class TestFaultsOfThePage:
    @pytest.mark.parametrize(
        ("body", "state", "reason"),
        [
            (b"", SourceState.DOWN, "no_rows"),
            (b"<html>It works!</html>", SourceState.DOWN, "no_rows"),
            (b'vllm:num_requests_running{model="m"} 1\n', SourceState.DOWN, "no_rows"),
            (bytes(range(256)) * 40, SourceState.DOWN, "no_rows"),
            (page(row("DCGM_FI_DEV_GPU_TEMP", 40)), SourceState.ABSENT, "no_meter"),
            (page(row(POWER, "NaN")), SourceState.ABSENT, "no_meter"),
            (page(row(POWER, 80, gpu="x")), SourceState.ABSENT, "no_meter"),
            (page(row(POWER, 80, gpu="99999")), SourceState.ABSENT, "no_meter"),
            (b"DCGM_FI_DEV_POWER_USAGE 80\n", SourceState.ABSENT, "no_meter"),
            (b'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 1_0\n', SourceState.ABSENT, "no_meter"),
            (b'DCGM_FI_DEV_POWER_USAGE{gpu="0', SourceState.ABSENT, "no_meter"),
        ],
    )
    def test_garbage(self, exporter: FakeExporter, body: bytes, state: SourceState, reason: str) -> None:
        exporter.body = body
        told = failure(exporter.url)
        assert (told.state, told.reason) == (state, reason)
        assert told.mend

    @pytest.mark.parametrize(
        ("status", "state", "reason"),
        [
            (401, SourceState.DENIED, "unauthorized"),
            (403, SourceState.DENIED, "unauthorized"),
            (404, SourceState.DOWN, "not_found"),
            (302, SourceState.DOWN, "http_status"),
            (500, SourceState.DOWN, "http_status"),
            (503, SourceState.DOWN, "http_status"),
        ],
    )
    def test_an_answer_that_is_no_page(
        self, exporter: FakeExporter, status: int, state: SourceState, reason: str
    ) -> None:
        exporter.status = status
        told = failure(exporter.url)
        assert (told.state, told.reason) == (state, reason)
        assert "[power.dcgm]" in told.mend

    def test_nobody_listens(self) -> None:
        told = failure(f"http://127.0.0.1:{free_port()}/metrics")
        assert (told.state, told.reason) == (SourceState.DOWN, "unreachable")
        assert "refused" in told.message

    def test_an_exporter_that_ends_is_told_and_comes_back(self, clock: StepClock) -> None:
        with serve() as first:
            source = opened(first.url, clock)
            source.read()
        with pytest.raises(SourceError) as caught:
            source.read()
        assert caught.value.reason == "unreachable"

    @pytest.mark.parametrize(
        ("pieces", "pause_seconds"),
        [
            ((), 0.0),
            ((b"HTTP/1.1 200 OK\r\n",), 0.0),
            ((PAGE_HEAD + H100,), 0.0),
            ((PAGE_HEAD, *(b"x" for _ in range(1000))), 0.05),
            ((b"HTTP/1.1 200 OK\r\n", *(b"X: y\r\n" for _ in range(50))), 0.05),
            (tuple(b"H" for _ in range(1000)), 0.05),
        ],
        ids=["silent", "after the status", "within the body", "drip of a body", "drip of headers", "drip of a status"],
    )
    def test_a_hanging_exporter_takes_no_longer_than_the_time_limit(
        self, pieces: tuple[bytes, ...], pause_seconds: float
    ) -> None:
        with speak(pieces, pause_seconds=pause_seconds, stays=True) as url:
            begun = time.monotonic()
            told = failure(url, timeout_seconds=0.3)
            assert time.monotonic() - begun < 1.0
        assert (told.state, told.reason) == (SourceState.DOWN, "timeout")
        assert "0.3 s" in told.message

    @pytest.mark.parametrize(
        "pieces",
        [
            (b"SSH-2.0-OpenSSH_9.2\r\n",),
            (PAGE_HEAD.replace(b"1000000", b"10000") + b"short",),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
            (b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(200)) + b"\r\n",),
            (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",),
        ],
        ids=["no http", "cut short", "broken chunks", "many headers", "long header"],
    )
    def test_no_http_answer(self, pieces: tuple[bytes, ...]) -> None:
        with speak(pieces) as url:
            told = failure(url, timeout_seconds=2)
        assert told.state is SourceState.DOWN
        assert told.reason in {"bad_answer", "unreachable"}

    def test_a_chunked_page_is_read(self, clock: StepClock) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with speak([head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(H100), H100)]) as url:
            assert len(opened(url, clock).devices) == 2

    def test_a_page_of_5_megabytes_is_read(self, exporter: FakeExporter, clock: StepClock) -> None:
        exporter.body = H100 + b"".join(row(f"DCGM_FI_DEV_{n}", n).encode() for n in range(120_000))
        assert len(exporter.body) > 5_000_000
        begun = time.monotonic()
        source = opened(exporter.url, clock)
        assert time.monotonic() - begun < 2.0
        assert len(source.devices) == 2

    def test_a_page_without_an_end_is_refused(self) -> None:
        piece = b"#" + b"x" * 1_000_000 + b"\n"
        with speak(itertools.chain([b"HTTP/1.0 200 OK\r\n\r\n"], itertools.repeat(piece))) as url:
            told = failure(url)
        assert (told.state, told.reason) == (SourceState.DOWN, "page_too_large")


class TestCredentials:
    def test_basic_authentication(self, exporter: FakeExporter, clock: StepClock, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("s3cret\n")
        opened(exporter.url, clock, user="jouled", password_file=str(tmp_path / "password"))
        assert exporter.authorization == "Basic am91bGVkOnMzY3JldA=="

    def test_a_token(self, exporter: FakeExporter, clock: StepClock, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("abc.def\n")
        opened(exporter.url, clock, token_file=str(tmp_path / "token"))
        assert exporter.authorization == "Bearer abc.def"

    def test_none(self, exporter: FakeExporter, clock: StepClock) -> None:
        opened(exporter.url, clock)
        assert exporter.authorization is None

    @pytest.mark.parametrize(
        "settings_of_it", [{"token_file": "/nowhere/token"}, {"user": "u", "password_file": "/nowhere/token"}]
    )
    def test_an_unreadable_secret_is_denied_with_its_path(
        self, exporter: FakeExporter, settings_of_it: dict[str, str]
    ) -> None:
        told = failure(exporter.url, **settings_of_it)
        assert (told.state, told.reason) == (SourceState.DENIED, "secret_unreadable")
        assert "/nowhere/token" in told.message
        assert "/nowhere/token" in told.mend

    def test_a_user_without_a_password(self, exporter: FakeExporter) -> None:
        told = failure(exporter.url, user="u")
        assert (told.state, told.reason) == (SourceState.DENIED, "secret_unreadable")
        assert "password_file" in told.message

    @pytest.mark.parametrize("content", [b"hush\nX-Evil: 1", b"", b"\n", b"hush\xff"])
    def test_a_secret_that_is_no_line_is_refused_and_not_shown(
        self, exporter: FakeExporter, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "token").write_bytes(content)
        told = failure(exporter.url, token_file=str(tmp_path / "token"))
        assert (told.state, told.reason) == (SourceState.DENIED, "secret_unreadable")
        assert "hush" not in f"{told.message} {told.mend}"

    def test_secrets_stand_in_no_message(self, exporter: FakeExporter, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("hush")
        for status in (401, 500):
            exporter.status = status
            told = failure(exporter.url + "?key=hush", token_file=str(tmp_path / "token"))
            assert "hush" not in f"{told.message} {told.mend}"


class TestTls:
    def test_a_trusted_exporter(self, certificate: Path, clock: StepClock) -> None:
        with serve(certificate) as exporter:
            assert len(opened(exporter.url, clock, ca_file=f"{certificate}.crt").read()) == 4

    def test_a_foreign_certificate_is_refused(self, certificate: Path) -> None:
        with serve(certificate) as exporter:
            told = failure(exporter.url)
        assert (told.state, told.reason) == (SourceState.DOWN, "tls")
        assert "ca_file" in told.mend

    def test_no_tls_on_the_other_side(self, exporter: FakeExporter) -> None:
        assert failure(exporter.url.replace("http:", "https:")).reason == "tls"

    @pytest.mark.parametrize("name", ["missing.pem", "empty.pem"])
    def test_certificates_that_cannot_be_used(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty.pem").write_text("")
        told = failure("https://127.0.0.1:1/metrics", ca_file=str(tmp_path / name))
        assert (told.state, told.reason) == (SourceState.DENIED, "ca_unreadable")
        assert name in told.message


class TestSettings:
    def test_the_collector_reads_in_a_thread_and_must_be_told_where(self) -> None:
        assert (DcgmCollector.name, DcgmCollector.isolation) == ("dcgm", "thread")
        assert DcgmCollector.settings_type is DcgmSettings
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({}, DcgmSettings)

    @pytest.mark.parametrize("wrong", [{"timeout_seconds": 0}, {"timeout_seconds": 60}, {"urls": "x"}, {"url": 5}])
    def test_wrong_settings_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"url": "http://127.0.0.1:9400", **wrong}, DcgmSettings)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "9400",
            "127.0.0.1:9400",
            "ftp://127.0.0.1/",
            "http://",
            "http://u:hush@h/",
            "http://h:99999/",
            "http://[::1",
        ],
    )
    def test_an_address_that_cannot_be_asked(self, url: str) -> None:
        told = failure(url)
        assert (told.state, told.reason) == (SourceState.ABSENT, "bad_url")
        assert "hush" not in told.message

    def test_the_path_is_metrics_unless_told(self, exporter: FakeExporter, clock: StepClock) -> None:
        base = exporter.url.removesuffix("/metrics")
        for path in ("", "/dcgm?x=1"):
            opened(base + path, clock)
        assert exporter.paths == ["/metrics", "/dcgm?x=1"]

    def test_the_interval(self, exporter: FakeExporter, clock: StepClock) -> None:
        assert opened(exporter.url, clock).interval_seconds == 5.0
        assert opened(exporter.url, clock, interval_seconds=1).interval_seconds == 1.0

    def test_a_configured_proxy_is_not_asked(
        self, exporter: FakeExporter, clock: StepClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert opened(exporter.url, clock).devices


LABELS = st.dictionaries(
    st.sampled_from(["gpu", "UUID", "uuid", "GPU_I_ID", "Hostname", "modelName", "x"]),
    st.one_of(st.sampled_from(["0", "1", "GPU-a", ""]), st.text(max_size=8)),
)
NUMBERS = st.one_of(
    st.floats().map(str),
    st.integers().map(str),
    st.text(max_size=6),
    st.sampled_from(["9" * 5000, "1_0", "٣", "..", "+"]),
)
ROWS = st.builds(
    lambda name, labels, value: name + "{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "} " + value,
    st.sampled_from([ENERGY, POWER, "DCGM_FI_DEV_POWER_MGMT_LIMIT", "DCGM_FI_DEV_GPU_TEMP"]),
    LABELS,
    NUMBERS,
)


class TestAnyBytes:
    def check(self, body: bytes) -> None:
        found = parse(body)
        assert 0 <= found.unreadable <= found.rows
        for gpu in found.gpus.values():
            assert 0 <= gpu.index < 1000
            for quantity, value in gpu.values.items():
                if quantity in METERS and quantity is not Quantity.ENERGY:
                    assert 0 < value <= 1e6
                assert 0 <= round(value) * 1000 < 2**63

    @given(st.binary(max_size=400))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes(self, body: bytes) -> None:
        self.check(body)
        self.check(POWER.encode() + b"{" + body)

    @given(st.lists(ROWS, max_size=12))
    @settings(max_examples=200, deadline=None)
    def test_any_rows(self, rows: list[str]) -> None:
        self.check("\n".join(rows).encode(errors="replace"))

    @given(st.integers(0, len(H100) - 1), st.binary(max_size=4), st.integers(0, 40))
    @settings(max_examples=200, deadline=None)
    def test_a_damaged_page(self, place: int, damage: bytes, cut: int) -> None:
        self.check(H100[:place] + damage + H100[place + cut :])

    @pytest.mark.parametrize(
        "line", ['{gpu="' + '\\"' * 400_000, "{" + 'a="b",' * 200_000, "{" * 1_000_000, '{"' * 500_000]
    )
    def test_a_hostile_line_takes_no_time(self, line: str) -> None:
        begun = time.monotonic()
        assert parse((POWER + line).encode()).unreadable == 1
        assert time.monotonic() - begun < 1.0
