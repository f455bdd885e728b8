"""What survives a restart: committed books, receipts and the state to go on from, in one SQLite file."""

from jouled.outputs.store.database import StoreError
from jouled.outputs.store.history import marks_of
from jouled.outputs.store.progress import Progress, Saved
from jouled.outputs.store.published import Published, may_continue
from jouled.outputs.store.query import ReceiptQuery
from jouled.outputs.store.spool import NOTHING_OUT, DeadLetter, Limits, Outgoing, Stream, Waiting
from jouled.outputs.store.store import NO_PROGRESS, Behind, Committed, Store

__all__ = [
    "NOTHING_OUT",
    "NO_PROGRESS",
    "Behind",
    "Committed",
    "DeadLetter",
    "Limits",
    "Outgoing",
    "Progress",
    "Published",
    "ReceiptQuery",
    "Saved",
    "Store",
    "StoreError",
    "Stream",
    "Waiting",
    "marks_of",
    "may_continue",
]
