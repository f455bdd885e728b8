"""`jouled forget`: remove what is kept of single requests of a tenant."""

import argparse
import os
from pathlib import Path

from jouled.app.cli.console import config_argument, loaded, state_argument
from jouled.app.config.options import RunOptions, paths

SERVICE_STATE, SERVICE_SOCKET = Path("/var/lib/jouled"), Path("/run/jouled/api.sock")
"""Where the service of systemd/jouled.service keeps its books and listens."""

NAME = "forget"
SUMMARY = "remove the receipts of a tenant; sums that they are in stay"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--tenant", required=True, metavar="NAME", help="whose receipts; an empty one: those of nobody")
    config_argument(parser)
    state_argument(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the daemon behind the Unix socket; without one, remove them from its store."""
    from jouled.app.runtime.forget import forget

    found = paths(RunOptions(state=arguments.state), loaded(arguments), os.environ)
    socket, state = found.socket, found.state
    if not socket.exists() and arguments.state is None and SERVICE_STATE.exists():
        socket, state = SERVICE_SOCKET, SERVICE_STATE
    return forget(socket, state, arguments.tenant)
