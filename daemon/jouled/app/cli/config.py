"""`jouled config`: what is in effect, what there is, and whether a file is good."""

import argparse
import os
from pathlib import Path

from jouled.app.cli.console import config_argument, loaded, say, tell
from jouled.app.config.load import load
from jouled.app.config.reference import example, render
from jouled.app.config.toml import as_toml
from jouled.app.runtime.plugins import load_plugins

NAME = "config"
SUMMARY = "print the configuration in effect, its reference or an example, or check a file"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    config_argument(parser)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--reference", action="store_true", help="print every key and its meaning (Markdown)")
    action.add_argument("--example", action="store_true", help="print a configuration to begin with")
    action.add_argument("--check", type=Path, metavar="FILE", help="say whether this file is good")


def execute(arguments: argparse.Namespace) -> int:
    """Do one of these."""
    if arguments.example:
        say(example().rstrip("\n"))
    elif arguments.reference:
        plugins = load_plugins()
        collectors = {name: collector.settings_type for name, collector in plugins.power.items()}
        sinks = {name: sink.settings_type for name, sink in plugins.sinks.items()}
        say(render(collectors, sinks, plugins.receiver_settings_types()).rstrip("\n"))
    elif arguments.check:
        _check(arguments.check)
    else:
        say(as_toml(loaded(arguments)).rstrip("\n"))
    return 0


def _check(path: Path) -> None:
    plugins = load_plugins()
    for refused in plugins.refused:
        tell(f"jouled: {refused}")
    config = load(path, os.environ)
    plugins.power_settings(config.power, str(path))
    plugins.sink_settings(config.sinks, str(path))
    plugins.receiver_settings(config.receivers, str(path))
    say(f"{path} is good")
