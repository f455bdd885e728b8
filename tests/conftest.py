"""Fixtures that several packages of tests share."""

import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.tools import REPOSITORY, run

collect_ignore = ["examples"]
"""Packages of their own: tests/testing/test_harness.py installs them and runs their tests."""


WHOLE_DAEMONS = {"e2e", "faults"}
"""Folders whose tests give up by their own waits, each with a word of what it waited for, before the runner does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give whole daemons the time that they need on a machine that others keep busy."""
    for item in items:
        if item.path.parent.name in WHOLE_DAEMONS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, REPOSITORY], timeout_seconds=55
    )
    assert built.returncode == 0, built.stdout
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as in site-packages."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
