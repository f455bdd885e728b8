"""Points and receipts as InfluxDB line protocol, alike for its API versions 1, 2 and 3.

Syntax: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

import math
from collections.abc import Iterator, Mapping

from jouled.model.points import Family, NumberedReceipt, Points
from jouled.model.receipt import Receipt
from jouled.outputs.sinks.buckets import buckets

RECEIPT_MEASUREMENT = "jouled_request"
RECEIPT_TAGS = ("engine", "model", "outcome", "tier", "quality")
RECEIPT_INTEGERS = (
    "arrival_ns",
    "scheduled_ns",
    "service_start_ns",
    "first_token_ns",
    "last_token_ns",
    "prompt_tokens",
    "cached_prompt_tokens",
    "generation_tokens",
    "preemptions",
)
RECEIPT_FLOATS = (
    "joules",
    "joules_prefill",
    "joules_decode",
    "joules_resident",
    "joules_host",
    "joules_residual",
    "joules_facility_surplus",
    "sigma_joules",
    "sigma_prefill_joules",
    "sigma_decode_joules",
    "ttft_seconds",
    "tpot_seconds",
    "e2e_seconds",
    "cost",
    "co2e_grams",
)
RECEIPT_STRINGS = ("id", "tenant", "adapter", "trace_id", "span_id", "currency", "validity", "role")
"""Fields, not tags: in a tag each value would be a series of its own."""

# Parsers differ on a backslash in a tag, and none reads one before a comma or at the end back: it becomes a slash.
_TAG = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ ", "\n": "\\ ", "\r": "\\ ", "\t": "\\ ", "\\": "/"})
_MEASUREMENT = str.maketrans({",": "\\,", " ": "\\ "})
_STRING = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": " ", "\r": " "})


def moment_lines(moment: Points) -> Iterator[str]:
    """Each series of a moment as one line: its metric's full name, labels and `node` as tags, a field `value`.

    Values are always floats: a field that is an integer once and a float later is refused. Values that are not finite
    are left out, the protocol has none. A histogram has the fields `count` and `sum`, and for each bucket a series with
    the tag `le` and the field `bucket`: so Telegraf writes them too, Flux' `histogramQuantile` takes them, and
    VictoriaMetrics, which joins measurement and field, has the very names that PromQL's `histogram_quantile` takes.
    """
    for family in moment.families:
        name = family.name.translate(_MEASUREMENT)
        for labels, value in family.values.items():
            if math.isfinite(value):
                yield f"{name}{_tags(family, labels, moment.node)} value={float(value)!r} {moment.t_ns}"
        for labels, histogram in family.histograms.items():
            series = f"{name}{_tags(family, labels, moment.node)}"
            total = f",sum={float(histogram.sum)!r}" if math.isfinite(histogram.sum) else ""
            yield f"{series} count={float(histogram.counts[-1])!r}{total} {moment.t_ns}"
            for bound, count, _ in buckets(histogram):
                yield f"{series},le={bound} bucket={float(count)!r} {moment.t_ns}"


def receipt_line(numbered: NumberedReceipt, node: str) -> str:
    """A receipt as one line of `jouled_request`; what is absent or empty is left out.

    Its time is when the request ended, to the microsecond, with the receipt's number in the nanoseconds: InfluxDB
    keeps one point for each series and time, so a receipt that is sent again overwrites itself and is there once, and
    two requests that end in the same microsecond do not overwrite each other.
    """
    receipt = numbered.receipt
    tags = _joined({**{name: getattr(receipt, name) for name in RECEIPT_TAGS}, "node": node})
    time_ns = receipt.last_token_ns // 1000 * 1000 + numbered.number % 1000
    return f"{RECEIPT_MEASUREMENT}{tags} {','.join(_receipt_fields(receipt))} {time_ns}"


def _receipt_fields(receipt: Receipt) -> Iterator[str]:
    for name in RECEIPT_INTEGERS:
        integer: int | None = getattr(receipt, name)
        if integer is not None:
            yield f"{name}={integer}i"
    for name in RECEIPT_FLOATS:
        value: float | None = getattr(receipt, name)
        if value is not None and math.isfinite(value):
            yield f"{name}={float(value)!r}"
    for name in RECEIPT_STRINGS:
        text: str = getattr(receipt, name)
        if text:
            yield f'{name}="{text.translate(_STRING)}"'
    for slo, is_good in receipt.good.items():
        yield f"good_{slo.translate(_TAG)}={'t' if is_good else 'f'}"


def _tags(family: Family, labels: tuple[str, ...], node: str) -> str:
    return _joined({**dict(zip(family.labels, labels, strict=True)), "node": node})


def _joined(tags: Mapping[str, str]) -> str:
    return "".join(f",{name}={value.translate(_TAG)}" for name, value in tags.items() if value)
