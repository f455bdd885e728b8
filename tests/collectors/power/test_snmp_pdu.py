"""PDUs by SNMP against an agent of our own that can misbehave, under the real pysnmp."""

import sys
import threading
import time

import msgspec
import pytest
from tests.support.snmp_pdu_agent import Agent
from tests.support.snmp_pdu_opening import JumpClock, opened, pdu, secure_pdu, until, watts
from tests.support.snmp_pdu_servers import free_udp_port
from tests.support.tools import run

from jouled.api import HasParts
from jouled.app.runtime.samplers import sample
from jouled.model.device import DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.snmp_pdu import SnmpPduCollector
from jouled_collectors.power.snmp_pdu_settings import SnmpPduSettings

POWER = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7"
RARITAN = "1.3.6.1.4.1.13742.6"
GEIST = "1.3.6.1.4.1.21239.5.2.3.6.1"


@pytest.fixture
def agent():
    made = Agent({f"{POWER}.1": 455, f"{POWER}.2": 461})
    yield made
    made.close()


@pytest.fixture
def other():
    made = Agent({f"{POWER}.1": 310, f"{POWER}.2": 320})
    yield made
    made.close()


def raritan(values: dict[int, int], sensor: int = 5, digits: int = 1, available: int = 1) -> dict[str, object]:
    objects = {}
    for outlet, value in values.items():
        objects[f"{RARITAN}.5.4.3.1.4.1.{outlet}.{sensor}"] = value
        objects[f"{RARITAN}.3.5.4.1.7.1.{outlet}.{sensor}"] = digits
        objects[f"{RARITAN}.5.4.3.1.2.1.{outlet}.{sensor}"] = available
    return objects


class TestDevices:
    def test_outlets_are_members_of_the_feed(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port, max_watts=2300), feed="rack7") as source:
            assert [device.name for device in source.devices] == ["a-outlet-1", "a-outlet-2"]
            first = source.devices[0]
            assert (first.kind, first.parent, first.vendor) == (DeviceKind.OUTLET, "rack7", "APC")
            assert (first.source, first.max_watts, first.wrap_microjoules) == ("snmp_pdu", 2300, None)

    def test_a_column_that_nobody_verified_is_called_so(self, agent, tmp_path, caplog):
        caplog.set_level("INFO")
        with opened(pdu(tmp_path, agent.port)) as source:
            assert source.devices[0].method == "snmp_power_unverified"
            source.read()
        assert sum("NOT VERIFIED" in line for line in caplog.messages) == 1

    def test_outlets_that_cannot_be_read_are_devices_all_the_same(self, agent, tmp_path):
        """The feed is incomplete then; were they unknown, it would seem low."""
        with opened(pdu(tmp_path, agent.port, outlets=[1, 7])) as source:
            assert [device.name for device in source.devices] == ["a-outlet-1", "a-outlet-7"]
            assert watts(source.read()) == {"a-outlet-1": 455}

    def test_devices_of_a_dead_pdu_are_known(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port), pdu(tmp_path, free_udp_port(), "b", timeout_seconds=0.1)) as source:
            assert [device.name for device in source.devices][2:] == ["b-outlet-1", "b-outlet-2"]

    def test_an_inlet_of_a_pdu_for_this_node_alone_is_a_member_too(self, tmp_path):
        agent = Agent({"1.3.6.1.4.1.318.1.1.26.4.3.1.5.1": 137})
        with opened(pdu(tmp_path, agent.port, inlets=[1])) as source:
            assert watts(source.read()) == {"a-inlet-1": 1370}
            assert (source.devices[0].kind, source.devices[0].method) == (DeviceKind.OUTLET, "snmp_power")
        agent.close()

    def test_a_source_with_parts(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port)) as source:
            assert isinstance(source, HasParts)
            assert source.parts == {"a": None}


