"""`jouled replay`: run a recording through the core again."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec

from jouled import __version__
from jouled.app.cli.console import config_argument, loaded, say, tell
from jouled.app.runtime.recording.replay import Replayed, replay
from jouled.model.errors import JouledError
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot
from jouled.model.units import joules

NAME = "replay"
SUMMARY = "run a recording through the core again, as fast as it goes"

COMPLAINTS_SHOWN = 1000
"""Lines told one by one; a file of garbage has any number of them. The summary counts all."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="recording: plain, .gz or .zst")
    config_argument(parser)
    parser.add_argument("--receipts", type=Path, metavar="OUT.jsonl", help="write one final receipt per request")
    parser.add_argument("--metrics", type=Path, metavar="OUT.prom", help="write the metrics page of the end")
    parser.add_argument("--summary", action="store_true", help="print the books as one JSON object")


def execute(arguments: argparse.Namespace) -> int:
    """Run it."""
    config = loaded(arguments)
    complaints = _Complaints(arguments.file)
    try:
        with ExitStack() as stack:
            out = stack.enter_context(arguments.receipts.open("wb")) if arguments.receipts else None
            replayed = replay(
                arguments.file, config.parameters(), config.engines, _ReceiptFile(out).take, complaints.take
            )
        if arguments.metrics:
            arguments.metrics.write_bytes(_page(replayed.snapshot))
    except OSError as error:
        raise JouledError(f"{error.filename or 'the output'} cannot be written: {error.strerror}") from None
    complaints.tell_rest()
    if arguments.summary:
        say(msgspec.json.encode(replayed.summary()).decode())
    tell(_in_words(replayed))
    return 0


class _ReceiptFile:
    def __init__(self, out: IO[bytes] | None) -> None:
        self._out = out
        self._encoder = msgspec.json.Encoder()

    def take(self, receipts: Sequence[Receipt]) -> None:
        if self._out:
            self._out.write(self._encoder.encode_lines(receipts))


class _Complaints:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def take(self, number: int, message: str) -> None:
        self._count += 1
        if self._count <= COMPLAINTS_SHOWN:
            tell(f"{self._path}:{number}: {message}")

    def tell_rest(self) -> None:
        if self._count > COMPLAINTS_SHOWN:
            tell(f"{self._path}: … and {self._count - COMPLAINTS_SHOWN} lines more")


def _page(snapshot: Snapshot) -> bytes:
    from jouled.outputs.metrics.exposition import Exposition, Format

    return Exposition(__version__).page(snapshot, Format.TEXT).body


def _in_words(replayed: Replayed) -> str:
    total = replayed.snapshot.total
    refused = sum(replayed.rejected.values())
    return (
        f"{replayed.requests} requests, {joules(total.measured_uj):.3f} J measured in {replayed.lines} lines, "
        f"{replayed.seconds:.2f} s; {replayed.broken_lines} lines broken, {refused} refused, "
        f"{sum(replayed.unknown_types.values())} of unknown types"
    )
