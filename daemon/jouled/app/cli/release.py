"""`jouled release`: let go of the GPUs for a while."""

import argparse

from jouled.app.cli.console import config_argument, seconds, state_argument, where_it_runs

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

    socket, _ = where_it_runs(arguments)
    return release(socket, arguments.seconds)