class TestReadings:
    def test_power_is_stamped_in_the_middle_of_the_request(self, agent, tmp_path):
        clock = JumpClock()
        agent.delay_seconds = 0.1
        with opened(pdu(tmp_path, agent.port), clock=clock) as source:
            before_ns = clock.now_ns()
            [first, _] = source.read()
            after_ns = clock.now_ns()
        assert isinstance(first, PowerReading)
        assert before_ns + 50_000_000 <= first.t_ns <= after_ns - 45_000_000

    def test_a_mean_over_a_known_time_is_stamped_in_its_middle(self, tmp_path):
        agent = Agent(raritan({1: 4550}), f"{RARITAN}.1")
        clock = JumpClock()
        with opened(pdu(tmp_path, agent.port, outlets=[1]), clock=clock) as source:
            [reading] = source.read()
            assert clock.now_ns() - 700_000_000 < reading.t_ns < clock.now_ns() - 500_000_000
        agent.close()

    def test_values_with_digits_are_divided(self, tmp_path):
        agent = Agent(raritan({1: 4550, 2: 33}), f"{RARITAN}.1")
        with opened(pdu(tmp_path, agent.port)) as source:
            assert watts(source.read()) == {"a-outlet-1": 455.0, "a-outlet-2": 3.3}
        agent.close()

    def test_energy_is_taken_where_its_step_is_fine_against_the_interval(self, tmp_path, caplog):
        caplog.set_level("INFO")
        agent = Agent(raritan({1: 7, 2: 8}) | raritan({1: 1_234_567, 2: 2}, sensor=8, digits=0), f"{RARITAN}.1")
        with opened(pdu(tmp_path, agent.port), interval_seconds=10) as source:
            first, second = source.read()
            assert (first.device, first.microjoules) == ("a-outlet-1", 1_234_567 * 3_600_000_000)
            assert second.microjoules == 7_200_000_000
            assert source.devices[0].wrap_microjoules is None  # 2^32 Wh are more than the books hold
            assert source.devices[0].method == "snmp_energy"
        with opened(pdu(tmp_path, agent.port), interval_seconds=2) as source:
            assert all(isinstance(reading, PowerReading) for reading in source.read())
        assert any("3600 J, is too coarse" in line for line in caplog.messages)
        agent.close()

    def test_energy_in_tenths_of_a_kilowatt_hour_is_never_taken(self, agent, tmp_path):
        agent.objects["1.3.6.1.4.1.318.1.1.26.9.4.3.1.11.1"] = 7
        with opened(pdu(tmp_path, agent.port, outlets=[1]), interval_seconds=30) as source:
            assert watts(source.read()) == {"a-outlet-1": 455}

    def test_without_an_energy_counter_power_is_taken(self, tmp_path):
        agent = Agent({f"{GEIST}.12.1": 200, f"{GEIST}.12.2": 300, f"{GEIST}.15.2": 17}, "1.3.6.1.4.1.21239.2")
        with opened(pdu(tmp_path, agent.port), interval_seconds=10) as source:
            first, second = source.read()
            assert isinstance(first, PowerReading)
            assert isinstance(second, EnergyReading)
            assert source.devices[1].wrap_microjoules == 9_999_001 * 3_600_000_000
        agent.close()

    def test_wraps_and_resets_are_told_raw_and_left_to_the_ledger(self, tmp_path):
        agent = Agent({f"{GEIST}.15.1": 9_999_000, f"{GEIST}.12.1": 1}, "1.3.6.1.4.1.21239.2")
        with opened(pdu(tmp_path, agent.port, outlets=[1]), interval_seconds=10) as source:
            agent.objects[f"{GEIST}.15.1"] = 2
            assert source.read()[0].microjoules == 7_200_000_000
        agent.close()

    def test_whole_indices_are_taken_as_they_are(self, tmp_path):
        agent = Agent({f"{RARITAN}.{column}.2.14.5": 1 for column in ("5.4.3.1.4", "3.5.4.1.7", "5.4.3.1.2")})
        agent.objects["1.3.6.1.2.1.1.2.0"] = f"{RARITAN}.1"
        with opened(pdu(tmp_path, agent.port, outlets=["2.14"])) as source:
            assert watts(source.read()) == {"a-outlet-2.14": 0.1}
        agent.close()

    def test_one_outlet_under_two_names_is_counted_once(self, tmp_path):
        agent = Agent(raritan({3: 4550}), f"{RARITAN}.1")
        with opened(pdu(tmp_path, agent.port, outlets=[3, "1.3"])) as source:
            assert list(watts(source.read())) == ["a-outlet-3"]
            assert "outlet 1.3 is the same as 3" in str(source.parts["a"])
        agent.close()

    def test_a_unit_without_numbers_has_one_inlet(self, tmp_path):
        agent = Agent({"1.3.6.1.4.1.318.1.1.12.1.16.0": 900})
        with opened(pdu(tmp_path, agent.port, inlets=[1])) as source:
            assert watts(source.read()) == {"a-inlet-1": 900}
        with pytest.raises(SourceError, match="inlet 2"), opened(pdu(tmp_path, agent.port, inlets=[2])):
            pass
        agent.close()

    def test_an_idle_outlet_is_zero_and_not_absent(self, agent, tmp_path):
        agent.objects[f"{POWER}.1"] = 0
        with opened(pdu(tmp_path, agent.port)) as source:
            assert watts(source.read())["a-outlet-1"] == 0


