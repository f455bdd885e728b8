"""What the server is given by the composition root; it reaches for nothing else."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jouled.api import HttpIngest, Received
from jouled.model.history import History
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot
from jouled.outputs.store import ReceiptQuery


@dataclass(frozen=True, kw_only=True)
class Door:
    """Everything behind the server.

    snapshot: the last committed one. provisional: a request that is not final yet, by response id or bare
    X-Request-Id. receipts: final receipts from the store. history: marks and changes from a time on, `None`: none
    are kept. accept: hands what was decoded to the core and returns what
    was really taken, with rejections added. forward: passes a raw body with its headers on; returns at once.
    release: lets go of the devices for so many seconds. forget: removes a tenant's receipts, returns how many.
    extra: more for the page, such as the demo's grading. health, ready: whether, and a sentence why. token: asked of
    every sender, if set. refused: what the server refused, counted by reason; it fills it. off: families that the page
    leaves out.
    """

    snapshot: Callable[[], Snapshot]
    provisional: Callable[[str], Receipt | None]
    receipts: Callable[[ReceiptQuery], Awaitable[list[Receipt]]]
    ingests: Sequence[HttpIngest]
    accept: Callable[[HttpIngest, Received], Awaitable[Received]]
    forward: Callable[[HttpIngest, bytes, Mapping[str, str]], None] | None
    release: Callable[[float], Awaitable[dict[str, Any]]]
    forget: Callable[[str], Awaitable[int]]
    extra: Callable[[], Mapping[str, Any]]
    health: Callable[[], tuple[bool, str]]
    ready: Callable[[], tuple[bool, str]]
    token: str | None
    refused: Counter[str] = field(default_factory=Counter)
    off: frozenset[str] = frozenset()
    history: Callable[[int], Awaitable[History]] | None = None
