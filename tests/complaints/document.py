"""Writes docs/complaints.md out of the table."""

from collections.abc import Sequence

from tests.complaints.table import COMPLAINTS, ROWS, Row

_HEAD = """# What users of other meters complain of

Each complaint was raised by users of another meter of power or energy. Beside it stands the code that guards against it
here, and the test that fails without that code. `python -m tests.complaints` takes one guard at a time out of a copy of
the tree and looks whether the tests fail; what is no business of jouled's is said with its reason.

This page is written by `python -m tests.complaints --document` from `tests/complaints/table.py`.
"""


def document() -> str:
    """The page."""
    parts = [_HEAD]
    for title, numbers in COMPLAINTS.items():
        rows = [(number, row) for number, row in enumerate(ROWS, 1) if set(row.issues) & set(numbers)]
        parts += [f"\n## {title[:1].upper()}{title[1:]}\n", f"{_links(numbers)}\n"]
        parts += ["| | complaint | guard | tests that fail without it |\n|---|---|---|---|"]
        parts += [_line(number, row) for number, row in rows]
    return "\n".join(parts) + "\n"


def _line(number: int, row: Row) -> str:
    if row.guard is None:
        return f"| {number} | {row.complaint} | none: {row.outside} | |"
    code = row.guard.code.strip().splitlines()[0].strip().replace("|", "\\|")
    tests = "<br>".join(f"`{test.rpartition('::')[2]}` ({test.partition('::')[0]})" for test in row.tests)
    return f"| {number} | {row.complaint} | `{row.guard.file}`: `{code}` | {tests} |"


def _links(numbers: Sequence[str]) -> str:
    return ", ".join(f"[{issue}](https://github.com/{issue.replace('#', '/issues/')})" for issue in numbers)
