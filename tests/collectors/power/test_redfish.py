"""The Redfish collector against BMCs over TLS: an emulator with sessions and faults, and sushy-static."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from tests.collectors.power.clocks import StepClock
from tests.collectors.power.test_redfish_parse import DOCUMENTS
from tests.support import redfish_trees as trees
from tests.support.redfish import PASSWORD, SESSIONS, USER, Bmc, certificates, running
from tests.support.tools import free_port, run, tool

from jouled.api import HasParts, Reading
from jouled.app.runtime.probe import look
from jouled.core.ledger.levels import complete, levels
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.testing import hold_to_contract
from jouled_collectors.power import redfish_find, redfish_part, redfish_session, redfish_source
from jouled_collectors.power.redfish import RedfishCollector
from jouled_collectors.power.redfish_settings import RedfishSettings
from jouled_collectors.power.redfish_source import RedfishSource

ENVIRONMENT = "/redfish/v1/Chassis/1/EnvironmentMetrics"
POWER = "/redfish/v1/Chassis/1/Power"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("redfish") / "tls")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redfish_find, "COUNTER_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(redfish_part, "PHASE_SECONDS", 0.0)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    return file


class Bench:
    """Starts BMCs and opens sources that ask them; ends all of them."""

    def __init__(self, tls: Path, password_file: Path) -> None:
        self.tls = tls
        self.password_file = password_file
        self.clock = StepClock(step_ns=1_000)
        self._stack = ExitStack()

    def bmc(self, tree: trees.Tree) -> Bmc:
        return self._stack.enter_context(running(tree, self.tls))

    def settings(self, bmc: Bmc, name: str = "bmc1", **options: object) -> dict[str, object]:
        access = {"user": USER, "password_file": str(self.password_file)}
        trust = {} if {"insecure", "certificate_sha256"} & set(options) else {"ca_file": str(self.tls / "ca.crt")}
        return {"name": name, "url": bmc.url, **access, **trust, **options}

    def open(self, *bmcs: dict[str, object], **options: object) -> RedfishSource:
        config = msgspec.convert({"bmcs": bmcs, **options}, RedfishSettings)
        source = RedfishCollector().open(config, self.clock)
        assert isinstance(source, RedfishSource)
        self._stack.callback(source.close)
        return source

    def opened(self, tree: trees.Tree, **options: object) -> RedfishSource:
        return self.open(self.settings(self.bmc(tree), **options))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def bench(tls: Path, password_file: Path) -> Iterator[Bench]:
    bench = Bench(tls, password_file)
    yield bench
    bench.close()


def watts(readings: list[Reading]) -> dict[str, float]:
    return {one.device: one.watts for one in readings if isinstance(one, PowerReading)}


def described(source: RedfishSource) -> list[tuple[str, DeviceKind, str]]:
    return [(device.name, device.kind, device.method) for device in source.devices]


class TestVendors:
    def test_dell_by_its_power_control_and_not_the_enclosure(self, bench: Bench) -> None:
        source = bench.opened(trees.dell())
        assert described(source) == [("bmc1-node", DeviceKind.NODE, "redfish_power_control")]
        assert (source.devices[0].vendor, source.devices[0].product) == ("Dell Inc.", "PowerEdge XE9680")
        assert watts(source.read()) == {"bmc1-node": 812.0}

    def test_dell_supplies_come_with_the_same_request(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.dell())
        source = bench.open(bench.settings(bmc, meters=["node", "psus"]))
        source.read()
        bmc.asked.clear()
        assert watts(source.read()) == {"bmc1-node": 812.0, "bmc1-psu1": 420.0, "bmc1-psu2": 398.0}
        assert bmc.asked == {"GET /redfish/v1/Chassis/System.Embedded.1/Power": 1}

    def test_hpe_falls_back_from_metrics_without_power(self, bench: Bench) -> None:
        source = bench.opened(trees.hpe(), meters=["node", "psus"])
        assert described(source) == [
            ("bmc1-node", DeviceKind.NODE, "redfish_power_control"),
            ("bmc1-psu0", DeviceKind.PSU, "redfish_supply_input"),
            ("bmc1-psu1", DeviceKind.PSU, "redfish_supply_input"),
        ]
        assert watts(source.read()) == {"bmc1-node": 640.0, "bmc1-psu0": 330.5, "bmc1-psu1": 0.0}

    def test_supplies_of_the_old_resource_are_none_unless_all_tell(self, bench: Bench) -> None:
        tree = trees.dell()
        tree["/redfish/v1/Chassis/System.Embedded.1/Power"]["PowerSupplies"][0]["PowerInputWatts"] = None
        assert [device.name for device in bench.opened(tree, meters=["node", "psus"]).devices] == ["bmc1-node"]

    def test_supplies_are_none_unless_all_tell(self, bench: Bench) -> None:
        tree = trees.hpe()
        tree["/redfish/v1/Chassis/1/PowerSubsystem/PowerSupplies/1/Metrics"] = {"OutputPowerWatts": {"Reading": 300}}
        assert [device.name for device in bench.opened(tree, meters=["node", "psus"]).devices] == ["bmc1-node"]

    def test_supplies_stand_in_for_a_node_without_a_meter(self, bench: Bench) -> None:
        tree = trees.hpe()
        del tree["/redfish/v1/Chassis/1/Power"]
        assert watts(bench.opened(tree).read()) == {"bmc1-psu0": 330.5, "bmc1-psu1": 0.0}

    def test_lenovo_nested_power_control_is_not_added_up(self, bench: Bench) -> None:
        assert watts(bench.opened(trees.lenovo()).read()) == {"bmc1-node": 900.0}

    def test_supermicro_by_environment_metrics_in_one_request(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc))
        source.read()
        bmc.asked.clear()
        assert watts(source.read()) == {"bmc1-node": 5120.0}
        assert bmc.asked == {f"GET {ENVIRONMENT}": 1}

    def test_a_counter_that_keeps_up_is_read_instead_of_the_gauge(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redfish_find, "COUNTER_LOOK_SECONDS", 0.6)
        tree = trees.supermicro()
        began = time.monotonic()
        tree[ENVIRONMENT] = lambda: {
            "PowerWatts": {"Reading": 5000},
            "EnergyJoules": {"Reading": 1e9 + 5000 * (time.monotonic() - began)},
        }
        source = bench.opened(tree)
        assert described(source) == [("bmc1-node", DeviceKind.NODE, "redfish_environment_energy")]
        (before, after) = (source.read()[-1] for _ in range(2))
        assert isinstance(before, EnergyReading)
        assert isinstance(after, EnergyReading)
        assert 10**15 < before.microjoules < after.microjoules < 10**15 + 10**10
        assert source.devices[0].wrap_microjoules is None

    def test_a_counter_that_stands_still_is_not_taken(self, bench: Bench) -> None:
        source = bench.opened(trees.supermicro(joules=1e9))
        assert described(source) == [("bmc1-node", DeviceKind.NODE, "redfish_environment_power")]

    def test_a_counter_without_a_gauge_is_taken(self, bench: Bench) -> None:
        tree = trees.supermicro()
        tree[ENVIRONMENT] = {"EnergykWh": {"Reading": 2.5}}
        assert bench.opened(tree).read()[0].microjoules == 9_000_000_000_000

    @pytest.mark.parametrize("host_links", [{}, trees.hgx()["/redfish/v1/Chassis/DGX"]["Links"]])
    def test_the_host_of_an_hgx_without_its_baseboard(self, bench: Bench, host_links: dict[str, Any]) -> None:
        tree = trees.hgx()
        tree["/redfish/v1/Chassis/DGX"]["Links"] = host_links
        assert watts(bench.opened(tree).read()) == {"bmc1-node": 7800.0}

    def test_hgx_gpus_on_request(self, bench: Bench) -> None:
        source = bench.opened(trees.hgx(), meters=["gpus"])
        assert described(source) == [
            ("hgx-gpu1", DeviceKind.GPU, "redfish_environment_power"),
            ("hgx-gpu2", DeviceKind.GPU, "redfish_environment_power"),
        ]
        assert source.devices[0].uuid == "GPU-00000001-1111-2222-3333-444444444444", "as NVML writes it"
        assert all(device.indirect for device in source.devices)
        assert watts(source.read()) == {"hgx-gpu1": 601.0, "hgx-gpu2": 602.0}

    def test_hgx_gpus_by_one_report(self, bench: Bench) -> None:
        tree = trees.hgx(gpus=8)
        report = "/redfish/v1/TelemetryService/MetricReports/HGX_PlatformEnvironmentMetrics_0"
        bmc = bench.bmc(tree)
        source = bench.open(bench.settings(bmc, meters=["gpus"], metric_report="HGX_PlatformEnvironmentMetrics_0"))
        assert watts(source.read()) == {f"hgx-gpu{n}": 650.25 + n for n in range(1, 9)}
        assert {device.method for device in source.devices} == {"redfish_report"}
        bmc.asked.clear()
        assert source.read() == [], "the same time stamp is no new reading"
        assert bmc.asked == {f"GET {report}": 1}
        for entry in tree[report]["MetricValues"]:
            entry["Timestamp"] = "2026-06-29T08:05:20+00:00"
        assert len(source.read()) == 8

    def test_pdu_outlets_of_this_node(self, bench: Bench) -> None:
        source = bench.opened(trees.pdu(), name="pdu-a", outlets=[5, "OUTLET7"])
        assert described(source) == [
            ("pdu-a-outlet-5", DeviceKind.OUTLET, "redfish_outlet_power"),
            ("pdu-a-outlet-OUTLET7", DeviceKind.OUTLET, "redfish_outlet_power"),
        ]
        assert watts(source.read()) == {"pdu-a-outlet-5": 500.0, "pdu-a-outlet-OUTLET7": 700.0}

    def test_a_feed_is_not_whole_while_the_other_pdu_was_never_heard(self, bench: Bench) -> None:
        good, bad = bench.bmc(trees.pdu()), bench.bmc(trees.pdu())
        bad.statuses[trees.ROOT] = 503
        pdus = [bench.settings(bmc, name, outlets=[5]) for bmc, name in ((good, "a"), (bad, "b"))]
        source = bench.open(*pdus)
        assert watts(source.read()) == {"a-outlet-5": 500.0}
        (level,) = levels(source.devices)
        assert level.members == ("a-outlet-5", "b-outlet-5")
        assert complete([level], lambda name: name == "a-outlet-5") == []

    def test_outlets_of_all_sources_are_one_feed(self, bench: Bench) -> None:
        source = bench.opened(trees.pdu(), name="pdu-a", outlets=[5])
        other = Device(name="pdu-b-outlet-3", kind=DeviceKind.OUTLET, parent="feed", source="snmp_pdu")
        (level,) = levels([*source.devices, other])
        assert level.members == ("pdu-a-outlet-5", "pdu-b-outlet-3")

    @pytest.mark.parametrize(("outlet", "word"), [(99, "not there"), (12, "without a power meter")])
    def test_an_outlet_that_cannot_be_read_fails_the_whole(self, bench: Bench, outlet: int, word: str) -> None:
        with pytest.raises(SourceError, match=word) as caught:
            bench.opened(trees.pdu(), outlets=[5, outlet])
        assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "no_outlet")

    @pytest.mark.parametrize(("own_metrics", "expected"), [(True, 21_500.0), (False, float(sum(range(3000, 3006))))])
    def test_a_power_shelf(self, bench: Bench, own_metrics: bool, expected: float) -> None:
        source = bench.opened(trees.shelf(own_metrics=own_metrics), name="shelf", meters=["shelves"])
        assert [(device.name, device.kind) for device in source.devices] == [("shelf-shelf0", DeviceKind.SHELF)]
        assert watts(source.read()) == {"shelf-shelf0": expected}

    @pytest.mark.parametrize("power", [{}, {"PowerSupplies": [{"PowerInputWatts": 1}, {"PowerInputWatts": 2}]}])
    def test_a_power_shelf_that_does_not_tell(self, bench: Bench, power: dict[str, Any]) -> None:
        tree = trees.shelf(own_metrics=False)
        shelf = tree["/redfish/v1/Chassis/PowerShelf_0"]
        del shelf["PowerSubsystem"]
        shelf["Power"] = {"@odata.id": "/redfish/v1/Chassis/PowerShelf_0/Power"}
        tree["/redfish/v1/Chassis/PowerShelf_0/Power"] = power
        with pytest.raises(SourceError, match="no power meter among: shelves"):
            bench.opened(tree, meters=["shelves"])

    @pytest.mark.parametrize("tree", [trees.shelf(own_metrics=True), trees.shelf(own_metrics=False), trees.pdu()])
    def test_what_feeds_several_nodes_is_not_taken_for_one(self, bench: Bench, tree: trees.Tree) -> None:
        with pytest.raises(SourceError, match="no power meter among: node"):
            bench.opened(tree)

    @pytest.mark.parametrize(
        ("outer", "inner", "expected"), [("Enclosure", "Blade", 2400.0), ("RackMount", "Other", 9600.0)]
    )
    def test_a_blade_is_the_node_and_a_part_of_a_server_is_not(
        self, bench: Bench, outer: str, inner: str, expected: float
    ) -> None:
        assert watts(bench.opened(trees.nested(outer, inner)).read()) == {"bmc1-node": expected}

    def test_a_chassis_and_a_sensor_that_the_operator_names(self, bench: Bench) -> None:
        tree = trees.hgx()
        sensor = "/redfish/v1/Chassis/DGX/Sensors/TotalPower"
        tree[sensor] = {"Reading": 8.1, "ReadingUnits": "kW"}
        assert watts(bench.opened(tree, chassis="HGX_Chassis_0").read()) == {"bmc1-node": 5600.0}
        assert watts(bench.opened(tree, node_sensor=sensor).read()) == {"bmc1-node": 8100.0}

    def test_readings_are_stamped_in_the_middle_of_their_request(self, bench: Bench) -> None:
        source = bench.opened(trees.supermicro())
        source.read()
        bench.clock.step_ns = 1_000_000
        before_ns = bench.clock.time_ns
        (reading,) = source.read()
        assert before_ns < reading.t_ns < bench.clock.time_ns
        assert (reading.t_ns - before_ns) % 1_000_000 == 500_000


class TestSession:
    def test_one_login_for_many_reads_and_a_logout_at_the_end(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc))
        for _ in range(3):
            assert source.read()
        assert (bmc.logins, bmc.logouts, len(bmc.tokens)) == (1, 0, 1)
        source.close()
        assert (bmc.logouts, bmc.tokens) == (1, {})
        assert not any("Authorization" in headers for headers in bmc.seen_headers)

    @pytest.mark.parametrize("breaks_off", [False, True])
    def test_an_ended_session_is_made_again_within_the_read(self, bench: Bench, breaks_off: bool) -> None:
        bmc = bench.bmc(trees.supermicro())
        bmc.breaks_off = breaks_off
        source = bench.open(bench.settings(bmc))
        bmc.forget_sessions()
        source.read()
        assert bmc.logins == 2
        assert source.parts == {"bmc1": None}

    def test_a_bmc_without_sessions_gets_the_password_with_each_request(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        bmc.has_sessions = False
        assert watts(bench.open(bench.settings(bmc)).read()) == {"bmc1-node": 5120.0}

    def test_nobody_logs_in_where_no_user_is_set(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        bmc.wants_login = False
        assert watts(bench.open(bench.settings(bmc, user="", password_file="")).read()) == {"bmc1-node": 5120.0}
        assert bmc.asked[f"POST {SESSIONS}"] == 0

    def test_sessions_are_made_where_the_service_root_says(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        bmc.sessions_path = "/redfish/v1/Elsewhere"
        bmc.tree[trees.ROOT]["Links"]["Sessions"]["@odata.id"] = bmc.sessions_path
        assert watts(bench.open(bench.settings(bmc)).read()) == {"bmc1-node": 5120.0}

    def test_a_bmc_that_hides_its_service_root(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        bmc.root_is_open = False
        assert watts(bench.open(bench.settings(bmc)).read()) == {"bmc1-node": 5120.0}

    def test_a_changed_password_is_taken_at_the_next_login(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        bench.password_file.write_text("old\n")
        with pytest.raises(SourceError):
            bench.open(bench.settings(bmc))
        bench.password_file.write_text(PASSWORD)
        assert bench.open(bench.settings(bmc)).read()

    def test_a_redirect_inside_the_bmc_is_followed_once(self, bench: Bench) -> None:
        tree = trees.supermicro()
        document = tree[ENVIRONMENT]
        tree[ENVIRONMENT] = lambda: web.Response(status=308, headers={"Location": f"{ENVIRONMENT}/new"})
        tree[f"{ENVIRONMENT}/new"] = document
        assert watts(bench.opened(tree).read()) == {"bmc1-node": 5120.0}

    def test_a_redirect_to_another_host_gets_no_token(self, bench: Bench) -> None:
        other = bench.bmc(trees.supermicro())
        tree = trees.supermicro()
        tree["/redfish/v1/Chassis"] = lambda: web.Response(
            status=302, headers={"Location": f"{other.url}/redfish/v1/Chassis"}
        )
        bmc = bench.bmc(tree)
        with pytest.raises(SourceError) as caught:
            bench.open(bench.settings(bmc, node_sensor="/redfish/v1/Chassis"))
        assert caught.value.reason == "no_meter"
        assert not other.seen_headers

    def test_the_pinned_certificate_is_enough(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        shown = run(
            [tool("openssl"), "x509", "-in", bench.tls / "server.crt", "-noout", "-fingerprint", "-sha256"]
        ).stdout
        pin = shown.strip().partition("=")[2]
        assert bench.open(bench.settings(bmc, certificate_sha256=pin)).read()

    def test_any_certificate_on_request(self, bench: Bench) -> None:
        assert bench.open(bench.settings(bench.bmc(trees.supermicro()), insecure=True)).read()


def respond(body: object, *, status: int = 200, kind: str = "application/json") -> Callable[[], web.Response]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda: web.Response(body=raw, status=status, content_type=kind)


def _wrong_password(bench: Bench, _: Bmc) -> None:
    bench.password_file.write_text("wrong")


def _no_password_file(bench: Bench, _: Bmc) -> None:
    bench.password_file.unlink()


def _empty_password_file(bench: Bench, _: Bmc) -> None:
    bench.password_file.write_text("\n")


def _sessions_used_up(_: Bench, bmc: Bmc) -> None:
    bmc.login_status, bmc.login_body = 400, {"error": {"code": "Base.1.8.CreateLimitReachedForResource"}}


def _tree(path: str, answer: object) -> Callable[[Bench, Bmc], None]:
    return lambda _, bmc: bmc.tree.update({path: answer})


def _status(path: str, status: int) -> Callable[[Bench, Bmc], None]:
    return lambda _, bmc: bmc.statuses.update({path: status})


def _gone(_: Bench, bmc: Bmc) -> None:
    bmc.tree.pop(ENVIRONMENT)
    bmc.tree.pop(POWER)


def _hangs(_: Bench, bmc: Bmc) -> None:
    bmc.hangs = True


_HTML = respond(b"<html>login</html>", kind="text/html")
_DENIED, _ABSENT, _DOWN = SourceState.DENIED, SourceState.ABSENT, SourceState.DOWN
_NOTHING = {"PowerWatts": {"Reading": None}}


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "state", "reason", "mend"),
        [
            (_wrong_password, _DENIED, "unauthorized", "Check the password in"),
            (_no_password_file, _DENIED, "secret_unreadable", "chmod 0640"),
            (_empty_password_file, _DENIED, "secret_unreadable", "Write the secret"),
            (_sessions_used_up, _DOWN, "busy", "End sessions"),
            (_status(SESSIONS, 503), _DOWN, "busy", ""),
            (_status(SESSIONS, 500), _DOWN, "login_failed", ""),
            (_status("/redfish/v1/Chassis", 403), _DENIED, "unauthorized", "role ReadOnly"),
            (_status("/redfish/v1/Chassis", 503), _DOWN, "busy", ""),
            (_status(trees.ROOT, 404), _ABSENT, "not_found", ""),
            (_status("/redfish/v1/Chassis", 500), _ABSENT, "no_meter", "chassis"),
            (_gone, _ABSENT, "no_meter", "Set meters"),
            (_tree(trees.ROOT, _HTML), _DOWN, "garbage", ""),
            (_tree(trees.ROOT, respond(b"[1, 2]")), _DOWN, "garbage", ""),
            (_tree(trees.ROOT, respond(b"[" * 100_000)), _DOWN, "garbage", ""),
            (_tree(trees.ROOT, respond(b'{"Chassis"')), _DOWN, "garbage", ""),
            (_tree(trees.ROOT, respond(b" " * 5_000_000)), _DOWN, "too_large", ""),
            (_tree(trees.ROOT, lambda: web.Response(status=302, headers={"Location": "https://u:p@new.example/x?t=1"})),
             _DOWN, "redirect", 'url = "https://new.example"'),
            (_hangs, _DOWN, "timeout", "timeout_seconds"),
        ],
    )  # fmt: skip
    def test_at_the_start(
        self, bench: Bench, fault: Callable[[Bench, Bmc], None], state: SourceState, reason: str, mend: str
    ) -> None:
        bmc = bench.bmc(trees.supermicro())
        fault(bench, bmc)
        with pytest.raises(SourceError) as caught:
            bench.open(bench.settings(bmc, timeout_seconds=0.3 if fault is _hangs else 10.0))
        assert (caught.value.state, caught.value.reason) == (state, reason), caught.value
        assert mend in caught.value.mend
        assert "bmc1" in caught.value.message
        assert PASSWORD not in str(caught.value)
        assert "u:p" not in str(caught.value)

    @pytest.mark.parametrize(
        ("fault", "state", "reason"),
        [
            (_tree(ENVIRONMENT, _NOTHING), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, {"PowerWatts": {"Reading": 0}}), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, {"PowerWatts": {"Reading": 65535}}), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, {"PowerWatts": {"Reading": "N/A"}}), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, {"PowerWatts": {"Reading": 5e9}}), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, {"PowerWatts": {"Reading": 20, "ReadingUnits": "Cel"}}), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, respond(b'{"PowerWatts": {"Reading": NaN}}')), _DOWN, "no_reading"),
            (_tree(ENVIRONMENT, _HTML), _DOWN, "no_reading"),
            (_status(ENVIRONMENT, 404), _DOWN, "no_reading"),
            (_status(ENVIRONMENT, 503), _DOWN, "busy"),
            (_status(ENVIRONMENT, 401), _DENIED, "unauthorized"),
            (_hangs, _DOWN, "timeout"),
        ],
    )
    def test_while_it_is_read(
        self, bench: Bench, fault: Callable[[Bench, Bmc], None], state: SourceState, reason: str
    ) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc, timeout_seconds=1.0 if fault is _hangs else 10.0))
        source.read()
        fault(bench, bmc)
        with pytest.raises(SourceError) as caught:
            source.read()
        assert (caught.value.state, caught.value.reason) == (state, reason)
        assert source.parts["bmc1"] is caught.value
        assert PASSWORD not in str(caught.value)

    def test_nobody_there(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        bmc_settings = bench.settings(bmc) | {"url": f"https://127.0.0.1:{free_port()}"}
        with pytest.raises(SourceError, match="cannot be reached") as caught:
            bench.open(bmc_settings)
        assert (caught.value.state, caught.value.reason) == (_DOWN, "unreachable")

    def test_an_unknown_certificate_is_refused_before_the_password_is_sent(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        with pytest.raises(SourceError) as caught:
            bench.open(bench.settings(bmc) | {"ca_file": ""})
        error = caught.value
        assert (error.state, error.reason) == (_DENIED, "certificate")
        assert error.mend.startswith(f"openssl s_client -connect 127.0.0.1:{bmc.port} ")
        assert "certificate_sha256" in error.mend
        assert not bmc.seen_headers

    def test_the_command_of_the_mend_shows_what_to_pin(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        with pytest.raises(SourceError) as caught:
            bench.open(bench.settings(bmc, certificate_sha256="00" * 32))
        assert (caught.value.state, caught.value.reason) == (_DENIED, "certificate")
        assert not bmc.seen_headers
        command = caught.value.mend.partition(" shows the certificate")[0]
        pin = run(["sh", "-c", command]).stdout.strip().partition("=")[2]
        assert bench.open(bench.settings(bmc, certificate_sha256=pin)).read()

    def test_an_authority_file_that_cannot_be_used(self, bench: Bench, tmp_path: Path) -> None:
        bmc = bench.bmc(trees.supermicro())
        with pytest.raises(SourceError) as caught:
            bench.open(bench.settings(bmc) | {"ca_file": str(tmp_path / "none.pem")})
        assert (caught.value.state, caught.value.reason) == (_DENIED, "ca_file")
        assert "none.pem" in caught.value.mend

    def test_a_bmc_without_a_user_where_one_is_needed(self, bench: Bench) -> None:
        with pytest.raises(SourceError) as caught:
            bench.open(bench.settings(bench.bmc(trees.supermicro()), user="", password_file=""))
        assert caught.value.mend.startswith("Set user and password_file")

    def test_a_frozen_report_is_told(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redfish_part, "MOST_UNCHANGED", 2)
        report = "HGX_PlatformEnvironmentMetrics_0"
        source = bench.opened(trees.hgx(), meters=["gpus"], metric_report=report)
        assert len(source.read()) == 2
        with pytest.raises(SourceError) as caught:
            source.read()
        assert (caught.value.state, caught.value.reason) == (_DOWN, "frozen")

    def test_a_bug_met_at_one_bmc_is_that_ones_failure(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redfish_part, "find_meters", lambda *_: 1 / 0)
        with pytest.raises(SourceError) as caught:
            bench.opened(trees.supermicro())
        assert caught.value.reason == "crash"

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(root=DOCUMENTS, chassis=DOCUMENTS, metrics=DOCUMENTS)
    def test_any_json_in_any_place(
        self, shared: tuple[Bench, Bmc], root: dict[str, Any], chassis: dict[str, Any], metrics: dict[str, Any]
    ) -> None:
        bench, bmc = shared
        tree = trees.supermicro()
        tree[trees.ROOT] = respond({**root, "Chassis": {"@odata.id": "/redfish/v1/Chassis"}})
        tree["/redfish/v1/Chassis/1"] = respond({**chassis, **tree["/redfish/v1/Chassis/1"]})
        tree[ENVIRONMENT], tree[POWER] = respond(metrics), respond(metrics)
        bmc.tree = tree
        with suppress(SourceError):
            source = bench.open(bench.settings(bmc, meters=["node", "psus", "gpus", "shelves"], timeout_seconds=2.0))
            assert all(isinstance(one, PowerReading | EnergyReading) for one in source.read())
            source.close()


@pytest.fixture
def shared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Bmc]:
    monkeypatch.setattr(redfish_find, "COUNTER_LOOK_SECONDS", 0.0)
    return bench, bench.bmc({})


class TestParts:
    def test_one_that_hangs_is_told_and_the_others_go_on(self, bench: Bench) -> None:
        good, bad = bench.bmc(trees.supermicro()), bench.bmc(trees.dell())
        source = bench.open(bench.settings(good, "a"), bench.settings(bad, "b", timeout_seconds=1.0))
        assert isinstance(source, HasParts)
        assert watts(source.read()) == {"a-node": 5120.0, "b-node": 812.0}
        assert source.parts == {"a": None, "b": None}
        bad.hangs = True
        assert watts(source.read()) == {"a-node": 5120.0}
        error = source.parts["b"]
        assert error is not None
        assert (error.state, error.reason) == (_DOWN, "timeout")
        assert [device.name for device in source.devices] == ["a-node", "b-node"]

    def test_a_dead_one_is_left_alone_and_comes_back(self, bench: Bench) -> None:
        good, bad = bench.bmc(trees.supermicro()), bench.bmc(trees.dell())
        bad.statuses[trees.ROOT] = 503
        source = bench.open(bench.settings(good, "a"), bench.settings(bad, "b"))
        asked = bad.asked.total()
        for _ in range(3):
            assert watts(source.read()) == {"a-node": 5120.0}
        assert bad.asked.total() == asked
        bad.statuses.clear()
        bench.clock.advance(5.1)
        assert watts(source.read()) == {"a-node": 5120.0, "b-node": 812.0}
        assert source.parts == {"a": None, "b": None}
        for _ in range(2):  # after a success the waits begin anew
            bad.statuses[trees.ROOT] = bad.statuses[f"{trees.DELL}/Power"] = 503
            source.read()
            bad.statuses.clear()
            bench.clock.advance(5.1)
            assert "b-node" in watts(source.read())

    def test_waits_grow_and_are_longer_after_a_refusal(self, bench: Bench) -> None:
        good, bad = bench.bmc(trees.supermicro()), bench.bmc(trees.dell())
        bad.login_status = 401
        source = bench.open(bench.settings(good, "a"), bench.settings(bad, "b"))
        assert bad.asked[f"POST {SESSIONS}"] == 1
        for advance_seconds, logins in ((29.0, 1), (31.1, 2), (59.0, 2), (61.1, 3)):
            bench.clock.advance(advance_seconds)
            source.read()
            assert bad.asked[f"POST {SESSIONS}"] == logins

    def test_a_refusal_is_remembered_when_the_source_is_opened_again(self, bench: Bench) -> None:
        refusing, broken = bench.bmc(trees.supermicro()), bench.bmc(trees.supermicro())
        refusing.login_status, broken.statuses[trees.ROOT] = 401, 500
        bmcs = [bench.settings(refusing, "a"), bench.settings(broken, "b")]
        config = msgspec.convert({"bmcs": bmcs}, RedfishSettings)
        collector = RedfishCollector()
        for _ in range(3):
            with pytest.raises(SourceError, match="None of 2 BMCs"):
                collector.open(config, bench.clock)
            bench.clock.advance(5.1)
        assert refusing.asked[f"POST {SESSIONS}"] == 1
        broken.statuses.clear()
        bench.clock.advance(20)
        source = collector.open(config, bench.clock)
        assert watts(source.read()) == {"b-node": 5120.0}
        source.close()

    def test_a_slow_one_is_never_asked_twice_at_once_and_its_answer_comes_later(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redfish_source, "READ_WAIT_SECONDS", 0.1)
        monkeypatch.setattr(redfish_source, "OPEN_WAIT_SECONDS", 0.1)
        good, slow = bench.bmc(trees.supermicro()), bench.bmc(trees.dell())
        slow.delay_seconds = 0.15
        source = bench.open(bench.settings(good, "a"), bench.settings(slow, "b"))
        assert source.parts["b"] is not None
        assert source.parts["b"].reason == "starting"
        gathered: list[str] = []
        deadline = time.monotonic() + 10
        while "b-node" not in gathered and time.monotonic() < deadline:
            began = time.monotonic()
            gathered += watts(source.read())
            assert time.monotonic() - began < 2
        assert "b-node" in gathered
        assert slow.most_in_flight == 1
        assert source.parts == {"a": None, "b": None}

    def test_a_slow_only_one_is_not_given_up_while_it_starts(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redfish_source, "OPEN_WAIT_SECONDS", 0.05)
        bmc = bench.bmc(trees.supermicro())
        bmc.delay_seconds = 0.1
        source = bench.open(bench.settings(bmc))
        assert watts(source.read()) == {"bmc1-node": 5120.0}

    def test_two_seconds_for_an_answer_fit_into_a_read(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc))
        source.read()
        bmc.delay_seconds = 2.0
        began = time.monotonic()
        assert watts(source.read()) == {"bmc1-node": 5120.0}
        assert time.monotonic() - began < 3.5
        bmc.delay_seconds = 0.0

    def test_none_works(self, bench: Bench) -> None:
        first, second = bench.bmc(trees.supermicro()), bench.bmc(trees.supermicro())
        first.login_status, second.statuses[trees.ROOT] = 401, 503
        with pytest.raises(SourceError, match="None of 2 BMCs") as caught:
            bench.open(bench.settings(first, "a"), bench.settings(second, "b"))
        assert (caught.value.state, caught.value.reason) == (_DOWN, "busy")

    def test_a_field_that_vanishes_comes_back(self, bench: Bench) -> None:
        good, bad = bench.bmc(trees.dell()), bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(good, "a"), bench.settings(bad, "b"))
        source.read()
        whole = bad.tree[ENVIRONMENT]
        bad.tree[ENVIRONMENT] = _NOTHING
        assert "b-node" not in watts(source.read())
        bad.tree[ENVIRONMENT] = whole
        bench.clock.advance(5.1)
        assert watts(source.read())["b-node"] == 5120.0

    def test_a_lost_resource_is_looked_for_again_after_a_while(self, bench: Bench) -> None:
        tree = trees.hpe()
        source = bench.opened(tree, meters=["node", "psus"])
        supplies = "/redfish/v1/Chassis/1/PowerSubsystem/PowerSupplies"
        tree[f"{supplies}/1"]["Metrics"] = {"@odata.id": f"{supplies}/1/NewMetrics"}
        tree[f"{supplies}/1/NewMetrics"] = tree.pop(f"{supplies}/1/Metrics")
        source.read()
        assert watts(source.read()) == {"bmc1-node": 640.0, "bmc1-psu0": 330.5}
        bench.clock.advance(601)
        assert watts(source.read()) == {"bmc1-node": 640.0, "bmc1-psu0": 330.5, "bmc1-psu1": 0.0}

    def test_flapping_leaves_nothing_behind(self, bench: Bench) -> None:
        before = threading.active_count()
        bmc = bench.bmc(trees.supermicro())
        for _ in range(5):
            source = bench.open(bench.settings(bmc))
            source.read()
            bmc.statuses[ENVIRONMENT] = 503
            with pytest.raises(SourceError):
                source.read()
            bmc.statuses.clear()
            source.close()
        assert threading.active_count() <= before + 1
        assert bmc.tokens == {}

    def test_closing_does_not_wait_for_a_bmc_that_hangs(self, bench: Bench) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc))
        bmc.hangs = True
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < redfish_session._LOGOUT_SECONDS + 1

    def test_closing_does_not_wait_for_what_is_being_asked(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redfish_source, "OPEN_WAIT_SECONDS", 0.05)
        bmc = bench.bmc(trees.supermicro())
        bmc.hangs = True
        source = bench.open(bench.settings(bmc))
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 1.5

    def test_closing_logs_out_though_an_answer_is_awaited(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc))
        monkeypatch.setattr(redfish_source, "READ_WAIT_SECONDS", 0.2)
        bmc.hangs = True
        source.read()
        bmc.hangs = False
        source.close()
        assert bmc.logouts == 1

    def test_reads_do_not_pile_up_at_a_slow_one(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bmc = bench.bmc(trees.supermicro())
        source = bench.open(bench.settings(bmc))
        source.read()
        bmc.asked.clear()
        bmc.delay_seconds = 1.0
        monkeypatch.setattr(redfish_source, "READ_WAIT_SECONDS", 0.02)
        for _ in range(4):
            assert source.read() == []
        monkeypatch.setattr(redfish_source, "READ_WAIT_SECONDS", 5.0)
        assert len(source.read()) == 1
        assert bmc.asked == {f"GET {ENVIRONMENT}": 1}

    def test_what_check_shows(self, bench: Bench) -> None:
        good, bad = bench.bmc(trees.supermicro()), bench.bmc(trees.supermicro())
        bad.login_status = 401
        config = msgspec.convert({"bmcs": [bench.settings(good, "a"), bench.settings(bad, "b")]}, RedfishSettings)
        handed_over = msgspec.json.decode(msgspec.json.encode(config), type=RedfishSettings)
        seen = look("redfish", RedfishCollector(), handed_over)
        assert (seen.state, [device.name for device in seen.devices]) == (SourceState.OK, ["a-node"])
        assert [(part.source, part.state, part.reason) for part in seen.parts] == [
            ("redfish/b", SourceState.DENIED, "unauthorized")
        ]
        assert PASSWORD not in str(seen)


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"url": "https://u:hunter2@bmc"}, "user and password_file"),
            ({"url": "bmc1"}, "no address"),
            ({"url": "https://[::1"}, "no address"),
            ({"url": "https://bmc/redfish/v1/Chassis"}, "has a path"),
            ({"url": "http://bmc1"}, "in clear"),
            ({"user": ""}, "go together"),
            ({"password_file": ""}, "go together"),
            ({"insecure": True, "ca_file": "/x"}, "exclude"),
            ({"certificate_sha256": "AB:CD"}, "64 hexadecimal"),
            ({"name": "a b"}, "name"),
            ({"meters": ["nodes"]}, "meters"),
            ({"node_sensor": "https://evil/redfish/"}, "node_sensor"),
            ({"passwort": "x"}, "passwort"),
        ],
    )
    def test_what_cannot_work_is_refused(self, change: dict[str, object], message: str) -> None:
        good = {"name": "bmc1", "url": "https://bmc1", "user": "u", "password_file": "/p"}
        msgspec.convert({"bmcs": [good]}, RedfishSettings)
        with pytest.raises(msgspec.ValidationError, match=message) as caught:
            msgspec.convert({"bmcs": [good | change]}, RedfishSettings)
        assert "hunter2" not in str(caught.value)

    def test_a_bmc_is_needed_and_names_differ(self) -> None:
        bmc = {"name": "a", "url": "https://a"}
        for bmcs in ([], [bmc, bmc], [bmc | {"meters": ["gpus"]}, bmc | {"name": "b", "meters": ["gpus"]}]):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert({"bmcs": bmcs}, RedfishSettings)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({}, RedfishSettings)

    def test_in_clear_on_loopback_or_on_request(self) -> None:
        access = {"name": "a", "user": "u", "password_file": "/p"}
        for bmc in ({"url": "http://127.0.0.1:8000"}, {"url": "http://bmc", "insecure": True}):
            msgspec.convert({"bmcs": [access | bmc]}, RedfishSettings)


@contextmanager
def sushy_static(tree: trees.Tree, folder: Path, tls: Path) -> Iterator[str]:
    """sushy-tools' server over a folder of `index.json` files; gives its address."""
    for path, document in tree.items():
        file = folder / path.removeprefix("/redfish/v1").strip("/") / "index.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
    port = free_port()
    command = [Path(sys.executable).parent / "sushy-static", "-m", folder, "-p", str(port), "-i", "127.0.0.1"]
    certificate = ["--ssl-certificate", tls / "server.crt", "--ssl-key", tls / "server.key"]
    with subprocess.Popen([*command, *certificate], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield f"https://127.0.0.1:{port}"
        finally:
            server.kill()


def wait_until_it_listens(url: str) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail("sushy-static does not listen")


def test_the_contract_of_power_sources(bench: Bench) -> None:
    bmcs = [
        bench.settings(bench.bmc(trees.hpe()), "a", meters=["node", "psus"]),
        bench.settings(bench.bmc(trees.hgx()), "b"),
    ]
    hold_to_contract(RedfishCollector(), msgspec.convert({"bmcs": bmcs}, RedfishSettings))


def test_sushy_static(bench: Bench, tmp_path: Path, tls: Path) -> None:
    folder = tmp_path / "v1"
    with sushy_static(trees.dell(), folder, tls) as url:
        bmc: dict[str, object] = {
            "name": "sushy",
            "url": url,
            "ca_file": str(tls / "ca.crt"),
            "meters": ["node", "psus"],
        }
        wait_until_it_listens(url)
        source = bench.open(bmc)
        expected = {"sushy-node": 812.0, "sushy-psu1": 420.0, "sushy-psu2": 398.0}
        assert watts(source.read()) == expected
        power = folder / "Chassis" / "System.Embedded.1" / "Power" / "index.json"
        power.write_text(power.read_text().replace("812", "933"))
        assert watts(source.read()) == expected | {"sushy-node": 933.0}
