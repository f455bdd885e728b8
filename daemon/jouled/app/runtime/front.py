"""The daemon's side of the door: what the HTTP server may ask of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jouled.api import HttpIngest, Received
from jouled.app.runtime.forward import MARKER, Body, Forwarder
from jouled.app.runtime.ingest import Ingest
from jouled.app.runtime.metering import Metering
from jouled.app.runtime.power import PowerSources
from jouled.app.runtime.publisher import Publisher
from jouled.model.errors import JouledError
from jouled.outputs.serve import Door
from jouled.outputs.store import Store

STALLED_SECONDS = 10.0
"""Without a tick for so long the daemon is not healthy; one comes every second."""

_FORWARDED = "otlp"


class Front:
    """Answers for the server, out of the parts of the daemon. `is_ready` and `ticked` are set by the daemon."""

    def __init__(
        self,
        *,
        metering: Metering,
        publisher: Publisher,
        store: Store,
        power: PowerSources,
        ingest: Ingest,
        forwarder: Forwarder | None,
        extra: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.is_ready = False
        self.ticked = time.monotonic()
        self._metering = metering
        self._publisher = publisher
        self._store = store
        self._power = power
        self._ingest = ingest
        self._forwarder = forwarder
        self._extra = extra

    def door(self, ingests: Sequence[HttpIngest], token: str | None) -> Door:
        """All of it, as the server wants it."""
        return Door(
            snapshot=lambda: self._publisher.snapshot,
            provisional=self._metering.pipeline.provisional,
            receipts=self._store.receipts,
            ingests=ingests,
            accept=self._accept,
            forward=self._forward if self._forwarder else None,
            release=self._release,
            extra=self._extra,
            health=self._health,
            ready=self._ready,
            token=token,
        )

    async def _accept(self, _receiver: HttpIngest, received: Received) -> Received:
        taken = self._ingest.take(received)
        if self._metering.has_failed:
            raise JouledError("jouled ends because its books cannot be trusted any more")
        return taken

    def _forward(self, receiver: HttpIngest, body: bytes, headers: Mapping[str, str]) -> None:
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
