"""PDUs by SNMP against real agents: net-snmp's snmpd, and snmpsim with a device per vendor's profile."""

import time

import pytest
from tests.support.snmp_pdu_opening import JumpClock, opened, pdu, secure_pdu, until, watts
from tests.support.snmp_pdu_servers import Snmpd, Snmpsim

from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import PowerReading
from jouled_collectors.power.snmp_pdu_profile import SHIPPED, load

POWER = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7"
APC = "1.3.6.1.4.1.318.1.3.4.6"

MOVING = """\
watts=100
while read -r word; do
    case "$word" in
    PING) echo PONG ;;
    get) read -r oid; watts=$((watts + 1)); echo "$oid"; echo integer; echo "$watts" ;;
    *) read -r oid; echo NONE ;;
    esac
done
"""
"""A meter for snmpd's `pass_persist`, rising at each look; what `pass` tells it keeps for 30 s."""

VENDORS = {
    # profile: sysObjectID, sockets, the lines that its PDU has beside others', readings in watts or microjoules
    "apc_rpdu2": (
        APC,
        {"outlets": [1, 2]},
        [f"{POWER}.1|66|455", f"{POWER}.2|66|461", f"{POWER}.3|66|1", "1.3.6.1.4.1.318.1.1.26.9.4.3.1.11.1|66|9"],
        {"outlet-1": 455, "outlet-2": 461},
    ),
    "apc_rpdu2 unit": (APC, {"inlets": [1]}, ["1.3.6.1.4.1.318.1.1.26.4.3.1.5.1|2|137"], {"inlet-1": 1370}),
    "apc_rpdu1": (
        "1.3.6.1.4.1.318.1.3.4.4",
        {"inlets": [1]},
        ["1.3.6.1.4.1.318.1.1.12.1.16.0|2|912"],
        {"inlet-1": 912},
    ),
    "apc_easy": (
        "1.3.6.1.4.1.318.1.3.4.9",
        {"inlets": [1]},
        ["1.3.6.1.4.1.318.1.1.30.2.1.1.7.1|2|777"],
        {"inlet-1": 777},
    ),
    "raritan_px": (
        "1.3.6.1.4.1.13742.6",
        {"outlets": [1, 36]},
        [
            line
            for outlet, value in ((1, 4550), (36, 33))
            for line in (
                f"1.3.6.1.4.1.13742.6.5.4.3.1.4.1.{outlet}.5|66|{value}",
                f"1.3.6.1.4.1.13742.6.5.4.3.1.2.1.{outlet}.5|2|1",
                f"1.3.6.1.4.1.13742.6.3.5.4.1.7.1.{outlet}.5|66|1",
                f"1.3.6.1.4.1.13742.6.5.4.3.1.4.1.{outlet}.6|66|9999",
            )
        ],
        {"outlet-1": 455.0, "outlet-36": 3.3},
    ),
    "raritan_px inlet": (
        "1.3.6.1.4.1.13742.6",
        {"inlets": [1]},
        [
            "1.3.6.1.4.1.13742.6.5.2.3.1.4.1.1.5|66|5120",
            "1.3.6.1.4.1.13742.6.5.2.3.1.2.1.1.5|2|1",
            "1.3.6.1.4.1.13742.6.3.3.4.1.7.1.1.5|66|0",
        ],
        {"inlet-1": 5120},
    ),
    "servertech_sentry4": (
        "1.3.6.1.4.1.1718.4",
        {"outlets": [2, "1.2.3"]},
        ["1.3.6.1.4.1.1718.4.1.8.3.1.7.1.1.2|2|402", "1.3.6.1.4.1.1718.4.1.8.3.1.7.1.2.3|2|403"],
        {"outlet-2": 402, "outlet-1.2.3": 403},
    ),
    "servertech_sentry4 cord": (
        "1.3.6.1.4.1.1718.4",
        {"inlets": [1]},
        ["1.3.6.1.4.1.1718.4.1.3.3.1.3.1.1|2|4020", "1.3.6.1.4.1.1718.4.1.3.3.1.10.1.1|2|99"],
        {"inlet-1": 4020},
    ),
    "servertech_sentry3": (
        "1.3.6.1.4.1.1718.3",
        {"outlets": [5]},
        ["1.3.6.1.4.1.1718.3.2.3.1.14.1.1.5|2|355"],
        {"outlet-5": 355},
    ),
    "servertech_sentry3 infeed": (
        "1.3.6.1.4.1.1718.3",
        {"inlets": [1]},
        ["1.3.6.1.4.1.1718.3.2.2.1.12.1.1|2|2355"],
        {"inlet-1": 2355},
    ),
    "eaton_epdu_g3": (
        "1.3.6.1.4.1.534.6.6.7",
        {"outlets": [1, 2]},
        ["1.3.6.1.4.1.534.6.6.7.6.5.1.3.0.1|2|371", "1.3.6.1.4.1.534.6.6.7.6.5.1.3.0.2|2|-1"],
        {"outlet-1": 371},
    ),
    "eaton_epdu_g3 input": (
        "1.3.6.1.4.1.534.6.6.7",
        {"inlets": [1]},
        ["1.3.6.1.4.1.534.6.6.7.3.5.1.4.0.1|2|3710"],
        {"inlet-1": 3710},
    ),
    "eaton_epdu_g3_three_phase": (
        "1.3.6.1.4.1.534.6.6.7",
        {"inlets": [1]},
        ["1.3.6.1.4.1.534.6.6.7.3.4.1.4.0.1.4|2|8710"],
        {"inlet-1": 8710},
    ),
    "eaton_nlogic": ("1.3.6.1.4.1.534.7.1", {"inlets": [1]}, ["1.3.6.1.4.1.534.7.1.2.1.1.5.1|2|641"], {"inlet-1": 641}),
    "vertiv_geist": (
        "1.3.6.1.4.1.21239.2",
        {"outlets": [4]},
        ["1.3.6.1.4.1.21239.5.2.3.6.1.12.4|66|388"],
        {"outlet-4": 388},
    ),
    "vertiv_geist unit": (
        "1.3.6.1.4.1.21239.2",
        {"inlets": [1], "interval_seconds": 10},
        ["1.3.6.1.4.1.21239.5.2.3.1.1.9.1|66|3880", "1.3.6.1.4.1.21239.5.2.3.1.1.12.1|66|50"],
        {"inlet-1": 50 * 3_600_000_000},
    ),
    "cyberpower_epdu2": (
        "1.3.6.1.4.1.3808.1.1.6",
        {"outlets": [8]},
        ["1.3.6.1.4.1.3808.1.1.6.6.2.4.1.7.8|66|208"],
        {"outlet-8": 208},
    ),
    "cyberpower_epdu2 unit": (
        "1.3.6.1.4.1.3808.1.1.6",
        {"inlets": [1]},
        ["1.3.6.1.4.1.3808.1.1.6.3.4.1.7.1|66|208"],
        {"inlet-1": 2080},
    ),
    "enlogic": ("1.3.6.1.4.1.38446.1", {"inlets": [1]}, ["1.3.6.1.4.1.38446.1.2.4.1.4.1|2|1999"], {"inlet-1": 1999}),
    "hpe_pdu3": (
        "1.3.6.1.4.1.232.165.11",
        {"outlets": [3]},
        ["1.3.6.1.4.1.232.165.11.5.1.1.13.1.3|2|299"],
        {"outlet-3": 299},
    ),
    "hpe_pdu3 unit": (
        "1.3.6.1.4.1.232.165.11",
        {"inlets": [1]},
        ["1.3.6.1.4.1.232.165.11.2.1.1.5.1|2|2990"],
        {"inlet-1": 2990},
    ),
    "avocent_pm": (
        "1.3.6.1.4.1.10418.17.1.7",
        {"outlets": [3]},
        ["1.3.6.1.4.1.10418.17.2.5.5.1.60.1.1.3|2|2995"],
        {"outlet-3": 299.5},
    ),
}


