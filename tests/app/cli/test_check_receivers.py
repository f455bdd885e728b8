"""What `jouled check` says of followed folders and of queues that are emptied."""

import os
from pathlib import Path

import pytest

from jouled.app.cli.check_receivers import look_at_receivers, receiver_lines
from jouled.app.config import Config
from jouled.app.runtime.plugins import Plugins, load_plugins
from jouled.model.errors import ConfigurationError


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def said(plugins: Plugins, **tables: dict[str, object]) -> str:
    return "\n".join(receiver_lines(look_at_receivers(Config(receivers=tables), plugins, "c.toml")))


def test_nothing_is_said_of_what_is_off(plugins: Plugins) -> None:
    assert said(plugins, sglang_export={}, tensorrt_llm_records={"tokens_per_block": 64}) == ""


def test_a_folder_that_can_be_read(plugins: Plugins, tmp_path: Path) -> None:
    (tmp_path / "sglang-request-metrics-20261126_20.log").touch()
    (tmp_path / "other.log").touch()
    text = said(plugins, sglang_export={"directory": str(tmp_path)})
    assert "sglang_export        ok" in text
    assert "1 files" in text


@pytest.mark.parametrize("wrong", ["missing", "a file"])
def test_a_folder_that_is_none(plugins: Plugins, tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "export"
    if wrong == "a file":
        folder.touch()
    text = said(plugins, sglang_export={"directory": str(folder)})
    assert "unusable" in text
    assert "mend" in text


def test_files_that_may_not_be_read(plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sglang-request-metrics-20261126_20.log").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "may not be read" in said(plugins, sglang_export={"directory": str(tmp_path)})


def test_a_queue_that_is_emptied(plugins: Plugins) -> None:
    text = said(plugins, tensorrt_llm_records={"own": True})
    assert "empties /perf_metrics of every tensorrt_llm engine: nobody else may read it" in text


def test_a_table_of_no_receiver(plugins: Plugins) -> None:
    with pytest.raises(ConfigurationError, match="sglang_exprt"):
        said(plugins, sglang_exprt={})
