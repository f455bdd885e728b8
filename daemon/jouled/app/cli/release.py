"""`jouled release`: let go of the GPUs for a while."""

import argparse
import os
from pathlib import Path

from jouled.app.cli.console import config_argument, loaded, seconds, state_argument
from jouled.app.config.options import RunOptions, paths

SERVICE_SOCKET = Path("/run/jouled/api.sock")
"""Where the service of systemd/jouled.service listens."""

NAME = "release"
SUMMARY = "make the running daemon let go of the GPUs, so that they can be reset or their driver unloaded"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--for", dest="seconds", type=seconds, default=600.0, metavar="TIME", help="how long, as 90s, 10m, 2h (10m)"
    )
    config_argument(parser)
    state_argument(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the daemon behind the Unix socket."""
    from jouled.app.runtime.release import release

    found = paths(RunOptions(state=arguments.state), loaded(arguments), os.environ).socket
    if not found.exists() and arguments.state is None and SERVICE_SOCKET.exists():
        found = SERVICE_SOCKET
    return release(found, arguments.seconds)
