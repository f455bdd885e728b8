"""The bench of power sources: its meters are met by the collectors, and its arithmetic."""

import tomllib
from pathlib import Path

import pytest
from bench.feeder import make_zones
from bench.power_read import Answer, Cost, answer
from bench.power_sources import NODE, Meters, configuration, p95, share, world

from jouled.app.config.load import settings_for
from jouled.app.runtime.plugins import load_plugins
from jouled_collectors.power.rapl import RaplCollector, RaplSettings


def test_every_meter_of_the_world_has_settings_that_its_collector_takes() -> None:
    collectors = load_plugins().power
    with world() as meters:
        assert set(NODE) <= meters.keys()
        for source, each in meters.items():
            settings_for(collectors[source], each.settings, "bench")


def test_each_read_is_timed_and_the_devices_are_counted(tmp_path: Path) -> None:
    make_zones(tmp_path / "class" / "powercap")
    found = answer(RaplCollector(), RaplSettings(sysfs_root=str(tmp_path)), reads=5, pace_seconds=0.01)
    assert (found.devices, found.interval_seconds, len(found.costs)) == (4, 0.1, 5)
    assert all(0 < cost.cpu_seconds < 0.1 and cost.wall_seconds > 0 for cost in found.costs)


def test_a_share_is_the_reads_at_the_default_interval_and_what_works_between_them() -> None:
    costs = [Cost(0.002, 0.1, 0.001), Cost(0.5, 0.1, 0.5), Cost(0.5, 0.1, 0.5), Cost(0.004, 0.1, 0.003)]
    assert share(Answer(10.0, 1, costs), 0) == pytest.approx(0.0003 + 0.002)


def test_p95() -> None:
    assert p95([float(number) for number in range(101)]) == 95


def test_the_daemon_is_told_the_same_settings(tmp_path: Path) -> None:
    bmcs = {"bmcs": [{"name": "b", "insecure": True, "outlets": [1, "2.14"], "timeout_seconds": 0.5}]}
    told = tomllib.loads(configuration({"redfish": Meters(1, bmcs, {})}, 9966, tmp_path))
    assert told["power"]["redfish"] == bmcs
    assert told["serve"]["listen"] == "127.0.0.1:9966"
