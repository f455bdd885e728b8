"""What the daemon counts of itself beside the core: reads of its samplers, refusals of its receivers, forwarding."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from jouled.app.runtime.batch import Batch
from jouled.model.snapshot import Histogram, Labels, Snapshot
from jouled.model.units import NANOSECONDS_PER_SECOND
from jouled.outputs.sinks.counts import SinkCounts

_READ_BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_LATENESS_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Distribution(Struct, kw_only=True):
    """A histogram being filled: `counts[i]` of the values in bucket i alone, the last one beyond all bounds."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "Distribution":
        """Without values."""
        return cls(bounds=bounds, counts=[0] * (len(bounds) + 1))

    def add(self, values: Iterable[float]) -> None:
        """Observe values."""
        for value in values:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def view(self) -> Histogram:
        """As the snapshot has it: cumulative."""
        running = 0
        cumulative = []
        for count in self.counts:
            running += count
            cumulative.append(running)
        return Histogram(bounds=self.bounds, counts=tuple(cumulative), sum=self.sum)


class OwnCounts(Struct, kw_only=True):
    """Committed together with the books, so that these counters go on after a restart too.

    since_ns: Unix nanoseconds at which all counters began at zero; 0 in books of versions that did not keep it.
    """

    read_seconds: Distribution
    lateness_seconds: Distribution
    rejected: dict[str, int] = {}
    forwarded: dict[str, int] = {}
    receipts_dropped: dict[str, int] = {}
    receipts_removed: dict[str, int] = {}
    restarts: dict[str, int] = {}
    http_refused: dict[str, int] = {}
    sinks: dict[str, SinkCounts] = {}
    since_ns: int = 0

    @classmethod
    def empty(cls, since_ns: int = 0) -> "OwnCounts":
        """Nothing counted yet."""
        return cls(
            read_seconds=Distribution.empty(_READ_BOUNDS),
            lateness_seconds=Distribution.empty(_LATENESS_BOUNDS),
            since_ns=since_ns,
        )

    def reads(self, batch: Batch) -> None:
        """Take the read times of a batch."""
        self.read_seconds.add(batch.read_seconds)
        self.lateness_seconds.add(batch.lateness_seconds)

    def reject(self, reason: str, records: int = 1) -> None:
        """Records were refused before they reached the core."""
        self.rejected[reason] = self.rejected.get(reason, 0) + records

    def added_to(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with these counts in it."""
        rejected = Counter(dict(snapshot.counters.get("rejected_events_total", {})))
        rejected.update({(reason,): count for reason, count in self.rejected.items()})
        counters = {**snapshot.counters, "rejected_events_total": rejected, **self._of_sinks()}
        for name, counts in (
            ("forwarded_bodies_total", self.forwarded),
            ("receipts_dropped_total", self.receipts_dropped),
            ("receipts_removed_total", self.receipts_removed),
            ("restarts_total", self.restarts),
            ("http_refused_total", self.http_refused),
        ):
            if counts:
                counters[name] = {(label,): count for label, count in counts.items()}
        histograms = {
            **snapshot.histograms,
            "source_read_duration_seconds": {(): self.read_seconds.view()},
            "sample_lateness_seconds": {(): self.lateness_seconds.view()},
        }
        success = {
            (name,): counts.last_success_ns / NANOSECONDS_PER_SECOND
            for name, counts in self.sinks.items()
            if counts.last_success_ns
        }
        gauges = {**snapshot.gauges, "sink_last_success_timestamp_seconds": success} if success else snapshot.gauges
        return replace(snapshot, counters=counters, gauges=gauges, histograms=histograms)

    def _of_sinks(self) -> dict[str, dict[Labels, float]]:
        records: dict[Labels, float] = {}
        dropped: dict[Labels, float] = {}
        failures: dict[Labels, float] = {}
        for name, counts in self.sinks.items():
            for kind, results in counts.records.items():
                records |= {(name, kind, result): number for result, number in results.items()}
            for kind, reasons in counts.dropped.items():
                dropped |= {(name, kind, reason): number for reason, number in reasons.items()}
            failures |= {(name, reason): number for reason, number in counts.failures.items()}
        return {"sink_records_total": records, "sink_failures_total": failures, "spool_dropped_total": dropped}
