"""What comes from outside: profiles of users, numbers of agents, and any bytes in place of an SNMP answer."""

import contextlib
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.mutate import mutants
from tests.support.snmp_pdu_agent import Agent
from tests.support.snmp_pdu_opening import JumpClock, opened, pdu, secure_pdu, until, watts

from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.snmp_pdu_client import Unreadable
from jouled_collectors.power.snmp_pdu_plan import Meter
from jouled_collectors.power.snmp_pdu_profile import SHIPPED, EnergyColumn, PowerColumn, Profile, candidates, load
from jouled_collectors.power.snmp_pdu_values import (
    NoValueError,
    checked_digits,
    microjoules,
    watts_of,
    wrap_microjoules,
)

POWER = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7"
CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus" / "snmp"
ANY_INTEGER = st.integers(-(2**70), 2**70)

OWN = """
name = "delta"
vendor = "Delta"
source = "the manual"
match = ["1.3.6.1.4.1.2254"]
[outlets.power]
oid = "1.3.6.1.4.1.2254.2.32.{index}"
watts = 0.1
verified = true
"""


def seeds(version: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir()) if version in path.name]


class TestNumbers:
    @given(ANY_INTEGER, st.integers(0, 6), st.sampled_from([0.1, 1, 10]))
    def test_power_is_a_number_of_watts_or_absent(self, raw, digits, scale):
        try:
            told = watts_of(PowerColumn(oid="1.1.{index}", watts=scale), raw, digits)
        except NoValueError:
            assert raw < 0 or raw in {0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF}
        else:
            assert told >= 0
            assert told == pytest.approx(raw * scale / 10**digits)

    @given(st.integers(0, 2**32 - 2).filter(lambda raw: raw != 0x7FFFFFFF), st.sampled_from([1, 3600, 360_000]))
    def test_energy_is_exact_and_keeps_its_order(self, raw, joules):
        column = EnergyColumn(oid="1.1.{index}", joules=joules)
        exact = raw * joules * 1_000_000
        if exact >= 2**63:
            with pytest.raises(NoValueError, match="more than any socket"):
                microjoules(column, raw)
        else:
            assert microjoules(column, raw) == exact

    def test_a_range_that_the_books_cannot_hold_is_none(self):
        assert wrap_microjoules(EnergyColumn(oid="1.1.{index}", joules=1)) == 2**32 * 1_000_000
        assert wrap_microjoules(EnergyColumn(oid="1.1.{index}", joules=3600)) is None

    def test_sentinels_of_the_profile(self):
        with pytest.raises(NoValueError, match="9999"):
            watts_of(PowerColumn(oid="1.1.{index}", invalid=(9999,)), 9999)
        with pytest.raises(NoValueError):
            microjoules(EnergyColumn(oid="1.1.{index}"), 0xFFFFFFFF)
        assert microjoules(EnergyColumn(oid="1.1.{index}"), 0xFFFF) == 65_535 * 3_600_000_000

    def test_a_counter_of_64_bits_does_not_wrap(self):
        assert wrap_microjoules(EnergyColumn(oid="1.1.{index}", wraps_at=None)) is None

    @given(ANY_INTEGER)
    def test_digits(self, raw):
        try:
            assert 0 <= checked_digits(raw) <= 6
        except NoValueError:
            assert not 0 <= raw <= 6

    @given(
        st.dictionaries(
            st.sampled_from(["1.1.7", "1.2.7", "1.9"]), st.one_of(ANY_INTEGER, st.builds(Unreadable, st.text()))
        ),
        st.booleans(),
    )
    def test_any_answer_gives_a_reading_or_a_reason(self, answers, energy):
        kind = EnergyColumn if energy else PowerColumn
        column = kind(oid="1.1.{index}", available_oid="1.2.{index}")
        device = Device(name="a-outlet-7", kind=DeviceKind.OUTLET)
        meter = Meter(id="7", device=device, column=column, index="7")
        with contextlib.suppress(NoValueError):
            assert isinstance(meter.reading(answers, 5), EnergyReading if energy else PowerReading)


