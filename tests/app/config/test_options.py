"""Where the daemon keeps its files."""

from pathlib import Path

import pytest

from jouled.app.config import Config, RunOptions, paths
from jouled.app.config.types import State
from jouled.model.errors import ConfigurationError

SERVICE = {"STATE_DIRECTORY": "/var/lib/jouled:/var/lib/other", "RUNTIME_DIRECTORY": "/run/jouled", "HOME": "/home/u"}


def test_the_command_line_wins_over_file_over_service():
    configured = Config(state=State(directory="/srv/books"))
    assert paths(RunOptions(state=Path("/a/b")), configured, SERVICE).state == Path("/a/b")
    assert paths(RunOptions(), configured, SERVICE).state == Path("/srv/books")
    found = paths(RunOptions(), Config(), SERVICE)
    assert (found.state, found.socket) == (Path("/var/lib/jouled"), Path("/run/jouled/api.sock"))


def test_a_user_gets_the_xdg_directory():
    found = paths(RunOptions(), Config(), {"HOME": "/home/u"})
    assert found.state == found.runtime == Path("/home/u/.local/state/jouled")
    assert found.socket == found.state / "api.sock"
    assert paths(RunOptions(), Config(), {"XDG_STATE_HOME": "/x"}).state == Path("/x/jouled")
    assert paths(RunOptions(), Config(), {"XDG_STATE_HOME": "x", "HOME": "/h"}).state == Path("/h/.local/state/jouled")


def test_the_demo_never_takes_the_services_files():
    found = paths(RunOptions(demo=True), Config(state=State(directory="/srv/books")), SERVICE)
    assert found.state == found.runtime == Path("/home/u/.local/state/jouled-demo")


def test_a_socket_path_that_the_system_refuses_is_told():
    with pytest.raises(ConfigurationError, match="longer than the system allows"):
        paths(RunOptions(state=Path("/" + "long/" * 30)), Config(), {})
