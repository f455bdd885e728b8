"""The RAPL collector over a fake powercap tree of plain files."""

import errno
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.collectors.power.clocks import StepClock
from tests.support.unprivileged import unprivileged

from jouled.api import PowerSource
from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading
from jouled_collectors.power.rapl import RaplCollector, RaplSettings
from jouled_collectors.power.sysfs_source import RETRY_NS

RANGE_UJ = 262_143_328_850


def make_zone(root: Path, zone: str, name: str, microjoules: int = 1_000, **files: object) -> Path:
    """A zone as the kernel lays it out: a child lies inside its parent."""
    parts = zone.split(":")
    folder = root / "class" / "powercap" / Path(*[":".join(parts[:end]) for end in range(2, len(parts) + 1)])
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "energy_uj": microjoules, "max_energy_range_uj": RANGE_UJ, "enabled": 1} | files
    for file, value in content.items():
        (folder / file).write_text(f"{value}\n")
    return folder


def two_sockets(root: Path) -> None:
    for socket in (0, 1):
        make_zone(root, f"intel-rapl:{socket}", f"package-{socket}", 10 + socket)
        make_zone(root, f"intel-rapl:{socket}:0", "core", 1)
        make_zone(root, f"intel-rapl:{socket}:1", "uncore", 2)
        make_zone(root, f"intel-rapl:{socket}:2", "dram", 20 + socket, max_energy_range_uj=65_712_999_613)


def open_source(root: Path, clock: StepClock | None = None, **options: object) -> PowerSource:
    config = msgspec.convert({"sysfs_root": str(root), **options}, RaplSettings)
    return RaplCollector().open(config, clock or StepClock())


def microjoules(source: PowerSource) -> dict[str, int]:
    return {one.device: one.microjoules for one in source.read() if isinstance(one, EnergyReading)}


