"""A report's figures, out of the running daemon by its Unix socket, else out of the store that it left."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from jouled.app.runtime.ask import NoDaemonError, ask
from jouled.core.accounting.epochs import Change, Changed, Span, between, last_changes
from jouled.core.accounting.report import (
    Difference,
    Requests,
    Row,
    ToldReceipt,
    Used,
    difference,
    rows_by,
    sides,
    used,
)
from jouled.model.errors import JouledError
from jouled.model.history import EngineMark, History
from jouled.outputs.store.reading import StoreReader
from jouled.outputs.store.store import FILE_NAME

PAGE = 1000
"""Receipts asked for at once; the most that the daemon gives."""


class Source(Protocol):
    """What a report reads."""

    def receipts(self, since_ns: int, until_ns: int) -> Iterator[ToldReceipt]:
        """Final receipts of requests that ended within this time. Raises `JouledError`."""
        ...

    def history(self, since_ns: int) -> History:
        """Marks and changes from a time on. Raises `JouledError`."""
        ...

    def close(self) -> None:
        """Done."""
        ...


class _Page(Struct):
    requests: list[ToldReceipt]


class RunningDaemon:
    """The daemon behind a Unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def history(self, since_ns: int) -> History:
        """Marks and changes from a time on, the books as they are now included. Raises `JouledError`."""
        return msgspec.json.decode(ask(self._socket, f"/api/v1/history?since_ns={since_ns}"), type=History)

    def receipts(self, since_ns: int, until_ns: int) -> Iterator[ToldReceipt]:
        """Final receipts of requests that ended within this time, page by page, newest first. Raises `JouledError`."""
        decoder, known = msgspec.json.Decoder(_Page), 0
        while True:
            asked = {"since_ns": since_ns, "until_ns": until_ns, "limit": PAGE, "offset": known}
            page = decoder.decode(ask(self._socket, f"/api/v1/requests?{urlencode(asked)}")).requests
            yield from page
            if len(page) < PAGE:
                return
            # The next page begins with the last one's time, of which so many are known: an offset alone would cost
            # the daemon more with every page, and shift with what comes in between.
            last_ns = page[-1].last_token_ns
            same = sum(receipt.last_token_ns == last_ns for receipt in page)
            known = same + (known if last_ns + 1 == until_ns else 0)
            until_ns = last_ns + 1

    def close(self) -> None:
        """Nothing is held."""


def open_source(socket: Path, state: Path) -> Source:
    """The daemon if one answers, else the store.

    Raises `JouledError` if neither is there.
    """
    daemon = RunningDaemon(socket)
    try:
        ask(socket, "/healthz")
    except NoDaemonError:
        if not os.path.exists(state / FILE_NAME):  # noqa: PTH110 - Path.exists() fails in a closed directory
            raise
    else:
        return daemon
    return StoreReader(state / FILE_NAME, ToldReceipt)


class Summary(Struct):
    """What was used in a time, and by whom; unreported tokens are by kind.

    A ratio is `None` without joules, and where the books have no tokens but do not reach the end of the time either.
    """

    since_ns: int
    until_ns: int
    by: str
    rows: list[Row]
    owners_joules: dict[str, float]
    unreported_tokens: dict[str, float]
    generation_tokens: float
    tokens_per_joule: float | None
    tokens_per_joule_without_idle: float | None
    is_estimated: bool


class Side(Struct):
    """One side of a comparison. Tokens and joules are all of the engine's; quantiles and attainment are of receipts.

    A prefill pool counts no generated tokens: its measure is prompt_tokens_per_joule, with idle. Ratios are `None` as
    those of `Summary` are.
    """

    since_ns: int
    until_ns: int
    prompt_tokens: float
    generation_tokens: float
    joules: float
    prompt_tokens_per_joule: float | None
    tokens_per_joule: float | None
    tokens_per_joule_without_idle: float | None
    requests: int
    joules_per_request_p50: float | None
    joules_per_request_p99: float | None
    attainment: dict[str, float]


