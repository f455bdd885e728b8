"""Removes a tenant's receipts: by the running daemon, or in its store while none runs."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from jouled.app.runtime.ask import NoDaemonError, ask
from jouled.outputs.store import Store
from jouled.outputs.store.store import FILE_NAME


class _Forgotten(Struct):
    forgotten: int


def forget(socket: Path, state: Path, tenant: str) -> int:
    """Remove them and say how many there were; the exit code.

    Raises `JouledError` if neither a daemon answers nor a store is there.
    """
    try:
        number = msgspec.json.decode(ask(socket, "/api/v1/forget", {"tenant": tenant}), type=_Forgotten).forgotten
    except NoDaemonError:
        if not os.path.exists(state / FILE_NAME):  # noqa: PTH110 - Path.exists() fails in a closed directory
            raise
        number = _from_store(state, tenant)
    sys.stdout.write(f"{number} receipts of tenant {tenant!r} are removed; sums that they are in stay\n")
    return 0


def _from_store(state: Path, tenant: str) -> int:
    store = Store(state)
    try:
        return asyncio.run(store.forget(tenant, with_state=True))
    finally:
        store.close()