class TestManyValues:
    def test_an_agent_that_caps_values_is_asked_for_less(self, tmp_path):
        agent = Agent({f"{POWER}.{outlet}": outlet for outlet in range(1, 49)})
        agent.most_values = 5
        with opened(pdu(tmp_path, agent.port, outlets=list(range(1, 49)))) as source:
            assert len(source.read()) == 48
        agent.close()

    def test_a_request_holds_no_more_than_configured(self, tmp_path):
        agent = Agent(raritan(dict.fromkeys(range(1, 9), 10)), f"{RARITAN}.1")
        with opened(pdu(tmp_path, agent.port, outlets=list(range(1, 9)), values_per_request=3)) as source:
            assert len(source.read()) == 8
        assert max(map(len, agent.requests)) == 3
        agent.close()

    def test_a_slow_agent_with_many_outlets_has_time_for_them(self, tmp_path):
        agent = Agent({f"{POWER}.{outlet}": outlet for outlet in range(1, 9)})
        agent.delay_seconds = 0.3  # four requests take longer than the limit of one
        config = pdu(tmp_path, agent.port, outlets=list(range(1, 9)), values_per_request=2, timeout_seconds=1.0)
        with opened(config) as source:
            until(source, lambda readings: len(readings) == 8)
        agent.close()

    def test_an_error_about_one_object_costs_only_that(self, agent, tmp_path):
        agent.statuses[f"{POWER}.1"] = 5
        with opened(pdu(tmp_path, agent.port)) as source:
            assert list(watts(source.read())) == ["a-outlet-2"]
            assert "outlet 1 is answered by error 5" in source.parts["a"].message

    def test_an_error_about_no_object_in_particular_costs_only_the_culprit(self, tmp_path):
        agent = Agent({f"{POWER}.{outlet}": outlet for outlet in range(1, 9)})
        agent.statuses[f"{POWER}.6"] = 5
        agent.names_culprits = False
        with opened(pdu(tmp_path, agent.port, outlets=list(range(1, 9)))) as source:
            assert [device[-1] for device in watts(source.read())] == list("1234578")
        agent.close()

    def test_answers_are_taken_by_name(self, agent, tmp_path):
        """Of another object than was asked for, in another order, twice, and one left out."""
        agent.renamed = {f"{POWER}.1": [f"{POWER}.2", f"{POWER}.9"], f"{POWER}.2": [f"{POWER}.2"]}
        agent.objects[f"{POWER}.9"] = 999
        with opened(pdu(tmp_path, agent.port)) as source:
            assert watts(source.read()) == {"a-outlet-2": 461}
            assert "outlet 1 is left out of the answer" in source.parts["a"].message


