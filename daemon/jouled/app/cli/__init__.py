"""The command `jouled`: one module a command, each with NAME, SUMMARY, `arguments` and `execute`."""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from jouled.app.cli import check, config, demo, forget, metrics, record, release, replay, report, run, version
from jouled.app.cli.console import tell
from jouled.model.errors import ConfigurationError, JouledError

USAGE = 2
FAILURE = 1
INTERRUPTED = 130

_COMMANDS: tuple[ModuleType, ...] = (
    run,
    check,
    demo,
    report,
    record,
    replay,
    release,
    forget,
    config,
    metrics,
    version,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 good, 1 failed, 2 wrong usage or configuration.

    An error that the operator can mend is one sentence on standard error, never a traceback.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else USAGE
    try:
        return int(arguments.execute(arguments))
    except JouledError as error:
        tell(f"jouled: {error}")
        return USAGE if isinstance(error, ConfigurationError) else FAILURE
    except BrokenPipeError:
        # Whoever read the output has gone; what is still buffered has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jouled", description="Gives every measured joule of an inference host an owner, down to the request."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        its_parser = commands.add_parser(command.NAME, help=command.SUMMARY, description=command.SUMMARY)
        command.arguments(its_parser)
        its_parser.set_defaults(execute=command.execute)
    return parser
