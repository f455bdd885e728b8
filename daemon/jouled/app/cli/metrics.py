"""`jouled metrics`: the reference of everything that is published."""

import argparse

from jouled.app.cli.console import say

NAME = "metrics"
SUMMARY = "print the reference of all metrics (Markdown)"


def arguments(_parser: argparse.ArgumentParser) -> None:
    """There are none."""


def execute(_arguments: argparse.Namespace) -> int:
    """Print it."""
    from jouled.outputs.metrics.reference import render

    say(render().rstrip("\n"))
    return 0
