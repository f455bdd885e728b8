"""Which of the sources that nobody configured are used."""

import pytest

from jouled.app.runtime.batch import Batch
from jouled.app.runtime.gate import DECIDE_NS, Gate
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceState
from jouled.model.readings import SourceReport


def said(source: str, state: SourceState, quality: Quality | None = None) -> Batch:
    device = Device(name=source, kind=DeviceKind.CPU_PACKAGE, quality=quality or Quality.MEASURED)
    report = SourceReport(source=source, state=state, t_ns=0)
    return Batch(source=source, boot_ns=0, wall_ns=0, devices=[device] if quality else [], reports=[report])


class Desk:
    def __init__(self, *sources: str) -> None:
        self.delivered: list[str] = []
        self.dismissed: list[str] = []
        self.gate = Gate(sources, lambda batch: self.delivered.append(batch.source), self.dismissed.append, 0)


def test_estimate_is_dismissed_where_something_measures() -> None:
    desk = Desk("rapl", "estimate")
    desk.gate.take(said("estimate", SourceState.OK, Quality.ESTIMATED))
    desk.gate.look(0)
    assert not desk.dismissed, "rapl has not spoken"
    desk.gate.take(said("rapl", SourceState.OK, Quality.MEASURED))
    desk.gate.look(0)
    assert (desk.delivered, desk.dismissed) == (["rapl"], ["estimate"])


def test_estimate_is_let_in_where_nothing_measures() -> None:
    desk = Desk("rapl", "estimate")
    desk.gate.take(said("estimate", SourceState.OK, Quality.ESTIMATED))
    desk.gate.take(said("rapl", SourceState.ABSENT))
    desk.gate.look(0)
    assert (desk.delivered, desk.dismissed) == (["rapl", "estimate"], [])
    desk.gate.take(Batch(source="estimate", boot_ns=0, wall_ns=0))
    assert desk.delivered[-1] == "estimate"


@pytest.mark.parametrize(("now_ns", "delivered"), [(DECIDE_NS, []), (DECIDE_NS + 1, ["estimate"])])
def test_a_source_that_hangs_is_not_waited_for(now_ns: int, delivered: list[str]) -> None:
    desk = Desk("nvml", "estimate")
    desk.gate.take(said("estimate", SourceState.OK, Quality.ESTIMATED))
    desk.gate.look(now_ns)
    assert desk.delivered == delivered


def test_late_estimate_is_dismissed_too() -> None:
    desk = Desk("rapl", "estimate")
    desk.gate.take(said("rapl", SourceState.OK, Quality.MEASURED))
    desk.gate.look(0)
    desk.gate.take(said("estimate", SourceState.OK, Quality.ESTIMATED))
    assert (desk.delivered, desk.dismissed) == (["rapl"], ["estimate"])