def simulated() -> dict[str, list[str]]:
    devices = {
        name.replace(" ", "-"): [f"1.3.6.1.2.1.1.2.0|6|{object_id}", *lines]
        for name, (object_id, _, lines, _) in VENDORS.items()
    }
    geist = "1.3.6.1.4.1.21239.5.2.3.6.1"
    rising = ["1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.21239.2", f"{geist}.15.1|66:numeric|rate=5,initial=1000,deviation=0"]
    devices["rising"] = [*rising, f"{geist}.12.1|66|500"]
    slow = f"{POWER}.1|2:delay|value=137,wait=400,deviation=0"
    devices["slow"] = [f"1.3.6.1.2.1.1.2.0|6|{APC}", slow]
    devices["full"] = [f"1.3.6.1.2.1.1.2.0|6|{APC}", *(f"{POWER}.{outlet}|66|{outlet}" for outlet in range(1, 49))]
    return devices


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    server = Snmpsim(tmp_path_factory.mktemp("snmpsim"), simulated())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def snmpd(tmp_path):
    folder = tmp_path / "snmpd"
    folder.mkdir()
    moving = folder / "moving.sh"
    moving.write_text(MOVING)
    lines = [
        f"sysObjectID .{APC}",
        f"override .{POWER}.1 integer 455",
        f"override .{POWER}.2 integer -1",
        f"pass_persist .{POWER}.3 /bin/sh {moving}",
    ]
    server = Snmpd(folder, lines)
    server.start()
    yield server
    server.kill()


