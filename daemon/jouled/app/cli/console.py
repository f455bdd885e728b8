"""What several commands share: speaking to the operator, and the options of those that meter."""

import argparse
import os
import sys
from pathlib import Path

from jouled.app.config.checks import check_listen
from jouled.app.config.faults import Fault
from jouled.app.config.load import load
from jouled.app.config.options import RunOptions, paths
from jouled.app.config.types import Config
from jouled.model.errors import ConfigurationError

SERVICE_STATE, SERVICE_SOCKET = Path("/var/lib/jouled"), Path("/run/jouled/api.sock")
"""Where the service of systemd/jouled.service keeps its books and listens."""


def say(text: str) -> None:
    """The result, on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """About the result, on standard error."""
    sys.stderr.write(f"{text}\n")


def config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration file")


def state_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--state`."""
    parser.add_argument("--state", type=Path, metavar="DIR", help="directory of the books and of the Unix socket")


def listen_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--listen`."""
    parser.add_argument("--listen", type=_listen, metavar="HOST:PORT", help="where to serve (default 127.0.0.1:9966)")


def seconds(text: str) -> float:
    """A duration such as 90, 90s, 10m or 2h, for argparse."""
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text[:-1] if unit else text) * (unit or 1.0)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it as 90s, 10m or 2h")
    return value


def loaded(arguments: argparse.Namespace) -> Config:
    """The configuration of `--config` and the environment. Raises `ConfigurationError`."""
    return load(arguments.config, os.environ)


def where_it_runs(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The daemon's Unix socket and state directory: the service's where there is none of this user's."""
    found = paths(RunOptions(state=arguments.state), loaded(arguments), os.environ)
    # os.path.exists(), unlike Path.exists(), has no error for what this user may not see.
    if arguments.state is None and not os.path.exists(found.socket) and os.path.exists(SERVICE_STATE):  # noqa: PTH110
        return SERVICE_SOCKET, SERVICE_STATE
    return found.socket, found.state


def _listen(text: str) -> str:
    try:
        check_listen(text, "--listen")
    except Fault as fault:
        raise argparse.ArgumentTypeError(str(ConfigurationError(fault.what, mend=fault.mend))) from None
    return text
