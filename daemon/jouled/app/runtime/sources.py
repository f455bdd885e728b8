"""What the sources of the node are doing: their state, and since when each was heard."""

import logging
from collections.abc import Collection, Iterator

from jouled.model.errors import SourceState
from jouled.model.readings import SourceReport
from jouled.model.snapshot import SourceView

STALE_NS = 3_000_000_000
"""A sampler that said nothing for this long is stale; it gives a sign of life every 1.5 s."""

_log = logging.getLogger(__name__)


class Sources:
    """A table of sources, filled by their reports. One line is logged for each change of state.

    ignored: sources of which the operator does not want to hear in the log. tried: sources that nobody asked for; that
    the node does not have one of them is no trouble.
    """

    def __init__(self, ignored: Collection[str] = (), tried: Collection[str] = ()) -> None:
        self._ignored = ignored
        self._tried = tried
        self._views: dict[str, SourceView] = {}
        self._heard_ns: dict[str, int] = {}

    def report(self, report: SourceReport) -> None:
        """Take a report."""
        before = self._views.get(report.source)
        self._views[report.source] = SourceView(
            source=report.source, state=report.state, reason=report.reason, message=report.message, mend=report.mend
        )
        if before is None or (before.state, before.reason) != (report.state, report.reason):
            level = logging.INFO if report.state in {SourceState.OK, SourceState.RELEASED} else logging.WARNING
            if report.state is SourceState.ABSENT and report.source in self._tried:
                level = logging.INFO
            if report.source.partition("/")[0] in self._ignored:
                level = logging.DEBUG
            _log.log(level, "source %s is %s%s", report.source, report.state, _because(report))

    def heard(self, source: str, t_ns: int) -> None:
        """The source's sampler lived at this core time."""
        self._heard_ns[source] = t_ns

    def silent(self, now_ns: int) -> Iterator[SourceReport]:
        """A report for each source that worked and has fallen silent, or is heard again."""
        for source, heard_ns in self._heard_ns.items():
            view = self._views.get(source)
            is_silent = now_ns - heard_ns > STALE_NS
            if view is None or is_silent == (view.state is SourceState.STALE):
                continue
            if is_silent and view.state is SourceState.OK:
                message = f"nothing heard for {(now_ns - heard_ns) / 1e9:.0f} s"
                yield SourceReport(
                    source=source, state=SourceState.STALE, reason="silent", message=message, t_ns=now_ns
                )
            elif not is_silent:
                yield SourceReport(source=source, state=SourceState.OK, t_ns=now_ns)

    def view(self, source: str) -> SourceView | None:
        """The source now; `None` before its first report."""
        return self._views.get(source)


def _because(report: SourceReport) -> str:
    mend = f". {report.mend}" if report.mend else ""
    return f" ({report.reason}): {report.message}{mend}" if report.reason else ""