class Comparison(Struct):
    """An engine before and after. Differences are shares of the value before."""

    engine: str
    changed: tuple[Changed, ...]
    before: Side
    after: Side
    tokens_per_joule: Difference | None
    tokens_per_joule_without_idle: Difference | None


def summarise(source: Source, span: Span, by: str) -> Summary:
    """Sums of a time by `model`, `tenant` or `engine`. Raises `JouledError` where the source cannot be read."""
    rows = rows_by(source.receipts(*span), by)
    whole = used(source.history(span.since_ns).marks, span)
    return Summary(
        since_ns=span.since_ns,
        until_ns=span.until_ns,
        by=by,
        rows=rows,
        owners_joules=whole.owners_joules,
        unreported_tokens={
            kind: whole.tokens.get(f"unreported_{kind}_tokens", 0.0) for kind in ("prompt", "generation")
        },
        generation_tokens=whole.generation_tokens,
        tokens_per_joule=_value(whole, with_idle=True),
        tokens_per_joule_without_idle=_value(whole, with_idle=False),
        is_estimated=whole.is_estimated,
    )


def compare_changes(source: Source, span: Span) -> list[Comparison]:
    """Each engine before and after its last change within a time. Raises `JouledError`, also if none has changed."""
    history = source.history(span.since_ns)
    changes = last_changes(history.changes, *span)
    if not changes:
        raise JouledError(
            "no engine has changed in this time, as far as the store knows",
            mend="Look further back with --since 7d, or compare two times: --compare 2h..1h 1h..now",
        )
    return _compare(source, history.marks, changes)


def compare_spans(source: Source, before: Span, after: Span) -> list[Comparison]:
    """Each engine in two times. Raises `JouledError`, also if nothing is known of them."""
    history = source.history(min(before.since_ns, after.since_ns))
    engines = sorted({mark.engine for mark in history.marks} - {""})
    if not engines:
        raise JouledError("nothing is known of these times", mend="Receipts and marks go with [spool] receipts_days")
    changes = [Change(name, before, after, between(history.changes, name, before, after)) for name in engines]
    return _compare(source, history.marks, changes)


def _compare(source: Source, marks: Sequence[EngineMark], changes: Sequence[Change]) -> list[Comparison]:
    spans = [(change.engine, span) for change in changes for span in (change.before, change.after)]
    since_ns, until_ns = min(span.since_ns for _, span in spans), max(span.until_ns for _, span in spans)
    requests = sides(source.receipts(since_ns, until_ns), spans)
    found = []
    for place, change in enumerate(changes):
        before, after = (used(marks, span, {change.engine}) for span in (change.before, change.after))
        ratios = [
            difference(before.tokens_per_joule(with_idle=idle), after.tokens_per_joule(with_idle=idle))
            for idle in (True, False)
        ]
        found.append(
            Comparison(
                change.engine,
                change.facts,
                _side(change.before, before, requests[2 * place]),
                _side(change.after, after, requests[2 * place + 1]),
                *ratios,
            )
        )
    return found


def _side(span: Span, whole: Used, requests: Requests) -> Side:
    return Side(
        since_ns=span.since_ns,
        until_ns=span.until_ns,
        prompt_tokens=whole.prompt_tokens,
        generation_tokens=whole.generation_tokens,
        joules=whole.joules,
        prompt_tokens_per_joule=whole.prompt_tokens_per_joule,
        tokens_per_joule=_value(whole, with_idle=True),
        tokens_per_joule_without_idle=_value(whole, with_idle=False),
        requests=len(requests.joules),
        joules_per_request_p50=requests.quantile(0.5),
        joules_per_request_p99=requests.quantile(0.99),
        attainment=requests.attainment(),
    )


def _value(whole: Used, *, with_idle: bool) -> float | None:
    ratio = whole.tokens_per_joule(with_idle=with_idle)
    return None if ratio is None else ratio.value