class TestVendors:
    @pytest.mark.parametrize("vendor", VENDORS)
    def test_a_pdu_of_each_profile_is_found_and_read(self, simulator, tmp_path, caplog, vendor):
        caplog.set_level("INFO")
        _, sockets, _, expected = VENDORS[vendor]
        keys = {key: value for key, value in sockets.items() if key != "interval_seconds"}
        config = pdu(tmp_path, simulator.port, community=vendor.replace(" ", "-"), timeout_seconds=2, **keys)
        with opened(config, interval_seconds=sockets.get("interval_seconds", 2)) as source:
            told = {
                reading.device: reading.watts if isinstance(reading, PowerReading) else reading.microjoules
                for reading in source.read()
            }
        assert told == {f"a-{socket}": value for socket, value in expected.items()}
        assert any(f"profile {vendor.split()[0]};" in line for line in caplog.messages)

    def test_every_shipped_profile_is_met(self):
        met = {name.split()[0] for name in VENDORS}
        assert set(load("")) - met == {"example"}
        assert {path.stem for path in SHIPPED.glob("*.toml")} == set(load(""))


class TestSnmpsim:
    def test_a_rising_counter(self, simulator, tmp_path):
        config = pdu(tmp_path, simulator.port, community="rising", outlets=[1], timeout_seconds=2)
        with opened(config, interval_seconds=10) as source:
            first = source.read()[0]
            time.sleep(1.1)
            second = source.read()[0]
        watt_hours = (second.microjoules - first.microjoules) / 3_600_000_000
        assert 4 <= watt_hours <= 20

    def test_a_slow_agent_within_its_limit(self, simulator, tmp_path):
        clock = JumpClock()
        config = pdu(tmp_path, simulator.port, community="slow", outlets=[1], timeout_seconds=3)
        with opened(config, clock=clock) as source:
            [reading] = source.read()
            assert clock.now_ns() - reading.t_ns > 190_000_000

    def test_48_outlets(self, simulator, tmp_path):
        config = pdu(tmp_path, simulator.port, community="full", outlets=list(range(1, 49)), timeout_seconds=3)
        with opened(config) as source:
            assert list(watts(source.read()).values()) == list(range(1, 49))

    def test_version_3(self, simulator, tmp_path):
        (tmp_path / "auth").write_text("auctoritas\n")
        (tmp_path / "privacy").write_text("privatus\n")
        config = secure_pdu(
            tmp_path, simulator.port, user="simulator", context="apc_rpdu2", timeout_seconds=2, outlets=[1]
        )
        with opened(config) as source:
            assert watts(source.read()) == {"a-outlet-1": 455}


