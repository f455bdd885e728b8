"""A report as text for people, and as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from jouled.app.runtime.report import Comparison, Side, Summary
from jouled.core.accounting.report import Difference, Row
from jouled.model.units import NANOSECONDS_PER_SECOND

Table = Sequence[Sequence[str]]

_BESIDE = ("idle", "unreported", "unattributed", "downtime")
_NOT_KNOWN = "not known: the books have no tokens of this time and do not reach its end"


def summary_text(summary: Summary) -> str:
    """Requests by who made them, and below what else was used."""
    header = (summary.by, "requests", "prompt tokens", "generated", "J", "J/token", "J of node", "cost", "CO2e g")
    rows = [(row.name or "(none)", *_row(row)) for row in summary.rows]
    lines = [
        f"{when(summary.since_ns)} to {when(summary.until_ns)}",
        "",
        _aligned([header, *rows]) if rows else "no final receipts in this time",
        "",
        *_beside(summary),
    ]
    return "\n".join(lines)


def summary_csv(summary: Summary) -> str:
    """One line for each row; costs in several currencies are several lines' worth and joined by spaces."""
    header = (
        summary.by, "requests", "prompt_tokens", "generation_tokens", "joules", "node_joules", "cost", "co2e_grams",
    )  # fmt: skip
    return _csv(
        header,
        (
            (
                row.name, row.requests, row.prompt_tokens, row.generation_tokens, row.joules, row.node_joules,
                _cost(row), row.co2e_grams,
            )
            for row in summary.rows
        ),
    )  # fmt: skip


def comparison_text(comparison: Comparison) -> str:
    """Both sides beside each other, under the sentence of what changed."""
    before, after = comparison.before, comparison.after
    rows = [("", "before", "after", "difference")]
    rows += [(name, of_before, of_after, change) for name, of_before, of_after, change in _compared(comparison)]
    changed = ", ".join(f"{of.fact} {of.before or 'none'} → {of.after or 'none'}" for of in comparison.changed)
    return "\n".join(
        [
            f"engine {comparison.engine}: {changed or 'nothing known has changed'}",
            f"before: {when(before.since_ns)} to {when(before.until_ns)}",
            f"after:  {when(after.since_ns)} to {when(after.until_ns)}",
            "",
            _aligned(rows),
            *(
                f"tokens per joule {name} are {_NOT_KNOWN}"
                for name, side in (("before", before), ("after", after))
                if side.tokens_per_joule is None and side.joules > 0.0
            ),
        ]
    )


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """Two lines for each engine."""
    header = (
        "engine", "side", "since", "until", "prompt_tokens", "generation_tokens", "joules", "prompt_tokens_per_joule",
        "tokens_per_joule", "tokens_per_joule_without_idle", "requests", "joules_per_request_p50",
        "joules_per_request_p99", "changed",
    )  # fmt: skip
    return _csv(header, (line for comparison in comparisons for line in _two_lines(comparison)))


def _two_lines(comparison: Comparison) -> Iterator[tuple[object, ...]]:
    changed = " ".join(f"{of.fact}:{of.before}->{of.after}" for of in comparison.changed)
    for name, side in (("before", comparison.before), ("after", comparison.after)):
        yield (
            comparison.engine, name, when(side.since_ns), when(side.until_ns), round(side.prompt_tokens),
            round(side.generation_tokens), side.joules, side.prompt_tokens_per_joule, side.tokens_per_joule,
            side.tokens_per_joule_without_idle, side.requests,
            side.joules_per_request_p50, side.joules_per_request_p99, changed,
        )  # fmt: skip


def when(t_ns: int) -> str:
    """A time in UTC, to the second."""
    moment = datetime.fromtimestamp(t_ns // NANOSECONDS_PER_SECOND, tz=UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _row(row: Row) -> tuple[str, ...]:
    per_token = row.joules / row.generation_tokens if row.generation_tokens else None
    grams = "" if row.co2e_grams is None else _figure(row.co2e_grams)
    counted = (str(row.requests), str(row.prompt_tokens), str(row.generation_tokens))
    return (*counted, _figure(row.joules), _figure(per_token), _figure(row.node_joules), _cost(row), grams)


def _cost(row: Row) -> str:
    return " ".join(f"{amount:.4g} {currency}".strip() for currency, amount in sorted(row.cost.items()))


def _beside(summary: Summary) -> Iterator[str]:
    """What no receipt of the table has."""
    owners = summary.owners_joules
    if not owners:
        yield "no marks of the books in this time"
        return
    yield "beside requests: " + ", ".join(f"{name} {_figure(owners.get(name, 0.0))} J" for name in _BESIDE)
    tokens = ", ".join(f"{round(number)} {kind}" for kind, number in summary.unreported_tokens.items())
    yield f"tokens that no event told of: {tokens}"
    with_idle, without = _figure(summary.tokens_per_joule), _figure(summary.tokens_per_joule_without_idle)
    yield f"generated tokens per joule: {with_idle}, without idle {without}"
    if summary.tokens_per_joule is None and any(owners[name] for name in owners if name != "downtime"):
        yield f"tokens per joule are {_NOT_KNOWN}"
    if summary.is_estimated:
        yield "part of it is estimated, not measured"


def _compared(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    before, after = comparison.before, comparison.after
    yield "prompt tokens", str(round(before.prompt_tokens)), str(round(after.prompt_tokens)), ""
    yield "generated tokens", str(round(before.generation_tokens)), str(round(after.generation_tokens)), ""
    yield "joules", _figure(before.joules), _figure(after.joules), ""
    pair = before.prompt_tokens_per_joule, after.prompt_tokens_per_joule
    yield "prompt tokens/J", _figure(pair[0]), _figure(pair[1]), _share(*pair)
    for name, attribute, change in (
        ("tokens/J", "tokens_per_joule", comparison.tokens_per_joule),
        ("tokens/J without idle", "tokens_per_joule_without_idle", comparison.tokens_per_joule_without_idle),
    ):
        yield name, _figure(getattr(before, attribute)), _figure(getattr(after, attribute)), _difference(change)
    yield "requests", str(before.requests), str(after.requests), ""
    for name, attribute in (("J/request p50", "joules_per_request_p50"), ("J/request p99", "joules_per_request_p99")):
        pair = getattr(before, attribute), getattr(after, attribute)
        yield name, _figure(pair[0]), _figure(pair[1]), _share(*pair)
    for slo in sorted({*before.attainment, *after.attainment}):
        yield f"attainment {slo}", _percent(before, slo), _percent(after, slo), _points(before, after, slo)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return f"{difference.share:+.1%} (too short for an interval)"
    return f"{difference.share:+.1%} (95 %: {difference.low:+.1%} to {difference.high:+.1%})"


def _share(before: float | None, after: float | None) -> str:
    return f"{after / before - 1.0:+.1%}" if before and after is not None else ""


def _percent(side: Side, slo: str) -> str:
    return f"{side.attainment[slo]:.1%}" if slo in side.attainment else "-"


def _points(before: Side, after: Side, slo: str) -> str:
    if slo not in before.attainment or slo not in after.attainment:
        return ""
    return f"{100.0 * (after.attainment[slo] - before.attainment[slo]):+.1f} points"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"


def _aligned(rows: Table) -> str:
    """Columns of one width each: the first to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def _csv(header: Sequence[str], rows: Iterator[tuple[object, ...]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")