class TestFaults:
    """What is wrong -> state and reason."""

    @pytest.mark.parametrize(
        ("fault", "state", "reason", "words"),
        [
            ({"is_silent": True}, "down", "timeout", "it is off or cannot be reached"),
            ({"community": "other"}, "down", "timeout", "does not know the community"),
            ({"spoil": lambda asked, answer: [b"\x00garbage"]}, "down", "timeout", "no answer"),
            ({"spoil": lambda asked, answer: [answer[:-3]]}, "down", "timeout", "no answer"),
            ({"spoil": lambda asked, answer: [asked]}, "down", "timeout", "no answer"),
            ({"delay_seconds": 0.3}, "down", "timeout", "timeout_seconds"),
            ({"statuses": {f"{POWER}.1": 16}}, "denied", "no_access", "view"),
            ({"statuses": {f"{POWER}.1": 6}}, "denied", "no_access", "view"),
        ],
        ids=["silent", "wrong community", "garbage", "cut", "echo", "slow", "unauthorized", "no access"],
    )
    def test_of_an_agent(self, agent, tmp_path, fault, state, reason, words):
        for key, value in fault.items():
            setattr(agent, key, value)
        with pytest.raises(SourceError) as caught, opened(pdu(tmp_path, agent.port, timeout_seconds=0.1)):
            pass
        assert (caught.value.state, caught.value.reason) == (state, reason)
        assert words in str(caught.value)
        assert caught.value.mend

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (None, "does not exist there"),
            (-1, "says -1"),
            (-32768, "says -32768"),
            (0xFFFF, "says 65535"),
            (0xFFFFFFFF, "says 4294967295"),
            ("N/A", "is no number but OctetString"),
            (b"", "is no number"),
        ],
    )
    def test_of_a_value(self, agent, tmp_path, value, words):
        """One outlet cannot be read: it is missing and named, the other one goes on."""
        agent.objects[f"{POWER}.1"] = value
        with opened(pdu(tmp_path, agent.port)) as source:
            assert watts(source.read()) == {"a-outlet-2": 461}
            error = source.parts["a"]
            assert (error.state, error.reason) == (SourceState.DOWN, "outlet_missing")
            assert f"outlet 1 {words}" in error.message
            assert error.mend

    def test_no_outlet_at_all(self, agent, tmp_path):
        with (
            pytest.raises(SourceError, match="outlet 8 does not exist there") as caught,
            opened(pdu(tmp_path, agent.port, outlets=[8])),
        ):
            pass
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "outlet_missing")

    @pytest.mark.parametrize(
        ("objects", "words"),
        [
            (raritan({1: 4550}, digits=77), "has 77 decimal digits"),
            (raritan({1: 4550}, available=2), "is marked by the PDU as not available"),
            ({f"{RARITAN}.5.4.3.1.4.1.1.5": 4550}, "does not exist"),
        ],
        ids=["digits", "not available", "no digits"],
    )
    def test_of_a_raritan(self, tmp_path, objects, words):
        agent = Agent(objects, f"{RARITAN}.1")
        with pytest.raises(SourceError, match=words), opened(pdu(tmp_path, agent.port, outlets=[1])):
            pass
        agent.close()

    @pytest.mark.parametrize(
        ("keys", "state", "reason", "mend"),
        [
            ({"profile": "nonsense"}, "absent", "unknown_profile", "raritan_px"),
            ({"profile": "apc_rpdu1"}, "absent", "no_outlets", "inlets"),
            ({"community_file": "/nonexistent/c"}, "denied", "secret_unreadable", "/nonexistent/c"),
            ({"community_file": "/proc/self/mem"}, "denied", "secret_unreadable", "/proc/self/mem"),
            ({"community_file": "/dev/null"}, "denied", "secret_unreadable", "/dev/null"),
            ({"host": "no-such-host.invalid"}, "down", "unknown_host", "host"),
            ({"host": "255.255.255.255"}, "down", "timeout", "host"),
        ],
    )
    def test_of_the_settings(self, agent, tmp_path, keys, state, reason, mend):
        with pytest.raises(SourceError) as caught, opened(pdu(tmp_path, agent.port, timeout_seconds=0.1) | keys):
            pass
        assert (caught.value.state, caught.value.reason) == (state, reason)
        assert mend in caught.value.mend

    def test_what_is_no_pdu_is_absent(self, agent, tmp_path):
        agent.objects["1.3.6.1.2.1.1.2.0"] = "1.3.6.1.4.1.8072.3.2.10"
        with (
            pytest.raises(SourceError, match=r"sysObjectID 1\.3\.6\.1\.4\.1\.8072") as caught,
            opened(pdu(tmp_path, agent.port)),
        ):
            pass
        assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "unknown_profile")

    def test_an_agent_that_tells_no_object_id(self, agent, tmp_path):
        agent.objects["1.3.6.1.2.1.1.2.0"] = None
        with pytest.raises(SourceError, match="it tells none"), opened(pdu(tmp_path, agent.port)):
            pass
        with opened(pdu(tmp_path, agent.port, profile="apc_rpdu2")) as source:
            assert len(source.read()) == 2

    def test_two_that_fail_alike_and_differently(self, agent, tmp_path):
        dead = pdu(tmp_path, free_udp_port(), "b", timeout_seconds=0.1)
        with (
            pytest.raises(SourceError, match=r"(?s)a: .*b: ") as caught,
            opened(pdu(tmp_path, free_udp_port(), timeout_seconds=0.1), dead),
        ):
            pass
        assert caught.value.reason == "timeout"
        with pytest.raises(SourceError) as caught, opened(pdu(tmp_path, agent.port, profile="x"), dead):
            pass
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "all_failed")

    def test_messages_hold_no_secret(self, tmp_path):
        dead = pdu(tmp_path, free_udp_port(), community="hush12345", timeout_seconds=0.1)
        with pytest.raises(SourceError) as caught, opened(dead):
            pass
        assert "hush12345" not in str(caught.value).replace("community-hush12345", "")

    def test_what_the_library_cannot_digest_stops_no_other_pdu(self, agent, tmp_path):
        endless = secure_pdu(tmp_path, free_udp_port(), "b", user="x" * 99)
        with opened(pdu(tmp_path, agent.port), endless) as source:
            assert len(source.read()) == 2
            error = source.parts["b"]
            assert (error.state, error.reason) == (SourceState.DOWN, "send_failed")
            assert "pass12" not in str(error)
            assert error.mend

    def test_without_ciphers_it_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "cryptography", None)
        with (
            pytest.raises(SourceError, match=r"needs cryptography\. .* -m pip install 'jouled\[snmp\]'"),
            opened(secure_pdu(tmp_path, free_udp_port())),
        ):
            pass

    def test_a_clock_that_stands_still_hangs_nothing(self, agent, tmp_path, monkeypatch):
        """pysnmp's time limits follow the wall clock, which may be set back by hours."""
        monkeypatch.setattr("pysnmp.carrier.asyncio.dispatch.time", lambda: 1.0)
        agent.is_silent = True
        with pytest.raises(SourceError, match="no answer"), opened(pdu(tmp_path, agent.port, timeout_seconds=0.2)):
            pass

    def test_nothing_is_left_behind_by_failing(self, tmp_path):
        threads = threading.active_count()
        for _ in range(3):
            with pytest.raises(SourceError), opened(pdu(tmp_path, free_udp_port(), timeout_seconds=0.1)):
                pass
        deadline = time.monotonic() + 5
        while threading.active_count() > threads:
            assert time.monotonic() < deadline, threading.enumerate()
            time.sleep(0.01)

    def test_without_the_library_it_says_what_to_install(self, agent, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "jouled_collectors.power.snmp_pdu_source", None)
        with (
            pytest.raises(SourceError, match=r"pip install 'jouled\[snmp\]'") as caught,
            opened(pdu(tmp_path, agent.port)),
        ):
            pass
        assert caught.value.reason == "library_missing"


