"""Histograms on an engine's page, read for their buckets alone: series of several engines are added up."""

import math
import re
from functools import lru_cache

from jouled.model.engine import LatencyHistogram
from jouled_collectors.engines.exposition import MAXIMUM_COUNT, QUOTED, labels_of

_BUCKET = rb"[ \t]*+\{((?:[^\"}\n]++|" + QUOTED + rb")*+)\}[ \t]*+([-+.0-9a-zA-Z]++)"
_BOUNDS_KEPT = 1024
"""Label blocks whose bound is remembered: a page has some 60, and they stay what they are while the engine runs."""


class HistogramReader:
    """Reads one histogram of an engine whose metrics begin with `prefix`, followed by `:` or `_`, or with none."""

    def __init__(self, prefix: str, name: str) -> None:
        self._name = name
        begins = [f"{prefix}{separator}" for separator in ":_"] if prefix else [""]
        starts = [f"\n{begin}{name}_bucket".encode() for begin in begins]
        self._patterns = [(start, re.compile(re.escape(start) + _BUCKET)) for start in starts]

    def read(self, body: bytes) -> LatencyHistogram | None:
        """The sum of its series; `None` where the page has none.

        Raises:
            ValueError: a line cannot be read, or they are no histogram of counts; with the reason.
        """
        counts: dict[float, float] = {}
        for labels, count in self._buckets(body):
            try:
                bound = _bound(labels)
                counts[bound] = counts.get(bound, 0.0) + float(count)
            except ValueError as error:
                raise ValueError(f"{self._name}: a bucket cannot be read: {error}") from None
        if not counts:
            return None
        bounds = sorted(counts)
        if bounds[-1] != math.inf or not sum(counts.values()) <= MAXIMUM_COUNT:
            raise ValueError(f"{self._name}: no histogram of counts up to +Inf")
        histogram = LatencyHistogram(tuple(bounds[:-1]), tuple([round(counts[bound]) for bound in bounds]))
        if not histogram.is_sound:
            raise ValueError(f"{self._name}: the counts descend from bound to bound")
        return histogram

    def _buckets(self, body: bytes) -> list[tuple[bytes, bytes]]:
        """Label block and count of every line of the family, which stand together on a page."""
        for start, pattern in self._patterns:
            begin = body.find(start)
            if begin >= 0:
                end = body.find(b"\n", body.rfind(start) + 1)
                family = body[begin : end if end >= 0 else len(body)]
                found = pattern.findall(family)
                if len(found) != family.count(start):
                    raise ValueError(f"{self._name}: a bucket is not of the form name{{labels}} value")
                return found
        return []


@lru_cache(_BOUNDS_KEPT)
def _bound(labels: bytes) -> float:
    bound = labels_of(labels).get("le")
    if bound is None:
        raise ValueError("it has no le")
    value = float(bound)
    if math.isnan(value):
        raise ValueError("its bound is no number")
    return value