class TestZones:
    def test_packages_and_their_memory_each_once(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        source = open_source(tmp_path)
        assert [(device.name, device.kind) for device in source.devices] == [
            ("cpu0", DeviceKind.CPU_PACKAGE),
            ("dram0", DeviceKind.DRAM),
            ("cpu1", DeviceKind.CPU_PACKAGE),
            ("dram1", DeviceKind.DRAM),
        ]
        assert microjoules(source) == {"cpu0": 10, "dram0": 20, "cpu1": 11, "dram1": 21}
        source.close()

    def test_a_device_says_how_it_is_read(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        make_zone(tmp_path, "intel-rapl:0", "package-0", constraint_0_power_limit_uw=350_000_000)
        source = open_source(tmp_path)
        package, memory = source.devices[:2]
        assert (package.source, package.method, package.quality) == ("rapl", "rapl_package", Quality.MEASURED)
        assert package.wrap_microjoules == RANGE_UJ
        assert package.max_watts == 350.0
        assert memory.method == "rapl_dram"
        assert memory.wrap_microjoules == 65_712_999_613
        assert memory.max_watts is None
        assert memory.parent == ""
        source.close()

    def test_dies_are_counted_one_by_one(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0-die-0")
        make_zone(tmp_path, "intel-rapl:1", "package-0-die-1")
        make_zone(tmp_path, "intel-rapl:1:0", "dram")
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu0-die0", "cpu0-die1", "dram0-die1"]
        source.close()

    def test_the_platform_is_skipped_beside_a_package(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0")
        make_zone(tmp_path, "intel-rapl:1", "psys")
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu0"]
        source.close()

    def test_the_platform_is_never_added_to_dies(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "psys", 60_293_987_000_000, max_energy_range_uj=4_294_967_295_000_000)
        make_zone(tmp_path, "intel-rapl:0:0", "dram")
        make_zone(tmp_path, "intel-rapl:1", "package-0-die-0")
        make_zone(tmp_path, "intel-rapl:2", "package-0-die-1")
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu0-die0", "cpu0-die1"]
        source.close()

    @pytest.mark.parametrize("enabled", [0, "", None])
    def test_enabled_tells_of_the_limit_and_not_of_the_counter(self, tmp_path: Path, enabled: object) -> None:
        folder = make_zone(tmp_path, "intel-rapl:0", "package-0", 9, enabled=enabled)
        if enabled is None:
            (folder / "enabled").unlink()
        source = open_source(tmp_path)
        assert microjoules(source) == {"cpu0": 9}
        source.close()

    def test_memory_that_is_not_metered_is_said_once_and_is_not_zero(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0")
        make_zone(tmp_path, "intel-rapl:0:0", "core")
        clock = StepClock()
        with caplog.at_level("INFO"):
            source = open_source(tmp_path, clock)
            for _ in range(4):
                clock.advance(31)
                assert set(microjoules(source)) == {"cpu0"}
        assert [record.getMessage() for record in caplog.records] == [
            "RAPL has no zone for memory here: the power of DRAM is not measured"
        ]
        assert source.parts == {}
        source.close()

    def test_nothing_is_said_where_memory_is_metered(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        two_sockets(tmp_path)
        with caplog.at_level("INFO"):
            open_source(tmp_path).close()
        assert not caplog.records

    def test_the_platform_stands_for_the_node_without_a_package(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "psys", 77)
        source = open_source(tmp_path)
        assert [(device.name, device.kind) for device in source.devices] == [("psys", DeviceKind.NODE)]
        assert microjoules(source) == {"psys": 77}
        source.close()

    def test_mmio_shows_the_same_package_again(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0", 5)
        make_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 6)
        source = open_source(tmp_path)
        assert microjoules(source) == {"cpu0": 5}
        source.close()

    def test_zones_listed_beside_their_parent_are_not_counted_again(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        powercap = tmp_path / "class" / "powercap"
        (powercap / "intel-rapl:0:2").symlink_to(powercap / "intel-rapl:0" / "intel-rapl:0:2")
        (powercap / "intel-rapl").mkdir()
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu0", "dram0", "cpu1", "dram1"]
        source.close()

    def test_children_listed_only_beside_their_parent(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0")
        child = make_zone(tmp_path, "intel-rapl:0:0", "dram")
        child.rename(tmp_path / "class" / "powercap" / "intel-rapl:0:0")
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu0", "dram0"]
        source.close()

    def test_two_zones_of_one_name_are_counted_once(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0", 5)
        make_zone(tmp_path, "intel-rapl:1", "package-0", 6)
        source = open_source(tmp_path)
        assert microjoules(source) == {"cpu0": 5}
        source.close()

    def test_package_15_is_a_package(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:7", "package-15")
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu15"]
        source.close()

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.binary(max_size=40), child=st.binary(max_size=40))
    def test_no_zone_name_stops_the_others(self, tmp_path: Path, name: bytes, child: bytes) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0")
        odd = make_zone(tmp_path, "intel-rapl:1", "")
        (odd / "name").write_bytes(name)
        inner = make_zone(tmp_path, "intel-rapl:0:0", "")
        (inner / "name").write_bytes(child)
        source = open_source(tmp_path)
        assert source.devices[0].name == "cpu0"
        source.close()

    @pytest.mark.parametrize("stray", ["intel-rapl:x", "intel-rapl:0:0:0", "dtpm", "intel-rapl:"])
    def test_stray_entries_are_passed_over(self, tmp_path: Path, stray: str) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0")
        (tmp_path / "class" / "powercap" / stray).mkdir()
        (tmp_path / "class" / "powercap" / "uevent").write_text("")
        source = open_source(tmp_path)
        assert [device.name for device in source.devices] == ["cpu0"]
        source.close()

    @pytest.mark.parametrize("told", ["0", "", "many", "-5"])
    def test_a_range_that_is_none_is_absent(self, tmp_path: Path, told: str) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0", max_energy_range_uj=told)
        source = open_source(tmp_path)
        assert source.devices[0].wrap_microjoules is None
        source.close()


class TestReads:
    def test_the_counter_as_it_is_wraps_included(self, tmp_path: Path) -> None:
        folder = make_zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1)
        source = open_source(tmp_path)
        assert microjoules(source) == {"cpu0": RANGE_UJ - 1}
        (folder / "energy_uj").write_text("17\n")
        assert microjoules(source) == {"cpu0": 17}
        source.close()

    def test_two_wraps_between_two_reads_do_not_happen(self) -> None:
        fastest_wrap_seconds = 65_536 / 500
        assert fastest_wrap_seconds / 2 > RETRY_NS / 1e9 + 30
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"interval_seconds": 30.1}, RaplSettings)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("60293987000000", "beyond_range"),
            (str(RANGE_UJ + 1), "beyond_range"),
            ("18446744073709551615", "beyond_range"),
            ("-1", "negative"),
            ("N/A", "garbage"),
            ("", "garbage"),
            ("1_000", "garbage"),
        ],
    )
    def test_what_is_no_energy_is_left_out_and_told(self, tmp_path: Path, content: str, reason: str) -> None:
        two_sockets(tmp_path)
        source = open_source(tmp_path)
        energy = tmp_path / "class" / "powercap" / "intel-rapl:1" / "energy_uj"
        assert source.parts == {}
        energy.write_text(content)
        assert set(microjoules(source)) == {"cpu0", "dram0", "dram1"}
        assert (source.parts["cpu1"].state, source.parts["cpu1"].reason) == (SourceState.DOWN, reason)
        assert str(energy) in source.parts["cpu1"].message
        energy.write_text(f"{RANGE_UJ}\n")
        assert microjoules(source)["cpu1"] == RANGE_UJ
        assert source.parts == {"cpu1": None}
        source.close()

    def test_zones_numbered_anew_are_followed_by_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        two_sockets(tmp_path)
        source = open_source(tmp_path)
        powercap = tmp_path / "class" / "powercap"
        stale = {int(path.name) for path in open_descriptors() if powercap in path.resolve().parents}
        shutil.rmtree(powercap)
        make_zone(tmp_path, "intel-rapl:0", "package-1", 101)
        make_zone(tmp_path, "intel-rapl:1", "package-0", 100)
        make_zone(tmp_path, "intel-rapl:1:0", "dram", 200)
        pread = os.pread

        def gone(descriptor: int, size: int, offset: int) -> bytes:
            if descriptor in stale:
                stale.discard(descriptor)
                raise OSError(errno.ENODEV, "No such device")
            return pread(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", gone)
        assert microjoules(source) == {"cpu0": 100, "dram0": 200, "cpu1": 101}
        assert source.parts["dram1"].reason == "unreadable"
        source.close()

    def test_a_zone_that_appears_later(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0", 10)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        make_zone(tmp_path, "intel-rapl:0:0", "dram", 20)
        clock.advance(30)
        assert microjoules(source) == {"cpu0": 10, "dram0": 20}
        assert [device.name for device in source.devices] == ["cpu0", "dram0"]
        source.close()

    def test_stamped_at_the_middle_of_each_read(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        clock = StepClock(step_ns=10)
        source = open_source(tmp_path, clock)
        clock.time_ns = 5_000
        assert [reading.t_ns for reading in source.read()] == [5_005, 5_015, 5_025, 5_035]
        source.close()

    def test_the_grid_is_the_default_interval(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        default, configured = open_source(tmp_path), open_source(tmp_path, interval_seconds=2)
        assert (default.interval_seconds, configured.interval_seconds) == (0.1, 2.0)
        default.close()
        configured.close()

    @pytest.mark.parametrize("code", [errno.ENODEV, errno.EIO, errno.ESTALE])
    def test_a_stale_descriptor_is_opened_again_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        two_sockets(tmp_path)
        source = open_source(tmp_path)
        failures = [OSError(code, os.strerror(code))]
        pread = os.pread

        def stale_once(descriptor: int, size: int, offset: int) -> bytes:
            if failures:
                raise failures.pop()
            return pread(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", stale_once)
        assert microjoules(source) == {"cpu0": 10, "dram0": 20, "cpu1": 11, "dram1": 21}
        source.close()

    def test_a_vanished_zone_leaves_the_others_alone_and_returns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        two_sockets(tmp_path)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        gone = tmp_path / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
        descriptors = {path.stat().st_ino: int(path.name) for path in open_descriptors()}
        stale, pread = descriptors[gone.stat().st_ino], os.pread

        def vanished(descriptor: int, size: int, offset: int) -> bytes:
            if descriptor == stale:
                raise OSError(errno.ENODEV, "No such device")
            return pread(descriptor, size, offset)

        gone.rename(gone.with_name("aside"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", vanished)
            assert set(microjoules(source)) == {"dram0", "cpu1", "dram1"}
        gone.with_name("aside").rename(gone)
        assert set(microjoules(source)) == {"dram0", "cpu1", "dram1"}
        clock.advance(30)
        assert set(microjoules(source)) == {"cpu0", "dram0", "cpu1", "dram1"}
        source.close()

    def test_a_file_without_a_number_is_left_out_of_this_read_only(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        source = open_source(tmp_path)
        energy = tmp_path / "class" / "powercap" / "intel-rapl:1" / "energy_uj"
        for text in ("", "nonsense\n", "12.5\n"):
            energy.write_text(text)
            assert set(microjoules(source)) == {"cpu0", "dram0", "dram1"}
        energy.write_text("12\n")
        assert microjoules(source)["cpu1"] == 12
        source.close()

    def test_all_zones_gone_is_the_source_down(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_zone(tmp_path, "intel-rapl:0", "package-0")
        source = open_source(tmp_path)
        (tmp_path / "class" / "powercap" / "intel-rapl:0" / "energy_uj").unlink()

        def gone(*_: object) -> bytes:
            raise OSError(errno.ENODEV, "No such device")

        monkeypatch.setattr(os, "pread", gone)
        for _ in range(2):
            with pytest.raises(SourceError) as caught:
                source.read()
            assert caught.value.state is SourceState.DOWN
        source.close()

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        two_sockets(tmp_path)
        before = open_descriptors()
        source = open_source(tmp_path)
        assert len(open_descriptors()) == len(before) + 4
        source.close()
        assert open_descriptors() == before


def open_descriptors() -> list[Path]:
    """The listing's own descriptor is closed again, so it no longer exists."""
    return sorted(path for path in Path("/proc/self/fd").iterdir() if path.exists())


class TestPermission:
    def test_denied_says_the_exact_mend(self, open_root: Path) -> None:
        two_sockets(open_root)
        for energy in open_root.rglob("energy_uj"):
            energy.chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(SourceError) as caught:
            open_source(open_root)
        assert (caught.value.state, caught.value.reason) == (SourceState.DENIED, "permission")
        assert str(open_root / "class/powercap/intel-rapl:0/energy_uj") in caught.value.message
        for part in (
            "/etc/udev/rules.d/90-jouled-powercap.rules",
            'SUBSYSTEM=="powercap"',
            "udevadm trigger --subsystem-match=powercap",
            "AmbientCapabilities=CAP_DAC_READ_SEARCH",
        ):
            assert part in caught.value.mend

    def test_granted_afterwards_it_opens(self, open_root: Path) -> None:
        make_zone(open_root, "intel-rapl:0", "package-0", 9)
        energy = open_root / "class/powercap/intel-rapl:0/energy_uj"
        energy.chmod(0)
        with unprivileged(), pytest.raises(SourceError):
            open_source(open_root)
        energy.chmod(0o444)
        with unprivileged():
            source = open_source(open_root)
            assert microjoules(source) == {"cpu0": 9}
        source.close()

    def test_one_denied_zone_leaves_the_others_alone(self, open_root: Path) -> None:
        two_sockets(open_root)
        (open_root / "class/powercap/intel-rapl:0/intel-rapl:0:2/energy_uj").chmod(0)
        with unprivileged():
            source = open_source(open_root)
            assert set(microjoules(source)) == {"cpu0", "cpu1", "dram1"}
        assert (source.parts["dram0"].state, source.parts["dram0"].reason) == (SourceState.DENIED, "permission")
        assert "udevadm trigger" in source.parts["dram0"].mend
        source.close()

    def test_a_zone_that_may_not_be_listed_still_counts_itself(self, open_root: Path) -> None:
        two_sockets(open_root)
        (open_root / "class/powercap/intel-rapl:0").chmod(0o111)
        with unprivileged():
            source = open_source(open_root)
            assert set(microjoules(source)) == {"cpu0", "cpu1", "dram1"}
        source.close()


class TestAbsent:
    def test_no_powercap_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError) as caught:
            open_source(tmp_path)
        assert caught.value.state is SourceState.ABSENT
        assert str(tmp_path / "class" / "powercap") in caught.value.message
        assert "modprobe" in caught.value.mend

    def test_no_zone_that_counts(self, tmp_path: Path) -> None:
        make_zone(tmp_path, "intel-rapl:0", "something")
        with pytest.raises(SourceError) as caught:
            open_source(tmp_path)
        assert caught.value.state is SourceState.ABSENT


def test_the_collector_is_a_thread() -> None:
    assert (RaplCollector.name, RaplCollector.isolation) == ("rapl", "thread")
    assert RaplCollector.settings_type is RaplSettings


@pytest.mark.parametrize("wrong", [{"interval_seconds": 31}, {"interval_seconds": -1}, {"root": "/sys"}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, RaplSettings)
