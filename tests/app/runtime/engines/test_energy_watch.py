"""A disagreement of two meters is said once, and once that it is over."""

import logging

from jouled.app.runtime.engines.energy_watch import EnergyWatch
from jouled.model.engine import Engine
from jouled.model.snapshot import EngineView, Snapshot


def snapshot(ratio: float | None) -> Snapshot:
    return Snapshot(engines=(EngineView(engine=Engine(name="e", devices=("gpu0",)), energy_check_ratio=ratio),))


def test_one_line_for_each_change(caplog):
    watch = EnergyWatch()
    with caplog.at_level(logging.INFO):
        for ratio in (None, 1.01, 0.94, 0.80, None, 0.96, 1.0, 1.02, 1.06):
            watch.look(snapshot(ratio))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "94 % of what the meters of its devices (gpu0) tell" in said[0]
    assert "agree again" in said[1]
    assert "106 %" in said[2]
