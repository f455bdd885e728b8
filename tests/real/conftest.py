"""The one run that all checks of this folder look at, and the table of what they found."""

from pathlib import Path

import pytest
from tests.real.scenario import Observed, observe

_FIGURES = pytest.StashKey[dict[str, object]]()


@pytest.fixture(scope="session")
def observed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Observed:
    """The whole run, some five minutes."""
    return observe(tmp_path_factory.mktemp("real"), wheel)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, object]:
    """Figures by name, shown as a table at the end."""
    return request.config.stash.setdefault(_FIGURES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    found = config.stash.get(_FIGURES, {})
    if not found:
        return
    terminalreporter.section("beside a real engine")
    width = max(map(len, found))
    for name, value in found.items():
        terminalreporter.line(f"{name:{width}}  {value}")
