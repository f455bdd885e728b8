"""`jouled forget`: remove what is kept of single requests of a tenant."""

import argparse

from jouled.app.cli.console import config_argument, state_argument, where_it_runs

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

    return forget(*where_it_runs(arguments), arguments.tenant)
