"""Points as OTLP metrics.

https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from msgspec.structs import replace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from jouled.model.points import Family, Points
from jouled.model.snapshot import Histogram, Labels
from jouled.model.units import nanoseconds
from jouled.outputs.metrics.catalogue import PREFIX
from jouled.outputs.sinks.otlp_names import (
    ATTRIBUTES,
    CONVENTIONS,
    HARDWARE_ID,
    HARDWARE_TYPE,
    HARDWARE_TYPES,
    SCHEMA_URL,
    Convention,
    own_name,
    own_unit,
)
from jouled.outputs.sinks.otlp_wire import TRACE_ID_BYTES, attributes, decoded, id_bytes, resource, scope

PATH = "/v1/metrics"

_CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE


def encoded(moments: Sequence[Points]) -> bytes:
    """All series of some moments as one export request."""
    return ExportMetricsServiceRequest(
        resource_metrics=[
            pb.ResourceMetrics(
                resource=resource(moment.node),
                scope_metrics=[pb.ScopeMetrics(scope=scope(), metrics=_metrics(moment), schema_url=SCHEMA_URL)],
                schema_url=SCHEMA_URL,
            )
            for moment in moments
        ]
    ).SerializeToString()


def refused(answer: bytes) -> tuple[int, str]:
    """Data points that the other side rejected, and what it says."""
    said = decoded(ExportMetricsServiceResponse, answer).partial_success
    return said.rejected_data_points, said.error_message


def data_points(moment: Points) -> int:
    """How many data points a moment has."""
    return sum(len(family.values) + len(family.histograms) for family in moment.families)


def _metrics(moment: Points) -> Iterator[pb.Metric]:
    kinds = _kinds(moment)
    for family in moment.families:
        convention = CONVENTIONS.get(family.name.removeprefix(PREFIX))
        meant, others = _split(family, convention)
        if convention is not None and meant.values:
            keys = [convention.attributes.get(label) or _key(label) for label in family.labels]
            names = _Names(keys, kinds if convention.needs_hardware_type else {})
            yield _metric(moment, meant, names, convention.name, convention.unit)
        if others.values or others.histograms:
            names = _Names([_key(label) for label in family.labels], {})
            yield _metric(moment, others, names, own_name(family.name, family.unit), own_unit(family.unit))


def _split(family: Family, convention: Convention | None) -> tuple[Family, Family]:
    """The family's series that have a name in the conventions, and its others."""
    if convention is None:
        return replace(family, values={}, histograms={}), family
    if convention.only is None:
        return family, replace(family, values={})
    label, wanted = convention.only
    place = family.labels.index(label)
    meant = {labels: value for labels, value in family.values.items() if labels[place] == wanted}
    others = {labels: value for labels, value in family.values.items() if labels[place] != wanted}
    return replace(family, values=meant), replace(family, values=others)


def _kinds(moment: Points) -> Mapping[str, str]:
    """The kind of every device, which not all families have as a label."""
    for family in moment.families:
        if family.name == f"{PREFIX}device_info":
            device, kind = family.labels.index("device"), family.labels.index("kind")
            return {labels[device]: labels[kind] for labels in family.values}
    return {}


def _key(label: str) -> str:
    return ATTRIBUTES.get(label) or f"jouled.{label}"


class _Names:
    """Turns the label values of a family into attributes. kinds: of devices, where a label for it is wanting."""

    def __init__(self, keys: Sequence[str], kinds: Mapping[str, str]) -> None:
        self._keys = keys
        self._kinds = kinds

    def attributes(self, labels: Labels) -> list[KeyValue]:
        values = dict(zip(self._keys, labels, strict=True))
        kind = values.get(HARDWARE_TYPE) or self._kinds.get(values.get(HARDWARE_ID, ""), "")
        if kind:
            values[HARDWARE_TYPE] = HARDWARE_TYPES.get(kind, kind)
        return attributes(values)


def _metric(moment: Points, family: Family, names: _Names, name: str, unit: str) -> pb.Metric:
    metric = pb.Metric(name=name, unit=unit, description=family.help)
    if family.type == "histogram":
        metric.histogram.aggregation_temporality = _CUMULATIVE
        metric.histogram.data_points.extend(
            _distribution(moment, names.attributes(labels), histogram)
            for labels, histogram in family.histograms.items()
        )
        return metric
    is_counter = family.type == "counter"
    numbers = [
        pb.NumberDataPoint(
            attributes=names.attributes(labels),
            start_time_unix_nano=moment.since_ns if is_counter else 0,
            time_unix_nano=moment.t_ns,
            as_double=value,  # whole numbers too: a series that changed its type would be another one
        )
        for labels, value in family.values.items()
    ]
    if is_counter:
        metric.sum.CopyFrom(pb.Sum(data_points=numbers, aggregation_temporality=_CUMULATIVE, is_monotonic=True))
    else:
        metric.gauge.CopyFrom(pb.Gauge(data_points=numbers))
    return metric


def _distribution(moment: Points, named: Sequence[KeyValue], histogram: Histogram) -> pb.HistogramDataPoint:
    up_to = [0, *histogram.counts]
    return pb.HistogramDataPoint(
        attributes=named,
        start_time_unix_nano=moment.since_ns,
        time_unix_nano=moment.t_ns,
        count=histogram.counts[-1],
        sum=histogram.sum,
        explicit_bounds=histogram.bounds,
        bucket_counts=[after - before for before, after in pairwise(up_to)],
        exemplars=[
            pb.Exemplar(
                time_unix_nano=nanoseconds(unix_seconds),
                as_double=value,
                trace_id=id_bytes(trace_id, TRACE_ID_BYTES),
            )
            for value, trace_id, unix_seconds in filter(None, histogram.exemplars)
        ],
    )
