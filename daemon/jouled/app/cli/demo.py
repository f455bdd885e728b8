"""`jouled demo`: the daemon on the twin of an 8-GPU node."""

import argparse

from jouled.app.cli.console import listen_argument, say, state_argument
from jouled.app.config.options import RunOptions

NAME = "demo"
SUMMARY = "start or re-attach to the twin of an 8-GPU node and run the daemon on it, graded against the truth"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    listen_argument(parser)
    state_argument(parser)
    parser.add_argument("--stop", action="store_true", help="end the twin that runs on after a demo")


def execute(arguments: argparse.Namespace) -> int:
    """Run until told to stop, or end the twin."""
    from jouled.app.runtime.demo import run, stop

    options = RunOptions(listen=arguments.listen, state=arguments.state, demo=True)
    if arguments.stop:
        say(stop(options))
        return 0
    return run(options)
