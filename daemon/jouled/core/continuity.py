"""Going on after a restart where the last commit was: a checkpoint of the whole core, and the inputs since."""

from collections.abc import Iterable

import msgspec

from jouled.core.books import Books
from jouled.core.identity import Admission
from jouled.core.journal import replay
from jouled.core.pipeline import Pipeline
from jouled.core.state import Frozen, StateError, freeze, thaw
from jouled.model.parameters import Parameters

AFRESH = (Admission,)
"""What is remembered of half an hour of requests is large, and follows from open requests and stored receipts."""


def checkpoint(pipeline: Pipeline, version: str) -> Frozen:
    """A copy of the core as it is now. Raises `StateError` if something in it cannot be saved."""
    return freeze(pipeline, version, afresh=AFRESH)


def resume(
    state: bytes, journals: Iterable[bytes], *, version: str, parameters: Parameters, committed: Books
) -> Pipeline:
    """The core as it was when `committed` were its books: from a checkpoint, by the inputs of every commit since.

    Raises:
        StateError: the state cannot be used, or does not lead to the committed books.
    """
    pipeline = thaw(state, version)
    if not isinstance(pipeline, Pipeline):
        raise StateError("is none of the core")
    if pipeline.parameters != parameters:
        raise StateError("is of another configuration")
    pipeline.remember_waiting()
    try:
        for journal in journals:
            replay(journal, pipeline)
            pipeline.books()  # as every commit did: accounts of new groups begin with it
    except Exception as error:
        raise StateError(f"has inputs that cannot be taken again ({type(error).__name__}: {error})") from error
    if pipeline.is_degraded:
        raise StateError("has an engine in quarantine")
    if _as_stored(pipeline.books()) != committed:
        raise StateError("does not lead to the committed books")
    return pipeline


def _as_stored(books: Books) -> Books:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(books), type=Books)
