"""The table of sources."""

import pytest

from jouled.app.runtime.sources import Sources
from jouled.model.errors import SourceState
from jouled.model.readings import SourceReport

SECOND = 1_000_000_000


def report(state: SourceState, reason: str = "") -> SourceReport:
    return SourceReport(source="nvml", state=state, reason=reason, t_ns=0)


def test_silence_is_stale_and_ends_with_a_sign_of_life() -> None:
    sources = Sources()
    sources.heard("nvml", 0)
    sources.report(report(SourceState.OK))
    assert not list(sources.silent(2 * SECOND))
    [stale] = sources.silent(4 * SECOND)
    assert (stale.state, stale.reason) == (SourceState.STALE, "silent")
    sources.report(stale)
    assert not list(sources.silent(5 * SECOND)), "told once"
    sources.heard("nvml", 5 * SECOND)
    [back] = sources.silent(5 * SECOND)
    assert back.state is SourceState.OK


def test_broken_source_does_not_become_stale() -> None:
    sources = Sources()
    sources.heard("nvml", 0)
    sources.report(report(SourceState.DOWN, "gpu_lost"))
    assert not list(sources.silent(10 * SECOND))


def test_one_line_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    sources = Sources()
    for _ in range(5):
        sources.report(report(SourceState.DOWN, "gpu_lost"))
    sources.report(report(SourceState.DENIED, "permission"))
    assert len(caplog.records) == 2
    assert sources.view("nvml").state is SourceState.DENIED


def test_that_a_node_lacks_what_nobody_asked_for_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sources = Sources(tried={"nvml"})
    sources.report(report(SourceState.ABSENT, "no_driver"))
    sources.report(report(SourceState.DENIED, "permission"))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_what_the_operator_ignores_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    sources = Sources(ignored={"nvml"})
    sources.report(report(SourceState.DOWN, "no_driver"))
    sources.report(SourceReport(source="nvml/gpu1", state=SourceState.DOWN, reason="lost", t_ns=0))
    sources.report(SourceReport(source="rapl", state=SourceState.DOWN, reason="gone", t_ns=0))
    assert [record.levelname for record in caplog.records if record.levelname != "DEBUG"] == ["WARNING"]
    assert sources.view("nvml").reason == "no_driver"
