"""From a snapshot to a page that Prometheus reads: text 0.0.4 or OpenMetrics 1.0."""

import gzip
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from jouled.model.snapshot import Histogram, Labels, Snapshot
from jouled.outputs.metrics.catalogue import CATALOGUE, Metric
from jouled.outputs.metrics.process import Processes
from jouled.outputs.metrics.values import Values, values_of

_log = logging.getLogger(__name__)

SERIES_LIMIT = 5_000
"""Series that one page holds at most; what is beyond is left out and counted."""

_COMPRESSION = 1
_OWN_SERIES = 2


class Format(Enum):
    """The two formats of a page, by content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Page(Struct, frozen=True):
    """A rendered page, plain and compressed by gzip, and how many series it has."""

    body: bytes
    gzipped: bytes
    series: int


class Exposition:
    """Renders a snapshot once for each format and keeps the page until the next snapshot comes.

    Safe to call from several threads; a second caller waits for the page of the first.
    """

    def __init__(
        self,
        version: str,
        processes: Callable[[], Mapping[str, Values]] | None = None,
        off: frozenset[str] = frozenset(),
    ) -> None:
        """`off`: names of families that are left out."""
        self._collector = _SnapshotCollector(version, processes or Processes().read, off)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        self._pages: dict[Format, tuple[Snapshot, Page]] = {}
        self._access = threading.Lock()

    def kept(self, snapshot: Snapshot, page_format: Format) -> Page | None:
        """The page of this very snapshot, if it has been rendered."""
        kept = self._pages.get(page_format)
        return kept[1] if kept is not None and kept[0] is snapshot else None

    def page(self, snapshot: Snapshot, page_format: Format) -> Page:
        """The page of this snapshot; takes milliseconds the first time."""
        with self._access:
            page = self.kept(snapshot, page_format)
            if page is None:
                page = self._render(snapshot, page_format)
                self._pages[page_format] = (snapshot, page)
            return page

    def _render(self, snapshot: Snapshot, page_format: Format) -> Page:
        self._collector.snapshot = snapshot
        # All names are plain ASCII: `allow-utf-8` gives the same bytes as the other schemes and costs half as much.
        generate = generate_openmetrics if page_format is Format.OPENMETRICS else generate_text
        body = generate(self._registry, escaping=ALLOWUTF8)
        return Page(body, gzip.compress(body, _COMPRESSION, mtime=0), self._collector.series)


class _SnapshotCollector(Collector):
    """The custom collector behind the page: families in the catalogue's order, only those that have values."""

    def __init__(self, version: str, processes: Callable[[], Mapping[str, Values]], off: frozenset[str]) -> None:
        self._off = off
        self._version = version
        self._processes = processes
        self._complained: set[str] = set()
        self._dropped = 0
        self.snapshot = Snapshot()
        self.series = 0

    def describe(self) -> Iterable[Family]:
        """Names and types without values, so that registering reads nothing."""
        return [_family(metric) for metric in CATALOGUE.values()]

    def collect(self) -> Iterator[Family]:
        snapshot = self.snapshot
        values: dict[str, Mapping[Labels, float]] = {
            **values_of(snapshot, self._version),
            **self._processes(),
        }
        self._complain_of_unknown([*values, *snapshot.histograms])
        count = dropped = 0
        for name, metric in CATALOGUE.items():
            if name in {"page_series", "page_series_dropped"} or name in self._off:
                continue
            family = _family(metric)
            if metric.type == "histogram":
                _add_histograms(family, metric, snapshot.histograms.get(name, {}))
            else:
                _add_values(family, metric, values.get(name, {}))
            room = SERIES_LIMIT - _OWN_SERIES - count
            dropped += max(0, len(family.samples) - room)
            del family.samples[room:]
            count += len(family.samples)
            if family.samples:
                yield family
        self.series = count + _OWN_SERIES
        self._say_dropped(dropped)
        for name, value in (("page_series", self.series), ("page_series_dropped", dropped)):
            family = _family(CATALOGUE[name])
            _add_values(family, CATALOGUE[name], {(): value})
            yield family

    def _say_dropped(self, dropped: int) -> None:
        if dropped and not self._dropped:
            _log.warning(
                "the metrics page reached its limit of %d series: %d are left out; lower the number of tenants, models"
                " or SLOs",
                SERIES_LIMIT,
                dropped,
            )
        self._dropped = dropped

    def _complain_of_unknown(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in CATALOGUE and name not in self._complained:
                self._complained.add(name)
                _log.error("the snapshot has %s, which the metric catalogue does not know; it is not published", name)


def _family(metric: Metric) -> Family:
    bare = metric.full_name.removesuffix("_total").removesuffix("_info" if metric.type == "info" else "")
    unit = metric.unit if bare.endswith(f"_{metric.unit}") else ""
    match metric.type:
        case "counter":
            return CounterMetricFamily(bare, metric.documentation, labels=metric.labels, unit=unit)
        case "gauge":
            return GaugeMetricFamily(bare, metric.documentation, labels=metric.labels, unit=unit)
        case "histogram":
            return HistogramMetricFamily(bare, metric.documentation, labels=metric.labels, unit=unit)
        case "info":
            return InfoMetricFamily(bare, metric.documentation)
        case "stateset":
            return StateSetMetricFamily(bare, metric.documentation)


def _add_values(family: Family, metric: Metric, values: Values) -> None:
    """Add one sample for each label tuple; for a StateSet the last label value is the state."""
    names = (*metric.labels, metric.full_name) if metric.type == "stateset" else metric.labels
    name = metric.full_name
    parts = metric.parts_per_unit
    for labels, value in values.items():
        published = value if parts == 1 else value / parts
        family.add_sample(name, dict(zip(names, labels, strict=True)), published)


def _add_histograms(family: Family, metric: Metric, histograms: Mapping[Labels, Histogram]) -> None:
    for labels, histogram in histograms.items():
        named = dict(zip(metric.labels, labels, strict=True))
        bounds = [*(bound for bound in histogram.bounds if not math.isinf(bound)), math.inf]
        exemplars = histogram.exemplars or (None,) * len(bounds)
        for bound, count, exemplar in zip(bounds, histogram.counts, exemplars, strict=True):
            limit = "+Inf" if math.isinf(bound) else repr(float(bound))
            family.add_sample(f"{metric.full_name}_bucket", {**named, "le": limit}, count, exemplar=_exemplar(exemplar))
        family.add_sample(f"{metric.full_name}_count", named, histogram.counts[-1])
        family.add_sample(f"{metric.full_name}_sum", named, histogram.sum)


def _exemplar(found: tuple[float, str, float] | None) -> Exemplar | None:
    if found is None or not found[1]:
        return None
    value, trace_id, unix_seconds = found
    return Exemplar({"trace_id": trace_id}, value, round(unix_seconds, 3))
