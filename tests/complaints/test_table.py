"""The table of complaints is whole and true, as far as that shows without running it; and its runner judges rightly."""

import ast
import json
from functools import cache
from pathlib import Path

import pytest
from tests.complaints.__main__ import DOCUMENT, examine, main
from tests.complaints.document import document
from tests.complaints.removal import removed
from tests.complaints.table import COMPLAINTS, ROWS, Guard, Row
from tests.support.tools import REPOSITORY

GUARDED = [row for row in ROWS if row.guard is not None]


@cache
def ids_in(file: str) -> frozenset[str]:
    """The ids of the tests in a file."""
    found = set()
    for node in ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{file}::{node.name}::" if isinstance(node, ast.ClassDef) else f"{file}::"
        found |= {
            f"{prefix}{each.name}" for each in members if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    return frozenset(found)


def test_every_issue_has_a_row_and_every_row_its_issues() -> None:
    listed = [issue for numbers in COMPLAINTS.values() for issue in numbers]
    assert len(listed) == len(set(listed))
    assert {issue for row in ROWS for issue in row.issues} == set(listed)
    assert all(row.issues for row in ROWS)


def test_every_row_has_a_guard_with_tests_or_says_why_not() -> None:
    for row in ROWS:
        assert (row.guard is None) == (not row.tests) == bool(row.outside), row.complaint
    complaints = [row.complaint for row in ROWS]
    assert len(complaints) == len(set(complaints))


@pytest.mark.parametrize("row", GUARDED, ids=lambda row: row.complaint)
def test_a_guard_stands_once_and_can_be_taken_away(row: Row) -> None:
    assert row.guard is not None
    whole = (REPOSITORY / row.guard.file).read_text(encoding="utf-8")
    assert removed(whole, row.guard) != whole
    ast.parse(removed(whole, row.guard))  # what cannot be read fails whatever the test asserts


@pytest.mark.parametrize("row", GUARDED, ids=lambda row: row.complaint)
def test_the_tests_of_a_row_exist(row: Row) -> None:
    assert [test for test in row.tests if test not in ids_in(test.partition("::")[0])] == []


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m tests.complaints --document"


@pytest.mark.parametrize("text", ["nothing here", "x = 1\nx = 1\n"])
def test_a_guard_that_does_not_stand_once_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not once"):
        removed(text, Guard("file.py", "x = 1", "x = 2"))


def test_a_row_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--only", str(len(ROWS) + 1)])
    assert caught.value.code == 2
    assert f"rows 1 to {len(ROWS)}" in capsys.readouterr().err


def small_tree(root: Path, test: str) -> None:
    """A product of one guard, and a test file."""
    for source, package in (("daemon", "jouled"), ("collectors", "jouled_collectors")):
        folder = root / source / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    (root / "daemon/jouled/bounds.py").write_text("def is_power(watts):\n    return 0.0 <= watts <= 1000.0\n")
    (root / "tests").mkdir()
    (root / "tests/test_bounds.py").write_text(f"from jouled.bounds import is_power\n\n\ndef test_it():\n    {test}\n")


GUARD = Guard("daemon/jouled/bounds.py", "0.0 <= watts <= 1000.0", "True")


@pytest.mark.parametrize(
    ("test", "instead", "code", "fails"),
    [
        ("assert not is_power(65535.0)", "True", 0, True),
        ("assert is_power(1.0)", "True", 1, False),
        ("assert is_power(-1.0)", "True", 1, None),
        ("assert not is_power(65535.0)", "True\n\n\nraise OSError", 1, False),
    ],
    ids=["sees it", "sees nothing", "fails anyway", "only cannot be imported"],
)
def test_the_runner_tells_a_test_that_sees_the_guard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], test: str, instead: str, code: int, fails: bool | None
) -> None:
    small_tree(tmp_path, test)
    row = Row("Impossible watts.", ("a/b#1",), GUARD._replace(instead=instead), ("tests/test_bounds.py::test_it",))
    assert examine(tmp_path, [row]) == code
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["fails_without_guard"] for line in said] == ([] if fails is None else [fails])
    assert all(line["guard"] == GUARD.file and line["test"] == row.tests[0] for line in said)


def test_the_runner_refuses_a_product_that_is_not_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_tree(tmp_path, "assert not is_power(65535.0)")
    (tmp_path / "daemon/jouled/__init__.py").write_text("__file__ = '/elsewhere/jouled/__init__.py'\n")
    assert examine(tmp_path, [Row("Impossible watts.", ("a/b#1",), GUARD, ("tests/test_bounds.py::test_it",))]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert "imported from elsewhere than the copy: /elsewhere/jouled/__init__.py" in told.err
