"""What the answers of AMD SMI mean, and what they must never do."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.model.errors import SourceState
from jouled_collectors.power import amd_errors, amd_values
from jouled_collectors.power.amd_errors import DRIVER_NOT_LOADED, NO_PERMISSION, AmdError, closed_nodes, source_error
from jouled_collectors.power.amd_library import rocm_version
from jouled_collectors.power.amd_meters import disagree, is_frozen
from jouled_collectors.power.amd_values import Sample

ALL_ONES = [0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers()),
    st.sampled_from(ALL_ONES), st.just(10**400),
)  # fmt: skip


class TestEnergy:
    @pytest.mark.parametrize("resolution", [15.3, 15.300000190734863, 15.259, 15.2587890625])
    def test_a_tick_is_two_to_the_minus_sixteen_joules(self, resolution: float) -> None:
        answer = {"energy_accumulator": 65536 * 1000, "counter_resolution": resolution, "timestamp": 7}
        assert amd_values.energy(answer) == Sample(1_000_000_000, 7)

    def test_another_resolution_is_taken_as_it_is(self) -> None:
        answer = {"energy_accumulator": 1000, "counter_resolution": 0.5, "timestamp": 7}
        assert amd_values.energy(answer) == Sample(500, 7)

    def test_the_key_before_rocm_6_4(self) -> None:
        answer = {"power": 8152136, "counter_resolution": 15.300000190734863, "timestamp": 3824190842400799}
        assert amd_values.energy(answer) == Sample(124_391_723, 3824190842400799)

    def test_large_counters_stay_exact(self) -> None:
        answer = {"energy_accumulator": 2**58 + 65536, "counter_resolution": 15.3, "timestamp": 0}
        assert amd_values.energy(answer) == Sample((2**42 + 1) * 1_000_000, None)

    @pytest.mark.parametrize(
        "ticks", [0, -1, "N/A", None, math.nan, True, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 2**62, 2**70, 1.5]
    )
    def test_no_counter(self, ticks: object) -> None:
        assert amd_values.energy({"energy_accumulator": ticks, "counter_resolution": 15.3, "timestamp": 7}) is None

    @pytest.mark.parametrize("resolution", [0, -15.3, "N/A", None, math.nan, math.inf, 1e30])
    def test_no_resolution(self, resolution: object) -> None:
        assert amd_values.energy({"energy_accumulator": 5, "counter_resolution": resolution, "timestamp": 7}) is None

    @given(st.one_of(anything, st.fixed_dictionaries({}, optional=dict.fromkeys(
        ("energy_accumulator", "power", "counter_resolution", "timestamp"), anything))))  # fmt: skip
    def test_any_answer_is_a_counter_or_none(self, answer: object) -> None:
        told = amd_values.energy(answer)
        assert told is None or (isinstance(told.amount, int) and told.amount >= 0)


class TestPower:
    def test_watts(self) -> None:
        assert amd_values.power({"current_socket_power": 750}, "current_socket_power") == Sample(750.0)

    @pytest.mark.parametrize("told", [0, -5, "N/A", None, math.nan, math.inf, True, *ALL_ONES, 0x10000])
    def test_what_is_no_power(self, told: object) -> None:
        assert amd_values.power({"current_socket_power": told}, "current_socket_power") is None

    @given(anything)
    def test_any_answer_is_a_power_or_none(self, told: object) -> None:
        for answer in (told, {"current_socket_power": told}):
            power = amd_values.power(answer, "current_socket_power")
            assert power is None or 0 < power.amount < 0xFFFF

    @pytest.mark.parametrize(
        ("told", "watts"),
        [
            (750_000_000, 750.0),
            (750, 750.0),
            (99_999, None),
            (100_000, 0.1),
            (0, None),
            (0xFFFF, None),
            (0xFFFFFFFF, None),
            (0xFFFFFFFFFFFFFFFF, None),
            ("N/A", None),
            (10**400, None),
        ],
    )
    def test_caps_in_both_units(self, told: object, watts: float | None) -> None:
        assert amd_values.cap_watts(told) == watts

    @given(anything)
    def test_any_cap_is_watts_or_none(self, told: object) -> None:
        cap = amd_values.cap_watts(told)
        assert cap is None or 0 < cap < 0xFFFF


class TestText:
    @pytest.mark.parametrize(
        ("told", "text"), [("N/A", ""), (" MI300X ", "MI300X"), ("", ""), (None, ""), (7, ""), (b"x", "")]
    )
    def test_descriptions(self, told: object, text: str) -> None:
        assert amd_values.text(told) == text


class TestTrial:
    @pytest.mark.parametrize(
        ("joules", "seconds", "gauge", "lies"),
        [
            (75.0, 0.1, 750.0, False),
            (10.0, 0.1, 750.0, False),
            (75.0, 0.1, 100.0, False),
            (0.0, 0.1, 30.0, True),
            (0.75, 0.1, 750.0, True),
            (7500.0, 0.1, 750.0, True),
            (-5.0, 0.1, 750.0, True),
        ],
    )
    def test_a_counter_is_held_against_the_gauge(self, joules: float, seconds: float, gauge: float, lies: bool) -> None:
        assert disagree(Sample(5_000_000), Sample(5_000_000 + joules * 1e6), seconds, Sample(gauge)) is lies

    def test_frozen_is_the_same_block_again(self) -> None:
        assert is_frozen(Sample(5, 7), Sample(5, 7))
        assert not is_frozen(Sample(5, 7), Sample(5, 8))
        assert not is_frozen(Sample(5, 7), Sample(6, 7))
        assert not is_frozen(Sample(5), Sample(5)), "without a time stamp nobody knows"


class TestPermissions:
    @pytest.fixture
    def dev(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "dri").mkdir()
        for name in ("kfd", "dri/card0", "dri/renderD128", "dri/renderD129"):
            (tmp_path / name).touch()
        monkeypatch.setattr(amd_errors, "DEV", tmp_path)
        return tmp_path

    @pytest.fixture
    def closed(self, dev: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """As root, whom no file refuses, the tests would see all of them open."""
        monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "renderD129")
        return dev / "dri" / "renderD129"

    def test_open_files_are_no_reason(self, dev: Path) -> None:
        assert closed_nodes(dev) == []
        assert source_error(AmdError("amdsmi_init", 43, "x")).reason == "amdsmi_43"
        assert amd_errors.no_gpu().reason == "no_gpu"

    def test_other_makes_render_nodes_are_no_reason(self, closed: Path) -> None:
        (closed.parent.parent / "kfd").unlink()
        assert closed_nodes(closed.parent.parent) == []

    @pytest.mark.parametrize("code", [NO_PERMISSION, 12, 43])
    def test_a_closed_file_explains_any_failure(self, closed: Path, code: int) -> None:
        error = source_error(AmdError("amdsmi_init", code, "x"))
        assert (error.state, error.reason) == (SourceState.DENIED, "no_permission")
        assert str(closed) in error.message
        assert "SupplementaryGroups=render video" in error.mend
        assert "usermod -aG render,video" in error.mend

    def test_no_gpu_to_see_is_denied_too(self, closed: Path) -> None:
        assert amd_errors.no_gpu().state is SourceState.DENIED

    def test_a_driver_that_is_not_loaded_stays_one(self, closed: Path) -> None:
        assert source_error(AmdError("amdsmi_init", DRIVER_NOT_LOADED, "x")).reason == "driver_not_loaded"


class TestRocmVersion:
    @pytest.mark.parametrize(
        ("text", "version"),
        [("7.0.2-56\n", (7, 0, 2)), ("6.3", (6, 3, 0)), ("", ()), ("seven", ()), ("7" * 5000, ())],
    )
    def test_versions(self, tmp_path: Path, text: str, version: tuple[int, ...]) -> None:
        (tmp_path / ".info").mkdir()
        (tmp_path / ".info" / "version").write_text(text)
        assert rocm_version(tmp_path) == version

    def test_none(self, tmp_path: Path) -> None:
        assert rocm_version(tmp_path) == ()