class TestProfiles:
    def test_the_example_is_a_profile_and_never_found_by_itself(self):
        profiles = load("")
        assert profiles["example"].outlets.energy.wraps_at == 9_999_001
        assert "example" not in [profile.name for profile in candidates(profiles, "1.3.6.1.4.1.99999")]

    def test_an_own_profile_is_added_and_read(self, tmp_path):
        (tmp_path / "delta.toml").write_text(OWN)
        agent = Agent({"1.3.6.1.4.1.2254.2.32.4": 4321}, "1.3.6.1.4.1.2254.2")
        with opened(pdu(tmp_path, agent.port, outlets=[4]), profiles_directory=str(tmp_path)) as source:
            assert watts(source.read()) == {"a-outlet-4": 432.1}
            assert (source.devices[0].vendor, source.devices[0].method) == ("Delta", "snmp_power")
        agent.close()

    def test_an_own_profile_replaces_a_shipped_one(self, tmp_path):
        (tmp_path / "mine.toml").write_text(OWN.replace('"delta"', '"apc_rpdu2"'))
        profiles = load(str(tmp_path))
        assert profiles["apc_rpdu2"].vendor == "Delta"
        assert len(profiles) == len(load(""))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (("watts = 0.1", "watts = 0"), "watts"),
            (("watts = 0.1", "wats = 0.1"), "wats"),
            (("{index}", "{outlet}"), "oid"),
            (('vendor = "Delta"', ""), "vendor"),
            (("1.3.6.1.4.1.2254.2", "enterprises.2254"), "oid"),
            (("[outlets.power]", "[outlets.power"), "TOML|Expected"),
        ],
    )
    def test_what_is_no_profile_names_file_and_key(self, tmp_path, change, words):
        (tmp_path / "delta.toml").write_text(OWN.replace(*change))
        with pytest.raises(SourceError, match=rf"delta\.toml is no profile: .*({words})") as caught:
            load(str(tmp_path))
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "bad_profile")
        assert "example.toml" in caught.value.mend

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(SourceError, match="nowhere") as caught:
            load(str(tmp_path / "nowhere"))
        assert caught.value.reason == "profiles_unreadable"

    def test_any_bytes_are_a_profile_or_a_sentence(self, tmp_path):
        for body in mutants([path.read_bytes() for path in SHIPPED.iterdir()], 100, seed=1):
            (tmp_path / "fuzz.toml").write_bytes(body)
            with contextlib.suppress(SourceError):
                assert all(isinstance(profile, Profile) for profile in load(str(tmp_path)).values())

    def test_the_longest_beginning_wins_and_numbers_are_whole(self):
        profiles = load("")
        assert [profile.name for profile in candidates(profiles, "1.3.6.1.4.1.318.1.3.4.6")] == [
            "apc_rpdu2",
            "apc_rpdu1",
            "apc_easy",
        ]
        assert candidates(profiles, "1.3.6.1.4.1.1718.4")[0].name == "servertech_sentry4"
        assert candidates(profiles, "1.3.6.1.4.1.1718.40") == []
        assert candidates(profiles, "") == []


class TestWire:
    """Datagrams to the real pysnmp: nothing crashes, hangs or is believed that is no answer."""

    def test_garbage_before_the_answer_does_no_harm(self, tmp_path):
        agent = Agent({f"{POWER}.1": 455, f"{POWER}.2": 461})
        dice = random.Random(1)
        agent.spoil = lambda asked, answer: [*(dice.randbytes(dice.randrange(1, 90)) for _ in range(20)), answer]
        with opened(pdu(tmp_path, agent.port, timeout_seconds=1)) as source:
            for _ in range(5):
                assert watts(source.read()) == {"a-outlet-1": 455, "a-outlet-2": 461}
        agent.close()

    @pytest.mark.parametrize("version", ["v2c", "v3"])
    def test_changed_answers(self, tmp_path, version):
        agent = Agent({f"{POWER}.1": 455, f"{POWER}.2": 461})
        steady = Agent({f"{POWER}.1": 1, f"{POWER}.2": 2})
        changed = mutants(seeds(version), 10**9, seed=2)
        dice = random.Random(3)

        def spoil(_asked: bytes, answer: bytes) -> list[bytes]:
            [ours] = mutants([answer], 1, seed=dice.randrange(2**32))
            return [*(next(changed) for _ in range(20)), ours, answer]

        agent.spoil = spoil
        clock = JumpClock()
        kinds = {"v2c": pdu, "v3": secure_pdu}
        config = kinds[version](tmp_path, agent.port, "b", timeout_seconds=0.1)
        with opened(config, pdu(tmp_path, steady.port, "a", timeout_seconds=1), clock=clock) as source:
            for _ in range(25):
                clock.advance(60)
                begun = time.monotonic()
                told = watts(source.read())
                assert time.monotonic() - begun < 3
                assert told.get("a-outlet-1", 1) == 1
                assert all(isinstance(value, float) and value >= 0 for value in told.values())
            until(source, lambda readings: watts(readings).get("a-outlet-1") == 1, clock)
            if version == "v2c":
                agent.spoil = None
                until(source, lambda readings: watts(readings).get("b-outlet-1") == 455, clock)
        agent.close()
        steady.close()
