"""What the log says of events that are missing."""

import logging

import pytest

from jouled.app.runtime.coverage import CoverageWatch
from jouled.model.engine import Engine
from jouled.model.snapshot import EngineView, Snapshot


def snapshot(coverage: float | None, requests: int = 5, engine: str = "chat") -> Snapshot:
    return Snapshot(
        engines=(EngineView(engine=Engine(name=engine), coverage=coverage),),
        counters={"requests_total": {("chat", "m", "completed"): requests}},
    )


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_each_change_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = CoverageWatch()
    for coverage in (None, 1.0, 0.9, 0.899, 0.416, 0.92, 0.5, None, 0.949, 0.95, 1.0, 0.3):
        watch.look(snapshot(coverage))
    assert [(record.levelname, record.getMessage()[:45]) for record in caplog.records] == [
        ("WARNING", "engine chat: events tell of 89 % of its token"),
        ("INFO", "engine chat: events tell of 95 % of its token"),
        ("WARNING", "engine chat: events tell of 30 % of its token"),
    ]
    assert "let the collector forward before sampling" in caplog.records[0].getMessage()


def test_an_engine_that_sends_no_events_is_not_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    watch = CoverageWatch()
    watch.look(snapshot(0.0, requests=0))
    watch.look(snapshot(0.0, engine="other"))
    assert not caplog.records


def test_an_engine_that_went_and_came_back_is_told_of_anew(caplog: pytest.LogCaptureFixture) -> None:
    watch = CoverageWatch()
    for seen in (snapshot(0.5), Snapshot(), snapshot(0.5)):
        watch.look(seen)
    assert len(caplog.records) == 2
