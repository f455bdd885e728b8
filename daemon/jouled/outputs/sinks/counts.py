"""What became of the records of one sink; committed together with the books."""

from collections.abc import Mapping

from msgspec import Struct

from jouled.model.points import Kind


class SinkCounts(Struct, kw_only=True):
    """Counters of one sink.

    records: by stream and result (accepted; rejected; repeated: taken before, and sent again behind an outage).
    dropped: by stream and reason, what limits took away before the sink had it. failures: deliveries of which nothing
    was taken, by reason. last_success_ns: Unix nanoseconds of the last delivery that was taken, 0 before the first.
    """

    records: dict[str, dict[str, int]] = {}
    dropped: dict[str, dict[str, int]] = {}
    failures: dict[str, int] = {}
    last_success_ns: int = 0

    def taken(self, kind: Kind, results: Mapping[str, int], wall_ns: int) -> None:
        """A delivery was taken; results: number of its records by result."""
        totals = self.records.setdefault(kind, {})
        for result, number in results.items():
            if number:
                totals[result] = totals.get(result, 0) + number
        self.last_success_ns = wall_ns

    def failed(self, reason: str) -> None:
        """Nothing of a delivery was taken."""
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def lost(self, kind: Kind, reason: str, number: int) -> None:
        """Records were removed before the sink had them."""
        reasons = self.dropped.setdefault(kind, {})
        reasons[reason] = reasons.get(reason, 0) + number