class TestSnmpd:
    def test_version_2c_with_a_moving_value_and_a_sentinel(self, snmpd, tmp_path):
        with opened(pdu(tmp_path, snmpd.port, outlets=[1, 2, 3], timeout_seconds=1)) as source:
            first = watts(source.read())
            assert first["a-outlet-1"] == 455
            assert "a-outlet-2" not in first
            until(source, lambda readings: watts(readings).get("a-outlet-3", 0) > first["a-outlet-3"])
            assert "outlet 2 says -1" in source.parts["a"].message

    def test_ipv6(self, snmpd, tmp_path):
        snmpd.kill()
        lines = [f"agentAddress udp6:[::1]:{snmpd.port}", "rocommunity6 public ::1", f"sysObjectID .{APC}"]
        snmpd.configure([*lines, f"override .{POWER}.1 integer 455"])
        snmpd.start()
        with opened(pdu(tmp_path, snmpd.port, host="::1", outlets=[1], timeout_seconds=1)) as source:
            assert watts(source.read()) == {"a-outlet-1": 455}

    def test_version_3_with_encryption(self, snmpd, tmp_path):
        with opened(secure_pdu(tmp_path, snmpd.port)) as source:
            assert watts(source.read()) == {"a-outlet-1": 455}

    @pytest.mark.parametrize(
        ("auth", "privacy", "their_auth", "their_privacy"),
        [
            ("MD5", "DES", "MD5", "DES"),
            ("SHA", "AES128", "SHA", "AES"),
            ("SHA224", "AES128", "SHA-224", "AES"),
            ("SHA384", "AES192", "SHA-384", "AES-192"),
            ("SHA512", "AES256", "SHA-512", "AES-256"),
        ],
    )
    def test_every_digest_and_cipher(self, snmpd, tmp_path, auth, privacy, their_auth, their_privacy):
        snmpd.kill()
        user = f"createUser other {their_auth} authpass12 {their_privacy} privpass12"
        snmpd.configure([user, "rouser other priv", f"sysObjectID .{APC}", f"override .{POWER}.1 integer 455"])
        snmpd.start()
        keys = {"auth_protocol": auth, "privacy_protocol": privacy, "outlets": [1]}
        with opened(secure_pdu(tmp_path, snmpd.port, user="other", **keys)) as source:
            assert watts(source.read()) == {"a-outlet-1": 455}

    @pytest.mark.parametrize(
        ("keys", "state", "reason"),
        [
            ({"user": "nobody"}, "denied", "unknown_user"),
            ({"auth_key_file": "wrong"}, "denied", "wrong_key"),
            ({"auth_protocol": "SHA512"}, "denied", "wrong_key"),
            ({"privacy_key_file": "wrong"}, "down", "timeout"),  # snmpd drops what it cannot decrypt
            ({"privacy_key_file": ""}, "denied", "no_access"),
            ({"privacy_key_file": "", "auth_key_file": ""}, "denied", "no_access"),
            ({"context": "elsewhere"}, "down", "timeout"),
        ],
    )
    def test_who_is_not_let_in(self, snmpd, tmp_path, keys, state, reason):
        (tmp_path / "wrong").write_text("wrongpass12\n")
        paths = {key: str(tmp_path / value) if value == "wrong" else value for key, value in keys.items()}
        with pytest.raises(SourceError) as caught, opened(secure_pdu(tmp_path, snmpd.port, **paths)):
            pass
        assert (caught.value.state, caught.value.reason) == (state, reason)
        assert caught.value.mend
        assert "pass12" not in str(caught.value)

    def test_a_wrong_community_is_silence(self, snmpd, tmp_path):
        with (
            pytest.raises(SourceError, match="off or cannot be reached, or it does not know the community") as caught,
            opened(pdu(tmp_path, snmpd.port, community="wrong")),
        ):
            pass
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "timeout")

    def test_an_agent_restarted_between_reads(self, snmpd, tmp_path):
        """Its boots are one more and its time starts again: RFC 3414 calls that not in the time window."""
        snmpd.stop()
        snmpd.start()
        with opened(secure_pdu(tmp_path, snmpd.port)) as source:
            snmpd.stop()
            snmpd.start()
            assert watts(source.read()) == {"a-outlet-1": 455}
            assert source.parts["a"].reason == "outlet_missing"

    def test_an_agent_replaced_between_reads(self, snmpd, tmp_path, simulator):
        """Its boots are fewer, so that its answers look replayed; and its engine may be another."""
        clock = JumpClock()
        other = pdu(tmp_path, simulator.port, "b", community="apc_rpdu2", timeout_seconds=2)
        for _ in range(3):
            snmpd.stop()
            snmpd.start()
        with opened(secure_pdu(tmp_path, snmpd.port), other, clock=clock) as source:
            snmpd.kill()
            snmpd.forget()
            snmpd.start()
            until(source, lambda readings: watts(readings).get("a-outlet-1") == 455, clock)

    def test_an_agent_killed_and_back(self, snmpd, tmp_path, simulator):
        clock = JumpClock()
        other = pdu(tmp_path, simulator.port, "b", community="apc_rpdu2", timeout_seconds=2)
        secure, plain = secure_pdu(tmp_path, snmpd.port), pdu(tmp_path, snmpd.port, "c")
        with opened(secure, other, plain, clock=clock) as source:
            snmpd.kill()
            until(source, lambda _: source.parts["a"].reason == source.parts["c"].reason == "timeout")
            assert source.parts["b"] is None
            snmpd.start()
            until(source, lambda readings: len(readings) == 4, clock)
            assert source.parts["a"].reason == "outlet_missing"

    def test_a_corrected_password_is_taken_without_a_restart(self, snmpd, tmp_path, simulator):
        clock = JumpClock()
        other = pdu(tmp_path, simulator.port, "b", community="apc_rpdu2", timeout_seconds=2)
        (tmp_path / "auth").write_text("wrongpass12")
        with opened(secure_pdu(tmp_path, snmpd.port), other, clock=clock) as source:
            assert source.parts["a"].state is SourceState.DENIED
            (tmp_path / "auth").write_text("authpass12")
            until(source, lambda readings: len(readings) == 3, clock)
