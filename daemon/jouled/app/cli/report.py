"""`jouled report`: joules, cost and CO2e by model or tenant, and what a change did to them."""

import argparse
from datetime import UTC, datetime
from time import time_ns
from typing import TYPE_CHECKING

import msgspec

from jouled.app.cli.console import config_argument, say, state_argument, where_it_runs
from jouled.core.accounting.epochs import Span
from jouled.model.errors import ConfigurationError
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

if TYPE_CHECKING:
    from jouled.app.runtime.report import Source, Summary

NAME = "report"
SUMMARY = "joules, cost and CO2e by model or tenant; before and after a change"

LATEST_NS = 2**63 - 1
"""The latest time that the store can be asked for: the year 2262."""
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
    source = open_source(*where_it_runs(arguments))
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
    now_ns = time_ns()
    if text == "now":
        return now_ns
    unit = _SECONDS.get(text[-1:])
    try:
        t_ns = _moment_ns(text) if unit is None else now_ns - nanoseconds(float(text[:-1]) * unit)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write {_TIME}") from None
    return min(max(t_ns, 0), LATEST_NS)


def _moment_ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * NANOSECONDS_PER_SECOND
