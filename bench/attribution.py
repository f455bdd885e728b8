"""How close receipts are to the truth, case by case: `python -m bench.attribution`, `make bench-attribution`.

Every case of bench/oracle/cases.py is simulated with as many seeds as asked for, driven through the path of
`jouled replay`, and judged: the floor by the worst seed, the goal by the median one. One JSON object a line, then a
table on standard error.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path

from bench.oracle import cases, speed, truth
from bench.oracle.cases import Case
from bench.oracle.report import rows_of, short, table
from bench.oracle.scenario import build
from bench.oracle.score import Measures
from bench.oracle.trial import measure
from bench.rows import Row, machine
from msgspec import structs

SEEDS, REQUESTS = 20, 2_000
SPEED = "speed"


def rows(trace: Path | None = None) -> Iterator[Row]:
    """Everything, with the defaults of the command line."""
    options = _parser().parse_args(["--trace", str(trace)] if trace else [])
    yield from _rows(_chosen(options), options)


def main() -> None:
    options = _parser().parse_args()
    chosen = _chosen(options)
    if options.write:
        _write(chosen, options)
    else:
        for row in _rows(chosen, options):
            print(json.dumps({**row, **machine()}, ensure_ascii=False), flush=True)


def _write(chosen: Sequence[Case], options: argparse.Namespace) -> None:
    for case in chosen:
        for seed in _seeds(case, options):
            truth.write(build(case, seed, options.requests), options.write)


def _rows(chosen: Sequence[Case], options: argparse.Namespace) -> Iterator[Row]:
    found: list[list[Row]] = []
    for case, seeds, measured in _measured(chosen, options):
        if options.per_seed:
            yield from map(partial(_seed_row, case), seeds, measured)
        found.append(list(rows_of(case, seeds, measured)))
        yield from found[-1]
    if found:
        print(table(found), file=sys.stderr)
    if SPEED in options.cases or not options.cases:
        yield from speed.rows()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.attribution", description=__doc__)
    names = ", ".join((*(case.name for case in cases.CASES), SPEED))
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help=f"only these: {names}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of each case (default {SEEDS})")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"of each seed (default {REQUESTS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes side by side")
    parser.add_argument("--trace", type=Path, help="a CSV of TIMESTAMP,ContextTokens,GeneratedTokens as a further case")
    parser.add_argument("--tell-uplift", action="store_true", help="device lines tell uplift_watts too")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write recordings and truths instead of judging")
    parser.add_argument("--per-seed", action="store_true", help="print every seed's measures too")
    return parser


def _chosen(options: argparse.Namespace) -> list[Case]:
    known = {case.name: case for case in cases.CASES}
    if unknown := set(options.cases) - known.keys() - {SPEED}:
        raise SystemExit(f"unknown case: {', '.join(sorted(unknown))}; there are {', '.join(known)}, {SPEED}")
    chosen = [known[name] for name in options.cases or known if name != SPEED]
    if options.trace:
        chosen.append(cases.of_trace(options.trace))
    if options.tell_uplift:
        chosen = [structs.replace(case, telling=structs.replace(case.telling, uplift=True)) for case in chosen]
    return chosen


def _seeds(case: Case, options: argparse.Namespace) -> list[int]:
    """Those asked for, and those that failed once, of this case or of one that is held against it."""
    drawn = range(options.first_seed, options.first_seed + options.seeds)
    held_against = (case.name, *(other.name for other in cases.CASES if other.beside == case.name))
    kept = {seed for name in held_against for seed in cases.KEPT_SEEDS.get(name, ())}
    return [*drawn, *sorted(kept.difference(drawn))]


def _measured(
    chosen: Sequence[Case], options: argparse.Namespace
) -> Iterator[tuple[Case, list[int], list[Measures]]]:  # fmt: skip
    with ProcessPoolExecutor(options.jobs) as pool:
        pending: dict[tuple[str, int], Future[Measures]] = {
            (case.name, seed): pool.submit(measure, case, seed, options.requests)
            for case in chosen
            for seed in _seeds(case, options)
        }
        for case in chosen:
            seeds = _seeds(case, options)
            yield case, seeds, [_beside(case, seed, pending) for seed in seeds]


def _beside(case: Case, seed: int, pending: dict[tuple[str, int], Future[Measures]]) -> Measures:
    """The measures of a seed, and how far its error is above that of the case which is told more."""
    measures = pending[case.name, seed].result()
    told_more = pending.get((case.beside, seed))
    if told_more is None:
        return measures
    return measures | {"wmape_above_beside": measures["wmape"] - told_more.result()["wmape"]}


def _seed_row(case: Case, seed: int, measures: Measures) -> Row:
    return {"case": case.name, "seed": seed, **{name: short(value) for name, value in measures.items()}}


if __name__ == "__main__":
    main()
