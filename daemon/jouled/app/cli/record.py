"""`jouled record`: capture a node's raw readings."""

import argparse
from pathlib import Path

from jouled.app.cli.console import config_argument, loaded, seconds
from jouled.app.config.options import RunOptions

NAME = "record"
SUMMARY = "write the node's raw readings to a file, secrets left out, without serving anything"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="new file; .gz or .zst at the end of its name compress it"
    )
    parser.add_argument("--seconds", type=seconds, metavar="N", help="stop after that time (default: when interrupted)")
    config_argument(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Record until the time is over or an interrupt comes."""
    from jouled.app.runtime.process import record

    return record(loaded(arguments), RunOptions(), arguments.out, arguments.seconds)
