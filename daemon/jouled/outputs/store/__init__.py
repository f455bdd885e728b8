"""What survives a restart: committed books and receipts, in one SQLite file."""

from jouled.outputs.store.database import StoreError
from jouled.outputs.store.published import Published, may_continue
from jouled.outputs.store.query import ReceiptQuery
from jouled.outputs.store.store import Committed, Store

__all__ = ["Committed", "Published", "ReceiptQuery", "Store", "StoreError", "may_continue"]
