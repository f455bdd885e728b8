"""Holds what `jouled replay` says of a recording against the step table measured on the same GPU."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu_validation.recording import span_ns
from bench.gpu_validation.records import Curve, Measured, Request
from bench.gpu_validation.step_table import StepTable, fit
from bench.gpu_validation.truth import Parts, equal_split, shapley, work_between

CLASS_LIMIT, BLOCK_LIMIT, REQUEST_LIMIT, ADVANTAGE_LIMIT = 0.05, 0.05, 0.10, 1.5
"""What the method asks for on a GPU: relative errors, and how much worse 1/B(t) has to be."""
REPLAY = "import sys; from jouled.app.cli import main; sys.exit(main(sys.argv[1:]))"
REPLAY_SECONDS_MAX = 120

Receipt = Mapping[str, Any]


class Row(NamedTuple):
    """One line of the verdict; without a limit it is told, not judged."""

    name: str
    value: float
    unit: str
    limit: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Replayed:
    """What `jouled replay` gave."""

    summary: Mapping[str, Any]
    receipts: Mapping[str, Receipt]


def table_of(measured: Measured) -> StepTable:
    """The step table: static power from the idle phase, the rest from the grid."""
    curve = Curve(measured.moves)
    start_ns, end_ns = measured.idle_ns
    return fit(measured.points, curve, curve.joules(start_ns, end_ns) * 1e9 / (end_ns - start_ns))


def replay(recording: Path, receipts: Path) -> Replayed:
    """Run `jouled replay` in this interpreter's environment. Raises `RuntimeError` with what it said."""
    command = [sys.executable, "-c", REPLAY, "replay", str(recording), "--summary", "--receipts", str(receipts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_SECONDS_MAX, check=False)
    if done.returncode:
        raise RuntimeError(
            f"`jouled replay {recording}` ended with code {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    with receipts.open(encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    return Replayed(json.loads(done.stdout), {receipt["id"]: receipt for receipt in read})


def judge(measured: Measured, table: StepTable, replayed: Replayed) -> list[Row]:
    """All rows. Requests without a receipt count with 0 J, so that none is forgotten."""
    curve = Curve(measured.moves)
    truth = shapley(table, measured.requests, measured.steps)
    rows = list(_conservation(measured, replayed))
    rows.append(Row("static power, model loaded", table.static_watts, "W"))
    rows.append(Row("worst point of the grid, fit against meter", table.worst_fit, "ratio"))
    rows.extend(_blocks(measured, table, curve))
    rows.extend(_gaps(measured, curve))
    rows.extend(_classes(measured.requests, truth, replayed.receipts))
    rows.extend(_requests(measured.requests, truth, replayed.receipts, equal_split(curve, measured.requests)))
    return rows


def _conservation(measured: Measured, replayed: Replayed) -> Iterator[Row]:
    total = replayed.summary["total"]
    owners = sum(value for key, value in total.items() if key.endswith("_uj") and key != "measured_uj")
    yield _exact("books: owners and open less measured", total["measured_uj"] - owners, "µJ")
    start_ns, end_ns = span_ns(measured)
    by_time = dict(measured.moves)
    counted_uj = 1000 * (by_time[end_ns] - by_time[start_ns])
    yield _exact("measured less what the counter counted", total["measured_uj"] - counted_uj, "µJ")
    own = sum(round(receipt["joules"] * 1e6) for receipt in replayed.receipts.values())
    yield _exact(
        "receipts less the books of requests",
        own - total["prefill_uj"] - total["decode_uj"] - total["resident_uj"],
        "µJ",
    )
    missing = {request.id for request in measured.requests} ^ replayed.receipts.keys()
    yield _exact("requests without receipt, or the reverse", len(missing), "")


def _exact(name: str, value: float, unit: str) -> Row:
    return Row(name, value, unit, "0", value == 0)


def _blocks(measured: Measured, table: StepTable, curve: Curve) -> Iterator[Row]:
    """No block is in the fit: all of them are held out."""
    for block in measured.blocks:
        work = work_between(measured.requests, measured.steps, block.start_ns, block.end_ns)
        expected = table.joules((block.end_ns - block.start_ns) / 1e9, work)
        error = expected / curve.joules(block.start_ns, block.end_ns) - 1
        yield _at_most(f"{block.name}: energy by the step table", error, BLOCK_LIMIT)


def _gaps(measured: Measured, curve: Curve) -> Iterator[Row]:
    """Power between the blocks, which the idle power before the load should foretell."""
    for before, after in pairwise(measured.blocks):
        joules = curve.joules(before.end_ns, after.start_ns)
        yield Row(f"gap after {before.name}", joules * 1e9 / (after.start_ns - before.end_ns), "W")


def _classes(requests: Sequence[Request], truth: Sequence[Parts], receipts: Mapping[str, Receipt]) -> Iterator[Row]:
    def row(name: str, ours: float, theirs: float) -> Row:
        if not theirs:
            return Row(f"class {name}: joules, where the step table has none", ours, "J", "0", ours == 0)
        return _at_most(f"class {name}: joules against the step table", ours / theirs - 1, CLASS_LIMIT)

    for part in ("prefill", "decode", "resident"):
        ours = sum(_joules(receipts, request, f"joules_{part}") for request in requests)
        yield row(part, ours, sum(getattr(parts, part) for parts in truth))
    for kind in sorted({request.kind for request in requests}):
        members = [(request, parts) for request, parts in zip(requests, truth, strict=True) if request.kind == kind]
        ours = sum(_joules(receipts, request) for request, _ in members)
        yield row(kind, ours, sum(parts.total for _, parts in members))


def _requests(
    requests: Sequence[Request], truth: Sequence[Parts], receipts: Mapping[str, Receipt], equal: Sequence[float]
) -> Iterator[Row]:
    ours = [_joules(receipts, request) for request in requests]
    error = wmape(ours, [parts.total for parts in truth])
    naive = wmape(equal, [parts.total for parts in truth])
    yield _at_most("requests: wMAPE against Shapley by the step table", error, REQUEST_LIMIT)
    for part in ("prefill", "decode"):
        estimated = [_joules(receipts, request, f"joules_{part}") for request in requests]
        yield Row(
            f"requests: wMAPE of {part} alone", wmape(estimated, [getattr(parts, part) for parts in truth]), "ratio"
        )
    yield Row("requests: wMAPE of 1/B(t)", naive, "ratio")
    better = naive / error if error else float("inf")
    yield Row("requests: 1/B(t) is worse by", better, "×", f"≥ {ADVANTAGE_LIMIT}", better >= ADVANTAGE_LIMIT)


def wmape(estimated: Sequence[float], true: Sequence[float]) -> float:
    """Sum of absolute errors over the sum of what is true; infinite where nothing is."""
    return sum(abs(a - b) for a, b in zip(estimated, true, strict=True)) / sum(true) if sum(true) else inf


def _joules(receipts: Mapping[str, Receipt], request: Request, part: str = "joules") -> float:
    return float(receipts[request.id][part]) if request.id in receipts else 0.0


def _at_most(name: str, error: float, limit: float) -> Row:
    return Row(name, error, "ratio", f"± {limit:.0%}", abs(error) <= limit)


def judged(folder: Path, measured: Measured, table: StepTable, say: Callable[[str], None]) -> list[Row]:
    """Replay the folder's recording and judge it."""
    say("replaying the recording")
    return judge(measured, table, replay(folder / "recording.jsonl", folder / "receipts.jsonl"))
