"""What is shipped: exactly the two packages, complete, with entry points that lead somewhere."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.support.tools import REPOSITORY

ROOTS = (REPOSITORY / "daemon", REPOSITORY / "collectors")

LOAD_ENTRY_POINTS = """
import importlib.metadata, sys
[distribution] = importlib.metadata.distributions(name="jouled", path=[sys.argv[1]])
for point in distribution.entry_points:
    loaded = point.load()
    module = sys.modules[loaded.__module__.partition(".")[0]]
    assert module.__file__.startswith(sys.argv[1]), (point, module.__file__)
    print(point.group, point.name, getattr(loaded, "name", point.name))
"""


def shipped(wheel: Path) -> set[str]:
    names = set(zipfile.ZipFile(wheel).namelist())
    return {name for name in names if ".dist-info/" not in name}


def test_the_wheel_holds_exactly_the_two_packages(wheel: Path) -> None:
    assert {name.partition("/")[0] for name in shipped(wheel)} == {"jouled", "jouled_collectors"}


def test_the_bare_folder_names_cannot_be_imported() -> None:
    assert not [root / "__init__.py" for root in ROOTS if (root / "__init__.py").exists()]


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    files = {path.relative_to(root).as_posix() for root in ROOTS for path in root.rglob("*") if path.is_file()}
    source = {name for name in files if "__pycache__" not in name and not name.endswith(".pyc")}
    assert shipped(wheel) == source
    assert {"jouled/py.typed", "jouled_collectors/py.typed"} <= source
    assert any(name.startswith("jouled/outputs/serve/") and name.endswith(".html") for name in source)


def test_entry_points_lead_into_the_wheel(installed_wheel: Path) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_ENTRY_POINTS, str(installed_wheel)],
        env={**os.environ, "PYTHONPATH": str(installed_wheel)},
        cwd=installed_wheel,
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = {tuple(line.split()) for line in loaded.stdout.splitlines()}
    # A collector goes by its entry point's name: that is what stands in the configuration.
    assert lines == {
        ("console_scripts", "jouled", "jouled"),
        *((group, name, name) for group, points in project["entry-points"].items() for name in points),
    }


def test_the_version_is_written_down_once_more_and_agrees() -> None:
    import jouled

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert jouled.__version__ == project["version"]
