"""What may live beside the daemon."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot


class Companion(Protocol):
    """Something that lives beside the daemon and adds figures to its page, as the demo's grading does."""

    async def run(self, snapshot: Callable[[], Snapshot]) -> None:
        """Live until cancelled; `snapshot` gives the last published one."""
        ...

    def take(self, receipts: Sequence[Receipt]) -> None:
        """See receipts that have become final."""
        ...

    def extra(self) -> Mapping[str, Any]:
        """Figures for the page."""
        ...
