"""Holds back estimating sources until it is clear that nothing is measured here."""

from collections.abc import Callable, Collection

from jouled.app.runtime.batch import Batch
from jouled.model.device import Quality
from jouled.model.errors import SourceState

DECIDE_NS = 5_000_000_000
"""Measuring sources that said nothing for so long are not waited for: their driver may hang."""


class Gate:
    """For sources that nobody configured: what only estimates is let in where no other source of them measures.

    dismiss: called for each estimating source that is not needed; it is to be ended.
    """

    def __init__(
        self,
        sources: Collection[str],
        deliver: Callable[[Batch], None],
        dismiss: Callable[[str], None],
        opened_ns: int,
    ) -> None:
        self._silent = set(sources)
        self._deliver = deliver
        self._dismiss = dismiss
        self._decide_ns = opened_ns + DECIDE_NS
        self._held: dict[str, list[Batch]] = {}
        self._measures = False
        self._lets_in: bool | None = None

    def take(self, batch: Batch) -> None:
        """Pass the batch on, hold it back, or drop it."""
        if batch.reports:
            self._silent.discard(batch.source)
        if batch.devices and all(device.quality is Quality.ESTIMATED for device in batch.devices):
            self._held.setdefault(batch.source, [])
        if batch.source not in self._held:
            self._measures = self._measures or any(report.state is SourceState.OK for report in batch.reports)
            self._deliver(batch)
        elif self._lets_in is None:
            self._held[batch.source].append(batch)
        elif self._lets_in:
            self._deliver(batch)
        else:
            self._dismiss(batch.source)

    def look(self, now_ns: int) -> None:
        """Decide, once, when a source measures, or every source has spoken, or it has taken too long."""
        if self._lets_in is not None or not (self._measures or not self._silent or now_ns > self._decide_ns):
            return
        self._lets_in = not self._measures
        for source, batches in self._held.items():
            if not self._lets_in:
                self._dismiss(source)
            for batch in batches if self._lets_in else ():
                self._deliver(batch)
            batches.clear()
