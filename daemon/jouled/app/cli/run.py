"""`jouled run`: the daemon."""

import argparse
from pathlib import Path

from jouled.app.cli.console import config_argument, listen_argument, loaded, state_argument
from jouled.app.config.options import RunOptions

NAME = "run"
SUMMARY = "the daemon; without a configuration it discovers what the node has"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    config_argument(parser)
    listen_argument(parser)
    state_argument(parser)
    parser.add_argument("--record", type=Path, metavar="OUT", help="also write a recording of everything that is read")
    parser.add_argument("--no-discovery", action="store_true", help="use only what the configuration names")


def execute(arguments: argparse.Namespace) -> int:
    """Run until told to stop."""
    from jouled.app.runtime.process import run

    options = RunOptions(
        listen=arguments.listen,
        state=arguments.state,
        record=arguments.record,
        discover=not arguments.no_discovery,
    )
    return run(loaded(arguments), options, reread=lambda: loaded(arguments), ends_process=True)
