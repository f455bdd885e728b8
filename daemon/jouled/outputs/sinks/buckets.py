"""The buckets of a histogram as Prometheus writes them, for wires that send each one as a series."""

import math
from collections.abc import Iterator

from jouled.model.snapshot import Histogram

Exemplar = tuple[float, str, float]
"""Value, trace id and Unix seconds of one observation."""


def buckets(histogram: Histogram) -> Iterator[tuple[str, int, Exemplar | None]]:
    """Every bucket: its bound as the label `le` has it, `+Inf` last; observations up to it; an exemplar of it."""
    bounds = [*(bound for bound in histogram.bounds if not math.isinf(bound)), math.inf]
    exemplars = histogram.exemplars or (None,) * len(bounds)
    for bound, count, exemplar in zip(bounds, histogram.counts, exemplars, strict=True):
        yield "+Inf" if math.isinf(bound) else repr(float(bound)), count, exemplar
