"""The node's meters over restarts: what was used while nobody looked is booked once, and no absence is a window."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.scenario import PARAMETERS, SECOND, START, gpu
from tests.core.test_restart import Daemon, stored

from jouled.core.ledger import residual
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.readings import EnergyReading, PowerReading

A, B = (Device(name=name, kind=DeviceKind.OUTLET, source="snmp_pdu", parent="feed") for name in ("a", "b"))
PSU = Device(name="psu", kind=DeviceKind.PSU, source="ipmi")
BMC = Device(name="bmc", kind=DeviceKind.NODE, source="redfish")
GPU = gpu(0)
DEVICES = {device.name: device for device in (A, B, PSU, BMC, GPU)}
WATTS = {"a": 250, "b": 250, "psu": 500, "bmc": 500, "gpu0": 300}


class Host:
    """A daemon on a node of 500 W, second by second; `gauges` are meters that tell power only."""

    def __init__(self, *names: str, gauges: tuple[str, ...] = (), pace: int = 1) -> None:
        self.names, self.gauges, self.pace = names, gauges, pace
        self.daemon = Daemon()
        self.named: set[str] = set()
        self.second = 0
        self.node_uj = 0

    def live(self, seconds: int, silent: frozenset[str] | set[str] = frozenset()) -> int:
        """Time goes on; returns the growth of the boundary `node`, which must be neither negative nor too much."""
        begun_uj = self.node_uj
        for _ in range(seconds):
            for name in self.names:
                if name not in silent and (name != "bmc" or self.second % self.pace == 0):
                    self._read(name)
            self.daemon.advance(START + self.second * SECOND)
            self.daemon.commit()
            counters = self.daemon.pipeline.snapshot(START + self.second * SECOND).counters
            now_uj = counters.get("boundary_energy_joules_total", {}).get(("node",), 0)
            assert self.node_uj <= now_uj <= 500 * self.second * 10**6, f"second {self.second}"
            self.node_uj = now_uj
            self.second += 1
        return self.node_uj - begun_uj

    def _read(self, name: str) -> None:
        if name not in self.named:
            self.named.add(name)
            self.daemon.feed(DEVICES[name])
        t_ns, watts = START + self.second * SECOND, WATTS[name]
        if name in self.gauges:
            self.daemon.feed(PowerReading(name, t_ns, float(watts)))
        else:
            self.daemon.feed(EnergyReading(name, t_ns, watts * self.second * 10**6))

    def restart(self, away: int) -> None:
        """Stop in order, come back later."""
        self.daemon.checkpoint()
        self.daemon.committed = stored(self.daemon.pipeline.books())
        self.daemon.die_and_return()
        self.second += away
        self.daemon.pipeline.come_back(START + self.second * SECOND)
        self.daemon.commits = 0
        self.named.clear()

    def upgrade(self, away: int) -> None:
        """Another version comes back: it knows the books only."""
        books = stored(self.daemon.pipeline.books())
        self.daemon = Daemon()
        self.daemon.pipeline = Pipeline(PARAMETERS, books)
        self.second += away
        self.named.clear()


def test_a_meter_that_is_gone_after_a_restart_ends_nothing_and_counts_on_when_it_is_back():
    host = Host("bmc", "gpu0")
    host.live(100)
    host.restart(10)
    assert host.live(90, {"bmc"}) == 0
    snapshot = host.daemon.pipeline.snapshot(START + host.second * SECOND)
    assert "bmc" not in {view.device.name for view in snapshot.meters}, "after a minute it is forgotten"
    assert host.live(100) == 200 * 500 * 10**6, "its counter tells of all the time"


def test_downtime_is_forgotten_with_the_meter_that_told_it():
    host = Host("bmc", "gpu0")
    host.live(50)
    host.restart(50)
    host.live(50)
    host.restart(10)
    host.live(90, {"bmc"})
    assert host.live(100) == 200 * 500 * 10**6


@pytest.mark.parametrize("way", ["restart", "upgrade"])
def test_two_outlets_that_come_back_one_after_the_other_tell_all_of_the_downtime(way):
    host = Host("a", "b")
    host.live(50)
    getattr(host, way)(50)
    host.live(3, {"b"})
    host.live(50)
    assert host.node_uj == pytest.approx(500 * (host.second - 1) * 10**6, abs=3 * 250 * 10**6)


@pytest.mark.parametrize("late", [1, 3, 40])
def test_outlets_that_come_back_behind_the_bmc_tell_the_downtime_once(late):
    host = Host("a", "b", "bmc", gauges=("bmc",))
    host.live(50)
    host.restart(50)
    host.live(late, {"a", "b"})
    host.live(50)
    assert host.node_uj == pytest.approx(500 * (host.second - 1) * 10**6, abs=2 * 500 * 10**6)


def test_a_meter_that_was_silent_before_the_stop_tells_no_downtime_of_the_node():
    host = Host("psu", "bmc")
    host.live(5)
    host.live(40, {"psu"})
    host.restart(10)
    assert host.live(60) == pytest.approx(500 * 70 * 10**6, abs=12 * 500 * 10**6), "`live` holds it to the truth"


def test_a_reboot_long_ago_does_not_hide_the_downtime_of_later_restarts():
    host = Host("gpu0")
    host.live(20)
    host.restart(10)
    host.daemon.pipeline.hardware_restarted()
    host.live(20)
    assert host.daemon.pipeline.snapshot(START + host.second * SECOND).total.downtime_uj == 0
    host.restart(10)
    host.live(20)
    assert host.daemon.pipeline.snapshot(START + host.second * SECOND).total.downtime_uj == 11 * 300 * 10**6


AWAY = st.tuples(st.sampled_from(["restart", "upgrade"]), st.sets(st.sampled_from(sorted(WATTS))), st.integers(1, 120))
SILENT = st.tuples(st.just("live"), st.sets(st.sampled_from(sorted(WATTS))), st.integers(1, 90))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([("bmc",), ("a", "b"), ("a", "b", "bmc"), ("psu", "bmc"), ("a", "b", "psu", "bmc")]),
    st.lists(AWAY | SILENT, max_size=6),
    st.sampled_from([(), ("bmc",), ("a", "b")]),
    st.sampled_from([1, 7, 20]),
)
def test_no_order_of_silences_and_absences_books_a_joule_twice_or_takes_one_back(names, events, gauges, pace):
    host = Host(*names, gauges=gauges, pace=pace)
    host.live(5)
    for what, silent, seconds in events:
        if what == "live":
            host.live(seconds, silent)
        else:
            getattr(host, what)(seconds)
            host.live(1, silent)
    host.live(100)
    assert host.live(60) >= (60 - 3 * pace) * 500 * 10**6, "whatever was, it counts on"


def test_the_time_away_makes_no_windows_and_no_calibration():
    host = Host("bmc", "gpu0")
    host.live(600)
    host.restart(1800)
    host.live(300)
    windows = host.daemon.pipeline._live.residual.windows
    assert len(windows) > 9
    assert {window.parts_uj for window in windows} == {60 * 300 * 10**6}
    assert {window.residual_uj for window in windows} == {60 * 200 * 10**6}


def test_a_week_away_is_passed_at_once(monkeypatch):
    """Every window asks for the best lag, which takes half a millisecond: ten thousand of them hold up the daemon."""
    host = Host("bmc", "gpu0")
    host.live(600)
    host.restart(7 * 86_400)
    asked = []
    monkeypatch.setattr(residual, "best_lag_seconds", lambda *args: asked.append(args) or args[-1])
    host.live(100)
    assert 0 < len(asked) < 100
