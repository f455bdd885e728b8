"""From the books to what the world may see: first one synced transaction, then the snapshot.

A scrape sees committed books only. On start counters go on from the store if that is at least what was last
published; otherwise all of them start from zero (design: "Committed books only").
"""

import logging
from collections.abc import Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jouled.app.runtime.clock import ClockState
from jouled.app.runtime.own import OwnCounts
from jouled.core.books import Books
from jouled.model.errors import JouledError
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot
from jouled.outputs.store import (
    NO_PROGRESS,
    NOTHING_OUT,
    Committed,
    Outgoing,
    Progress,
    Published,
    Store,
    StoreError,
    may_continue,
)

MOST_WAITING_RECEIPTS = 20_000
"""Final receipts held while the store cannot be written, about 20 MB; older ones are dropped and counted."""
MOST_UNCOMMITTED_RECEIPTS = 200_000
"""Final receipts held while a commit is under way. Minutes of them can become final at one moment, when an engine that
was always busy comes to rest; only a commit that hangs lets more of them wait than that."""

_STORE_FAILS = "store_failing"

_log = logging.getLogger(__name__)


class Commit(Struct, kw_only=True):
    """The bytes of one commit: the core's books, the daemon's own counts, and by which clock the core went."""

    books: Books
    own: OwnCounts
    clock: ClockState | None = None


def restore(store: Store, published: Published) -> Commit | None:
    """What counters go on from; `None`: all of them start from zero."""
    committed = store.load()
    if committed is None:
        if published.read() is not None:
            _log.warning("the store is empty, though books were published before: all counters start from zero")
        return None
    if not may_continue(committed.sequence, published.read()):
        _log.warning("the store is older than what was last published: all counters start from zero")
        return None
    return _decode(committed)


def _decode(committed: Committed) -> Commit | None:
    try:
        return msgspec.msgpack.decode(committed.books, type=Commit)
    except msgspec.MsgspecError as error:
        _log.warning("the books in the store cannot be read (%s): all counters start from zero", error)
        return None


class Publisher:
    """Commits, then publishes. `snapshot` is the last one that was committed; `trouble` says why there is no newer."""

    def __init__(self, store: Store, published: Published, own: OwnCounts) -> None:
        self.snapshot = Snapshot()
        self.trouble = ""
        self._own = own
        self._store = store
        self._published = published
        self._waiting: list[Receipt] = []
        self._store_fails = False
        self._encoder = msgspec.msgpack.Encoder()

    def hold(self, receipts: Sequence[Receipt]) -> None:
        """Keep final receipts until a commit has them."""
        self._waiting += receipts
        self._drop_excess()

    def _drop_excess(self) -> None:
        excess = len(self._waiting) - (MOST_WAITING_RECEIPTS if self._store_fails else MOST_UNCOMMITTED_RECEIPTS)
        if excess > 0:
            del self._waiting[:excess]
            dropped = self._own.receipts_dropped
            dropped[_STORE_FAILS] = dropped.get(_STORE_FAILS, 0) + excess

    def forget(self, tenant: str) -> None:
        """No commit gets receipts of this tenant that no commit has yet."""
        self._waiting = [receipt for receipt in self._waiting if receipt.tenant != tenant]

    @property
    def waiting(self) -> int:
        """Receipts that no commit has yet."""
        return len(self._waiting)

    async def publish(
        self,
        commit: Commit,
        snapshot: Snapshot,
        progress: Progress = NO_PROGRESS,
        outgoing: Outgoing = NOTHING_OUT,
    ) -> bool:
        """Commit these books with the receipts held so far, then show the snapshot of the same moment.

        Returns whether the store has them.
        """
        receipts, self._waiting = self._waiting, []
        wall_ns = snapshot.t_ns + snapshot.wall_minus_core_ns
        try:
            sequence = await self._store.commit(self._encoder.encode(commit), receipts, wall_ns, progress, outgoing)
        except StoreError as error:
            self._waiting[:0] = receipts
            self._store_fails = True
            self._drop_excess()
            self._complain(error)
            # What is shown stays as it was committed; that it stands still is all there is to say.
            self.snapshot = _with_store_failing(self.snapshot, failing=True)
            return False
        self._store_fails = False
        self._count_removed()
        try:
            self._published.write(sequence)
        except OSError as error:
            self._complain(error)
            return True
        if self.trouble:
            lost = self._own.receipts_dropped.get(_STORE_FAILS, 0)
            _log.warning("books are committed again; receipts lost for want of a store so far: %d", lost)
            self.trouble = ""
        self.snapshot = _with_store_failing(replace(snapshot, sequence=sequence), failing=False)
        return True

    def _count_removed(self) -> None:
        """Take over what retention has removed; it is committed and shown with the next books."""
        for reason, number in self._store.removed.items():
            if number:
                self._own.receipts_removed[reason] = self._own.receipts_removed.get(reason, 0) + number
                self._store.removed[reason] = 0

    def _complain(self, error: JouledError | OSError) -> None:
        if not self.trouble:
            _log.error("metering goes on, but nothing new is published: %s", error)
        self.trouble = str(error)


def _with_store_failing(snapshot: Snapshot, *, failing: bool) -> Snapshot:
    value = float(failing)
    if snapshot.gauges.get("store_failing") == {(): value}:
        return snapshot
    return replace(snapshot, gauges={**snapshot.gauges, "store_failing": {(): value}})
