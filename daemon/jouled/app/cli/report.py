"""`jouled report`: joules, cost and CO2e by model or tenant, and what a change did to them."""

import argparse
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jouled.app.cli.console import config_argument, loaded, say, state_argument
from jouled.app.config.options import RunOptions, paths
from jouled.core.accounting.epochs import Span
from jouled.model.errors import ConfigurationError
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

if TYPE_CHECKING:
    from jouled.app.runtime.report import Source, Summary

SERVICE_STATE, SERVICE_SOCKET = Path("/var/lib/jouled"), Path("/run/jouled/api.sock")
"""Where the service of systemd/jouled.service keeps its books and listens."""

NAME = "report"
SUMMARY = "joules, cost and CO2e by model or tenant; before and after a change"

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME = "how long ago (90s, 10m, 2h, 7d), or a time in UTC (2026-11-26T10:00)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--since", type=_time, default="24h", metavar="TIME", help=f"{_TIME}; default 24h")
    parser.add_argument("--until", type=_time, default="now", metavar="TIME", help="likewise; default now")
    parser.add_argument("--by", choices=("model", "tenant", "engine"), default="model", help="whose requests to sum up")
    parser.add_argument(
        "--compare",
        nargs="*",
        type=_span,
        metavar="FROM..TO",
        help="without times: each engine before and after its last change; with two: the first with the second",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="comma-separated values")
    config_argument(parser)
    state_argument(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the daemon behind the Unix socket, else read its store, and print."""
    from jouled.app.runtime.report import open_source, summarise

    span = Span(arguments.since, arguments.until)
    if span.since_ns >= span.until_ns:
        raise ConfigurationError("--since is not before --until", mend="Give --since 24h, or a time before --until")
    if arguments.compare and len(arguments.compare) != 2:
        raise ConfigurationError("--compare takes no times or two", mend="Write --compare 2h..1h 1h..now")
    source = open_source(*_where(arguments))
    try:
        if arguments.compare is None:
            _print_summary(summarise(source, span, arguments.by), arguments)
        else:
            _print_comparisons(source, span, arguments)
    finally:
        source.close()
    return 0


def _print_summary(summary: "Summary", arguments: argparse.Namespace) -> None:
    from jouled.app.cli.report_tables import summary_csv, summary_text

    if arguments.json:
        say(msgspec.json.encode(summary).decode())
    else:
        say(summary_csv(summary) if arguments.csv else summary_text(summary))


def _print_comparisons(source: "Source", span: Span, arguments: argparse.Namespace) -> None:
    from jouled.app.cli.report_tables import comparison_text, comparisons_csv
    from jouled.app.runtime.report import compare_changes, compare_spans

    given = arguments.compare
    comparisons = compare_spans(source, *given) if given else compare_changes(source, span)
    if arguments.json:
        say(msgspec.json.encode({"comparisons": comparisons}).decode())
    elif arguments.csv:
        say(comparisons_csv(comparisons))
    else:
        say("\n\n".join(comparison_text(comparison) for comparison in comparisons))


def _where(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The Unix socket and the state directory."""
    found = paths(RunOptions(state=arguments.state), loaded(arguments), os.environ)
    if not found.socket.exists() and arguments.state is None and SERVICE_STATE.exists():
        return SERVICE_SOCKET, SERVICE_STATE
    return found.socket, found.state


def _span(text: str) -> Span:
    since, dots, until = text.partition("..")
    if not dots:
        raise argparse.ArgumentTypeError(f"{text!r} is no time span; write it as 2h..1h")
    span = Span(_time(since), _time(until))
    if span.since_ns >= span.until_ns:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return span


def _time(text: str) -> int:
    """Unix nanoseconds of `now`, of so long ago, or of a time in ISO 8601 (UTC where it names no zone)."""
    now_ns = time.time_ns()
    if text == "now":
        return now_ns
    unit = _SECONDS.get(text[-1:])
    try:
        if unit is not None:
            return now_ns - nanoseconds(float(text[:-1]) * unit)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write {_TIME}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * NANOSECONDS_PER_SECOND
