"""`python -m tests.complaints`: does each test fail without its guard? A JSON line for each, 1 if one does not."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.complaints.document import document
from tests.complaints.removal import Copy, copied, judge
from tests.complaints.table import ROWS, Row
from tests.support.tools import REPOSITORY

DOCUMENT = REPOSITORY / "docs/complaints.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.complaints", description=__doc__)
    parser.add_argument("--only", metavar="N", type=int, action="append", help="only this row of the table, from 1 on")
    parser.add_argument("--document", action="store_true", help=f"write {DOCUMENT.relative_to(REPOSITORY)} and end")
    options = parser.parse_args(arguments)
    if options.document:
        DOCUMENT.write_text(document(), encoding="utf-8")
        return 0
    unknown = [number for number in options.only or () if not 1 <= number <= len(ROWS)]
    if unknown:
        parser.error(f"the table has rows 1 to {len(ROWS)}")
    numbers = options.only or range(1, len(ROWS) + 1)
    return examine(REPOSITORY, [ROWS[number - 1] for number in numbers])


def examine(repository: Path, rows: Sequence[Row]) -> int:
    """Take away each row's guard in a copy of `repository`; 0 if every test fails without its guard."""
    guarded = [row for row in rows if row.guard is not None]
    with copied(repository) as copy:
        trouble = _trouble(copy, guarded)
        for line in trouble:
            sys.stderr.write(f"{line}\n")
        if trouble:
            return 1
        all_fail = True
        for row in guarded:
            for verdict in judge(copy, row):
                told = {
                    "complaint": row.complaint,
                    "guard": verdict.guard.file,
                    "test": verdict.test,
                    "fails_without_guard": verdict.fails_without_guard,
                }
                sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
                sys.stdout.flush()
                if not verdict.fails_without_guard:
                    all_fail = False
                    sys.stderr.write(f"{verdict.outcome} without its guard: {verdict.test}\n{copy.last_words()}\n")
    return 0 if all_fail else 1


def _trouble(copy: Copy, rows: Sequence[Row]) -> list[str]:
    """Why the copy as it is says nothing: it is not what runs, or tests do not pass in it."""
    foreign = [f"this is imported from elsewhere than the copy: {file}" for file in copy.foreign()]
    tests = list(dict.fromkeys(test for row in rows for test in row.tests))
    said = copy.outcomes(tests) if tests and not foreign else {}
    failing = [f"{outcome} with all guards in place: {test}" for test, outcome in said.items() if outcome != "passed"]
    return [*foreign, *failing, *([copy.last_words()] if failing else ())]


if __name__ == "__main__":
    sys.exit(main())
