"""What the command line decides, and where the daemon keeps its files."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from jouled.app.config.types import Config
from jouled.model.errors import ConfigurationError

LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path on Linux (sun_path, unix(7)), less the closing zero."""


class RunOptions(Struct, frozen=True, kw_only=True):
    """Options of `run`, `demo` and `record` that stand above the configuration.

    listen: `HOST:PORT`. state: directory of the books. record: file that gets a recording of everything read.
    discover: look for power sources and engines where the configuration names none. demo: files of its own.
    """

    listen: str | None = None
    state: Path | None = None
    record: Path | None = None
    discover: bool = True
    demo: bool = False


class Paths(Struct, frozen=True):
    """Where the daemon keeps its files: committed books, run-time files, the Unix socket."""

    state: Path
    runtime: Path
    socket: Path


def paths(options: RunOptions, config: Config, environment: Mapping[str, str]) -> Paths:
    """Decide on the directories; creates none.

    The demo never takes the service's directories. Raises `ConfigurationError` if the socket's path is too long.
    """
    state = (options.state or _configured(options, config, environment)).absolute()
    runtime_directory = "" if options.demo else _first(environment.get("RUNTIME_DIRECTORY", ""))
    runtime = Path(runtime_directory) if runtime_directory else state
    socket = runtime / "api.sock"
    if len(bytes(socket)) > LONGEST_SOCKET_PATH:
        raise ConfigurationError(
            f"the path of the Unix socket is longer than the system allows: {socket}",
            mend="Give a shorter directory by --state or [state] directory",
        )
    return Paths(state=state, runtime=runtime, socket=socket)


def _configured(options: RunOptions, config: Config, environment: Mapping[str, str]) -> Path:
    if not options.demo:
        given = config.state.directory or _first(environment.get("STATE_DIRECTORY", ""))
        if given:
            return Path(given).expanduser()
    base = environment.get("XDG_STATE_HOME", "")
    # The XDG specification tells to ignore a path that is not absolute.
    parent = Path(base) if base.startswith("/") else Path(environment.get("HOME") or "~").expanduser() / ".local/state"
    return parent / ("jouled-demo" if options.demo else "jouled")


def _first(directories: str) -> str:
    # systemd joins several directories of one kind by colons.
    return directories.split(":", 1)[0]
