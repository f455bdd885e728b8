"""`jouled version`."""

import argparse
import platform

from jouled import __version__
from jouled.app.cli.console import say

NAME = "version"
SUMMARY = "version of jouled and of what it runs on"


def arguments(_parser: argparse.ArgumentParser) -> None:
    """There are none."""


def execute(_arguments: argparse.Namespace) -> int:
    """Print them."""
    say(f"jouled {__version__} (Python {platform.python_version()}, {platform.system()} {platform.release()})")
    return 0
