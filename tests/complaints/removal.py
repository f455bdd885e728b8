"""Takes one guard at a time out of a copy of the tree and looks which tests notice.

The copy has an interpreter of its own, whose path begins with the copy: tests start child processes that get another
PYTHONPATH, and those must run the copy too.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from tests.complaints.table import Guard, Row

LIMIT_SECONDS = 300.0
"""A run of the tests of one row that takes longer is ended: the tests have seconds."""

_NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".hypothesis", ".*_cache", "__pycache__", "build", "dist")
_NAMES = "import jouled, jouled_collectors; print(jouled.__file__, jouled_collectors.__file__, sep='\\n')"


class Verdict(NamedTuple):
    """What a test said of the tree without a guard; `outcome` is `passed`, `failed`, `error` or `missing`."""

    guard: Guard
    test: str
    outcome: str

    @property
    def fails_without_guard(self) -> bool:
        """An error is no failure: a tree that cannot be imported says nothing of the guard."""
        return self.outcome == "failed"


class Copy:
    """A copy of the tree at `root`, with an interpreter that imports nothing of the product but that copy."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self._report, self._output = folder / "report.xml", folder / "output.txt"
        self._python = _interpreter(folder / "env", [root / "daemon", root / "collectors"])

    def foreign(self) -> list[str]:
        """Files of the product that are imported from elsewhere than the copy, as a test and as its child does it."""
        told = [
            subprocess.run(
                [self._python, *flags, "-c", _NAMES],
                cwd=self.root,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            for flags, environment in (([], self._environment()), (["-P"], {**self._environment(), "PYTHONPATH": ""}))
        ]
        files = [file for output in told for file in output.splitlines()]
        return [file for file in files if not Path(file).is_relative_to(self.root)]

    @contextmanager
    def without(self, guard: Guard) -> Iterator[None]:
        """The copy without a guard, for a while."""
        path = self.root / guard.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(removed(whole, guard), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(whole, encoding="utf-8")

    def outcomes(self, tests: Sequence[str]) -> dict[str, str]:
        """What these tests say now, by test; of several cases the worst counts."""
        self._report.unlink(missing_ok=True)
        self._pytest([*tests, f"--junit-xml={self._report}"])
        said: dict[str, set[str]] = {test: set() for test in tests}
        cases = ET.parse(self._report).iter("testcase") if self._report.exists() else ()
        for case in cases:
            said.setdefault(_test_of(case), set()).add(_outcome(case))
        worst = ("failed", "error", "passed")
        return {test: next((word for word in worst if word in said[test]), "missing") for test in tests}

    def last_words(self) -> str:
        """The end of what the last run printed."""
        return self._output.read_text(encoding="utf-8", errors="replace")[-2000:]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.root / "daemon"), str(self.root / "collectors")])
        # Byte code is found again by whole seconds and size: it would outlive the removal of a guard.
        return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def _pytest(self, arguments: Sequence[str]) -> None:
        command = [self._python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=30", *arguments]
        with self._output.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            with suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_SECONDS)
            # What a test leaves behind without a guard goes too: all are of one group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def removed(text: str, guard: Guard) -> str:
    """The text without the guard. Raises `ValueError` where it does not stand there exactly once."""
    if text.count(guard.code) != 1:
        raise ValueError(f"{guard.file} has {guard.code!r} {text.count(guard.code)} times, not once")
    return text.replace(guard.code, guard.instead)


@contextmanager
def copied(repository: Path) -> Iterator[Copy]:
    """A copy of the tree as it stands, changes that are not committed included."""
    with tempfile.TemporaryDirectory(prefix="jouled-complaints-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # some tests go on as another user
        shutil.copytree(repository, folder / "tree", ignore=_NOT_COPIED, symlinks=True)
        yield Copy(folder / "tree", folder)


def judge(copy: Copy, row: Row) -> list[Verdict]:
    """Take the guard of a row away and run the row's tests: all of them must fail without it."""
    if row.guard is None:
        return []
    with copy.without(row.guard):
        said = copy.outcomes(row.tests)
    return [Verdict(row.guard, test, said[test]) for test in row.tests]


def _interpreter(folder: Path, sources: Sequence[Path]) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # As plain lines: the .pth files in our own site-packages, which name this checkout, are not read.
    lines = [*sources, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (packages / "copy.pth").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / "bin" / "python"


def _test_of(case: ET.Element) -> str:
    """The id of a test, without its case; `classname` is the path with dots, and the class if there is one."""
    words = case.get("classname", "").split(".")
    is_class = bool(words) and words[-1][:1].isupper()
    file = "/".join(words[:-1] if is_class else words) + ".py"
    function = case.get("name", "").partition("[")[0]
    return "::".join([file, *(words[-1:] if is_class else ()), function])


def _outcome(case: ET.Element) -> str:
    kinds = {child.tag for child in case}
    if "failure" in kinds:
        return "failed"
    return "error" if kinds & {"error", "skipped"} else "passed"