class TestChange:
    def test_an_outlet_that_vanishes_and_returns(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port)) as source:
            del agent.objects[f"{POWER}.2"]
            assert list(watts(source.read())) == ["a-outlet-1"]
            assert source.parts["a"].reason == "outlet_missing"
            agent.objects[f"{POWER}.2"] = 9
            assert watts(source.read())["a-outlet-2"] == 9
            assert source.parts["a"] is None

    def test_an_outlet_that_appears_is_found_when_it_is_looked_for_again(self, agent, tmp_path):
        clock = JumpClock()
        with opened(pdu(tmp_path, agent.port, outlets=[1, 3]), clock=clock) as source:
            agent.objects[f"{POWER}.3"] = 9
            source.read()
            assert source.parts["a"].reason == "outlet_missing"
            clock.advance(61)
            assert watts(source.read())["a-outlet-3"] == 9
            assert source.parts["a"] is None

    def test_an_energy_counter_that_vanishes_is_replaced_by_power(self, tmp_path):
        agent = Agent({f"{GEIST}.12.1": 200, f"{GEIST}.15.1": 17, f"{GEIST}.15.2": 1}, "1.3.6.1.4.1.21239.2")
        clock = JumpClock()
        with opened(pdu(tmp_path, agent.port), clock=clock, interval_seconds=10) as source:
            assert source.devices[0].method == "snmp_energy"
            del agent.objects[f"{GEIST}.15.1"]
            clock.advance(61)
            source.read()
            clock.advance(61)
            first, _ = source.read()
            assert isinstance(first, PowerReading)
            assert source.devices[0].method == "snmp_power"
        agent.close()

    def test_a_pdu_that_dies_and_returns_while_another_goes_on(self, agent, other, tmp_path):
        clock = JumpClock()
        with opened(pdu(tmp_path, agent.port), pdu(tmp_path, other.port, "b"), clock=clock) as source:
            other.is_silent = True
            until(source, lambda _: source.parts["b"])
            assert source.parts["b"].reason == "timeout"
            assert watts(source.read()) == {"a-outlet-1": 455, "a-outlet-2": 461}
            assert source.parts["a"] is None
            other.is_silent = False
            until(source, lambda readings: len(readings) == 4, clock)
            assert source.parts["b"] is None

    def test_the_only_pdu_that_dies_ends_the_source(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port)) as source:
            agent.is_silent = True
            with pytest.raises(SourceError) as caught:
                source.read()
            assert caught.value.reason == "timeout"

    def test_the_only_pdu_without_any_value_ends_the_source(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port)) as source:
            agent.objects |= {f"{POWER}.1": -1, f"{POWER}.2": None}
            with pytest.raises(SourceError, match=r"outlet 1 says -1.*outlet 2 does not exist"):
                source.read()
            assert source.parts["a"].reason == "outlet_missing"

    def test_an_agent_that_flaps_is_read_whenever_it_answers(self, agent, other, tmp_path):
        clock = JumpClock()
        with opened(pdu(tmp_path, agent.port, timeout_seconds=0.1), pdu(tmp_path, other.port, "b"), clock=clock) as s:
            for _ in range(2):
                agent.is_silent = True
                until(s, lambda _: s.parts["a"] is not None)
                agent.is_silent = False
                until(s, lambda readings: "a-outlet-1" in watts(readings), clock)

    def test_one_lost_datagram_is_not_noticed(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port)) as source:
            lost = iter([True])
            agent.spoil = lambda asked, answer: [] if next(lost, False) else [answer]
            assert len(source.read()) == 2
            assert source.parts["a"] is None

    def test_a_corrected_secret_is_read_without_a_restart(self, agent, other, tmp_path):
        clock = JumpClock()
        agent.community = "better"
        config = pdu(tmp_path, agent.port, community="worse")
        with opened(config, pdu(tmp_path, other.port, "b"), clock=clock) as source:
            assert source.parts["a"].reason == "timeout"
            (tmp_path / "community-worse").write_text("better\r\n")
            until(source, lambda readings: len(readings) == 4, clock)

    def test_a_frozen_value_is_a_value(self, agent, tmp_path):
        with opened(pdu(tmp_path, agent.port)) as source:
            assert watts(source.read()) == watts(source.read())


