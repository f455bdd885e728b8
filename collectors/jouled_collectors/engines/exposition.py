"""A reader of Prometheus text pages that looks only at the families it was asked for.

A vLLM page has 600 lines, of which a collector wants about ten. One compiled pattern jumps from line start to line
start and stops only at a wanted name; just those lines are taken apart. Text formats 0.0.4 and 1.0.0 and OpenMetrics
are read alike (https://prometheus.io/docs/instrumenting/exposition_formats/): types are given by the caller, who knows
the engine, so `# TYPE` lines need no reading.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAXIMUM_COUNT = 10**15
"""Counts above this are broken: 10¹⁵ tokens are 300 years at 100 000 tokens/s, and floats stay exact up to 9·10¹⁵."""

QUOTED = rb'"(?:[^"\\]++|\\.)*+"'
"""Pattern of a quoted string."""
_SERIES = re.compile(
    rb"[ \t]*+(?:\{(?P<labels>(?:[^\"}]++|" + QUOTED + rb")*+)\}[ \t]*+)?"
    rb"(?P<value>[-+.0-9a-zA-Z]++)"
    rb"(?:[ \t]++[-+.eE0-9]++)?"  # time stamp
    rb"(?:[ \t]*+\#[ \t].*+)?"  # exemplar
    rb"[ \t\r]*+"
)
_LABEL = re.compile(
    rb"[ \t]*+(?:(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*+)|(?P<quoted>" + QUOTED + rb"))"
    rb"[ \t]*+=[ \t]*+(?P<value>" + QUOTED + rb")[ \t]*+(?:,|\Z)"
)
_ESCAPE = re.compile(r'\\([\\n"])')


class Series(NamedTuple):
    """One line of a page: its labels and its value, which may be NaN or infinite."""

    labels: dict[str, str]
    value: float


class PageReader:
    """Reads some families of one engine's page.

    Args:
        prefix: what all names of the engine begin with, without the separator; `:` and `_` are both accepted. Empty for
            an engine whose names have none: its page is known by the wanted names.
        names: wanted names without prefix and without `_total`, which a page may have or not. A histogram's number
            of observations is wanted as `<name>_count`.
    """

    def __init__(self, prefix: str, names: Iterable[str]) -> None:
        self._prefix = prefix
        start = re.escape(prefix).encode() + rb"[:_]" if prefix else b""
        wanted = rb"(" + b"|".join(re.escape(name).encode() for name in names) + rb")(_total)?(?=[ \t{])"
        self._any_name = re.compile(rb"\n[ \t]*+(?:#[ \t]*+(?:HELP|TYPE)[ \t]++)?" + (start or wanted))
        self._wanted_line = re.compile(rb"\n[ \t]*+" + start + wanted + rb"([^\n]*+)")

    def is_page(self, body: bytes) -> bool:
        """Whether the page has a metric of this engine."""
        return self._any_name.search(b"\n" + body) is not None

    def read(self, body: bytes) -> dict[str, list[Series]]:
        """Find the wanted series, by name; a family that the page lacks is missing here too.

        Of series with the same name and labels the first counts, as in Prometheus.

        Raises:
            ValueError: this is no page of the engine, or a wanted line cannot be read; with the reason.
        """
        page = b"\n" + body
        found: dict[tuple[str, bool], list[Series]] = {}
        for match in self._wanted_line.finditer(page):
            name, suffix, rest = match.groups()
            try:
                series = _series(rest)
            except ValueError as error:
                line = page.count(b"\n", 0, match.start() + 1)
                raise ValueError(f"line {line} of the page ({name.decode()}): {error}") from None
            found.setdefault((name.decode(), suffix is not None), []).append(series)
        if not found and self._any_name.search(page) is None:
            raise ValueError(_why_not_a_page(body, self._prefix))
        # A page with both `x` and `x_total` tells of a gauge and a counter: the counter is wanted.
        return {name: _first_of_each(found.get((name, True)) or found[name, False]) for name, _ in found}


def total(series: Sequence[Series] | None) -> int | None:
    """Sum over the label sets of a count, or `None` if it is not told.

    One value that is NaN, negative, infinite or above `MAXIMUM_COUNT` makes the whole sum unknown: a sum without it
    would look like a counter that went back.
    """
    if not series:
        return None
    values = [each.value for each in series]
    if not all(0 <= value <= MAXIMUM_COUNT for value in values):
        return None
    return round(math.fsum(values))


def _series(rest: bytes) -> Series:
    """Take apart what follows the name on a line."""
    match = _SERIES.fullmatch(rest)
    if match is None:
        raise ValueError("not of the form name{labels} value")
    try:
        value = float(match["value"])
    except ValueError:
        raise ValueError("the value is no number") from None
    return Series(labels_of(match["labels"] or b""), value)


def labels_of(block: bytes) -> dict[str, str]:
    """The labels of a block, without its braces. Raises `ValueError` with the reason."""
    labels = {}
    position = 0
    block = block.rstrip(b" \t")
    while position < len(block):
        match = _LABEL.match(block, position)
        if match is None:
            raise ValueError("the labels cannot be read")
        name = match["name"].decode() if match["name"] else _unquoted(match["quoted"])
        labels[name] = _unquoted(match["value"])
        position = match.end()
    return labels


def _unquoted(quoted: bytes) -> str:
    try:
        text = quoted[1:-1].decode()
    except UnicodeDecodeError:
        raise ValueError("a label is not UTF-8") from None
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text)


def _first_of_each(series: list[Series]) -> list[Series]:
    if len(series) == 1:
        return series
    first: dict[frozenset[tuple[str, str]], Series] = {}
    for each in series:
        first.setdefault(frozenset(each.labels.items()), each)
    return list(first.values())


def _why_not_a_page(body: bytes, prefix: str) -> str:
    start = body.lstrip()[:1]
    if not start:
        return "the page is empty"
    if start == b"<":
        return "an HTML page, not a metrics page"
    if start in b'{["':
        return "a JSON document, not a metrics page"
    if not prefix:
        return "the page has none of the engine's metrics"
    return f"the page has no metric that begins with {prefix}: or {prefix}_"
