"""Fixtures that several power sources share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A root that every user can walk into (pytest's own folders are for their owner)."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        yield root