class TestManners:
    def test_a_hung_pdu_delays_no_other(self, agent, other, tmp_path):
        slow = pdu(tmp_path, other.port, "b", timeout_seconds=3)
        with opened(pdu(tmp_path, agent.port), slow) as source:
            other.is_silent = True
            begun = time.monotonic()
            assert set(watts(source.read())) >= {"a-outlet-1"}
            assert time.monotonic() - begun < 1.5

    def test_a_pdu_that_failed_is_not_waited_for(self, agent, other, tmp_path):
        clock = JumpClock()
        failing = pdu(tmp_path, other.port, "b", timeout_seconds=0.5)
        with opened(pdu(tmp_path, agent.port, timeout_seconds=1), failing, clock=clock) as source:
            other.is_silent = True
            until(source, lambda _: source.parts["b"])
            clock.advance(100)
            begun = time.monotonic()
            assert len(source.read()) == 2
            assert time.monotonic() - begun < 0.8

    def test_a_dead_pdu_is_asked_ever_more_rarely(self, agent, other, tmp_path):
        clock = JumpClock()
        with opened(pdu(tmp_path, agent.port), pdu(tmp_path, other.port, "b", timeout_seconds=0.1), clock=clock) as s:
            other.is_silent = True
            until(s, lambda _: s.parts["b"])
            other.requests.clear()
            for _ in range(15):
                clock.advance(8)
                s.read()
                while not all(visit.done() for visit in s._visits.values()):
                    time.sleep(0.01)
            assert 4 <= len(other.requests) <= 18  # two for a visit; every time would be 30

    def test_a_slow_agent_is_asked_one_thing_at_a_time(self, agent, other, tmp_path):
        with opened(pdu(tmp_path, agent.port), pdu(tmp_path, other.port, "b", timeout_seconds=5)) as source:
            other.delay_seconds = 1.1
            for _ in range(2):
                source.read()
            assert not other.was_hurried

    def test_an_answer_that_comes_late_is_taken_with_its_own_time(self, agent, other, tmp_path):
        clock = JumpClock()
        config = pdu(tmp_path, other.port, "b", timeout_seconds=5)
        with opened(pdu(tmp_path, agent.port), config, clock=clock) as source:
            other.delay_seconds = 1.2
            assert len(source.read()) == 2
            time.sleep(0.4)
            after_ns = clock.now_ns()
            late = [reading for reading in source.read() if reading.device.startswith("b")]
            assert len(late) == 2
            assert late[0].t_ns < after_ns - 500_000_000
            assert source._visits, "the read that takes a late answer asks again"


