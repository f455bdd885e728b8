"""The daemon's side of the door: what the HTTP server may ask of it."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from jouled.api import GrpcIngest, HttpIngest, Received
from jouled.app.runtime.metering import Metering
from jouled.app.runtime.power import PowerSources
from jouled.app.runtime.publisher import Publisher
from jouled.app.runtime.requests.forward import MARKER, Body, Forwarder
from jouled.app.runtime.requests.hand_over import NotKeptYetError
from jouled.app.runtime.requests.ingest import Ingest
from jouled.app.runtime.requests.pseudonyms import Pseudonyms
from jouled.model.errors import JouledError
from jouled.model.receipt import Receipt
from jouled.outputs.serve import Door
from jouled.outputs.store import ReceiptQuery, Store

STALLED_SECONDS = 10.0
"""Without a tick for so long the daemon is not healthy; one comes every second."""

_FORWARDED = "otlp"


class Front:
    """Answers for the server, out of the parts of the daemon. `is_ready` and `ticked` are set by the daemon.

    refused: what the doors refuse, counted by its reason.
    """

    def __init__(
        self,
        *,
        metering: Metering,
        publisher: Publisher,
        store: Store,
        power: PowerSources,
        ingest: Ingest,
        kept: Callable[[], Awaitable[None]],
        forget: Callable[[str], Awaitable[int]],
        forwarder: Forwarder | None,
        extra: Callable[[], Mapping[str, Any]],
        pseudonyms: Pseudonyms | None = None,
        shows_receipts: bool = True,
        refused: Counter[str] | None = None,
        off: frozenset[str] = frozenset(),
    ) -> None:
        self.is_ready = False
        self.ticked = time.monotonic()
        self._metering = metering
        self._publisher = publisher
        self._store = store
        self._power = power
        self._ingest = ingest
        self._kept = kept
        self._forget = forget
        self._forwarder = forwarder
        self._extra = extra
        self._pseudonyms = pseudonyms
        self._shows_receipts = shows_receipts
        self._off = off
        self.refused = Counter() if refused is None else refused

    def door(self, ingests: Sequence[HttpIngest], token: str | None) -> Door:
        """All of it, as the server wants it."""
        return Door(
            snapshot=lambda: self._publisher.snapshot,
            provisional=self._provisional,
            receipts=self._receipts,
            history=self._store.history,
            ingests=ingests,
            accept=lambda _receiver, received: self.accept(received),
            forward=self.forward if self._forwarder else None,
            release=self._release,
            forget=self._forget,
            extra=self._extra,
            health=self._health,
            ready=self._ready,
            token=token,
            refused=self.refused,
            off=self._off,
        )

    def _provisional(self, request_id: str) -> Receipt | None:
        if not self._shows_receipts:
            return None
        return self._metering.pipeline.provisional(self._known_as(request_id))

    async def _receipts(self, query: ReceiptQuery) -> list[Receipt]:
        if not self._shows_receipts:
            return []
        return await self._store.receipts(replace(query, id=self._known_as(query.id)))

    def _known_as(self, request_id: str) -> str:
        """The id as the books have it."""
        return self._pseudonyms.request_id(request_id) if self._pseudonyms and request_id else request_id

    async def accept(self, received: Received) -> Received:
        """Take what a receiver was told, and return when it is kept.

        Raises `JouledError` where it cannot be kept now: the sender should send it again, or not be read further;
        `NotKeptYetError` if the core has taken it.
        """
        taken = self._ingest.take(received)
        if self._metering.has_failed:
            raise JouledError("jouled ends because its books cannot be trusted any more")
        if taken.requests:
            await self._keep()
        return taken

    async def _keep(self) -> None:
        """Wait for a commit that holds what the core was fed."""
        trouble = self._publisher.trouble
        if trouble:
            raise NotKeptYetError(f"events cannot be kept now ({trouble}): send them again later", self._keep)
        try:
            await self._kept()
        except JouledError as error:
            raise NotKeptYetError(str(error), self._keep) from error

    def forward(self, receiver: HttpIngest | GrpcIngest, body: bytes, headers: Mapping[str, str]) -> None:
        """Pass a body of traces on to the other collector, if there is one; returns at once."""
        if self._forwarder is not None and receiver.name == _FORWARDED:
            content_type, encoding = headers.get("Content-Type", ""), headers.get("Content-Encoding", "")
            self._forwarder.put(Body(body, content_type, encoding, was_forwarded=MARKER in headers))

    async def _release(self, seconds: float) -> dict[str, Any]:
        return {"released": await self._power.release(seconds), "seconds": seconds}

    def _health(self) -> tuple[bool, str]:
        silent_seconds = time.monotonic() - self.ticked
        if silent_seconds > STALLED_SECONDS:
            return False, f"stalled: no tick for {silent_seconds:.0f} s"
        return True, "ok"

    def _ready(self) -> tuple[bool, str]:
        if self._publisher.trouble:
            return False, f"degraded: {self._publisher.trouble}"
        if not self.is_ready:
            return False, "starting"
        if self._publisher.snapshot.degraded:
            return False, f"degraded: {'; '.join(self._publisher.snapshot.degraded)}"
        return True, "ready"