class TestRuntime:
    def test_a_sampler_tells_devices_readings_and_parts(self, agent, tmp_path):
        config = {"interval_seconds": 0.1, "pdus": [pdu(tmp_path, agent.port, outlets=[1, 9])]}
        settings = msgspec.convert(config, SnmpPduSettings)
        batches, stop = [], threading.Event()

        def emit(batch) -> None:
            batches.append(batch)
            if batch.readings and any(report.source == "snmp_pdu/a" for each in batches for report in each.reports):
                stop.set()

        sample(SnmpPduCollector(), settings, JumpClock(), emit, stop)
        devices = {device.name for batch in batches for device in batch.devices}
        assert devices == {"a-outlet-1", "a-outlet-9"}
        assert {reading.device for batch in batches for reading in batch.readings} == {"a-outlet-1"}
        told = {report.source: report.reason for batch in batches for report in batch.reports}
        assert told == {"snmp_pdu": "", "snmp_pdu/a": "outlet_missing"}

    def test_asking_for_its_settings_loads_no_pysnmp(self):
        code = "import sys, jouled_collectors.power.snmp_pdu; sys.exit('pysnmp' in sys.modules)"
        assert run([sys.executable, "-c", code]).returncode == 0


class TestSettings:
    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"outlets": []}, "either outlets or inlets"),
            ({"inlets": [1]}, "either outlets or inlets"),
            ({"outlets": [1, 1]}, "twice"),
            ({"outlets": [1, "1"]}, "twice"),
            ({"outlets": [-1]}, "outlets"),
            ({"outlets": ["1..2"]}, "outlets"),
            ({"outlets": [True]}, "outlets"),
            ({"name": "a b"}, "letters"),
            ({"community_file": ""}, "community_file"),
            ({"version": "3"}, "user"),
            ({"version": "1"}, "version"),
            ({"version": "3", "user": "u", "privacy_key_file": "p"}, "auth_key_file"),
            ({"port": 0}, "port"),
            ({"communty_file": "x"}, "communty_file"),
        ],
    )
    def test_refused(self, tmp_path, keys, words):
        with pytest.raises(msgspec.ValidationError, match=words):
            msgspec.convert({"pdus": [pdu(tmp_path, 161, outlets=[1]) | keys]}, SnmpPduSettings)

    def test_the_same_pdu_twice_is_refused(self, tmp_path):
        for second in (pdu(tmp_path, 162, "a"), pdu(tmp_path, 161, "b")):
            with pytest.raises(msgspec.ValidationError, match="two pdus"):
                msgspec.convert({"pdus": [pdu(tmp_path, 161, "a"), second]}, SnmpPduSettings)

    def test_it_is_not_found_by_itself(self):
        with pytest.raises(msgspec.ValidationError, match="pdus"):
            msgspec.convert({}, SnmpPduSettings)
