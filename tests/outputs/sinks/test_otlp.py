"""The OTLP sink against a receiver that decodes with opentelemetry-proto."""

import importlib
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.support.snapshots import NOW_NS, receipt, snapshot
from tests.support.tools import free_port, tool

import jouled
from jouled.api import Delivery, TakesPoints, TakesReceipts
from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import NumberedReceipt, Points
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome
from jouled.outputs.metrics.catalogue import CATALOGUE
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.sinks import otlp_names as names
from jouled.outputs.sinks.otlp import OpenOtlp, OtlpSettings, OtlpSink

SINCE_NS = NOW_NS - 3_600_000_000_000
_KINDS = {
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
}


class Receiver:
    """Takes export requests. `answer` decides on each; without it all is well. is_slow: it writes byte by byte."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.paths: list[str] = []
        self.headers: list[Any] = []
        self.compressed_bytes: list[int] = []
        self.answer: Callable[[Any], web.Response | None] = lambda _: None
        self.is_slow = False
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_post("/{path:.*}", self._take)
        self.server = TestServer(app)

    @property
    def endpoint(self) -> str:
        return str(self.server.make_url("/")).rstrip("/")

    async def _take(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/prefix")
        wanted, kind = _KINDS[path]
        assert request.content_type == "application/x-protobuf"
        assert request.headers["Content-Encoding"] == "gzip"
        decoded = wanted.FromString(await request.read())  # aiohttp undoes the compression
        self.paths.append(request.path)
        self.headers.append(request.headers)
        self.compressed_bytes.append(int(request.headers["Content-Length"]))
        answer = self.answer(decoded)
        if answer is None or answer.status < 300:
            self.requests.append(decoded)
        answer = answer or protobuf(kind())
        return await self._in_pieces(request, answer) if self.is_slow else answer

    async def _in_pieces(self, request: web.Request, answer: web.Response) -> web.StreamResponse:
        pieces = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
        await pieces.prepare(request)
        assert isinstance(answer.body, bytes)
        for place in range(len(answer.body)):
            await pieces.write(answer.body[place : place + 1])
        return pieces

    # what came, whatever requests it came in

    def metrics(self) -> list[tuple[dict[str, Any], Metric]]:
        return [
            (attributes(resource.resource.attributes), metric)
            for request in self.requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def logs(self) -> list[LogRecord]:
        return [
            record
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def protobuf(message: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        status=status, body=message.SerializeToString(), content_type="application/x-protobuf", headers=headers
    )


def failure(status: int, message: str, **headers: str) -> web.Response:
    """A `google.rpc.Status` with this message."""
    text = message.encode()
    return web.Response(
        status=status,
        body=b"\x08\x03\x12" + bytes([len(text)]) + text,
        content_type="application/x-protobuf",
        headers=headers,
    )


def attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    found = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
    assert len(found) == len(pairs)
    return found


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    it = Receiver()
    await it.server.start_server()
    yield it
    await it.server.close()


Open = Callable[..., OpenOtlp]


@pytest.fixture
async def otlp(receiver: Receiver) -> AsyncIterator[Open]:
    sinks: list[OpenOtlp] = []

    def open_sink(**settings: Any) -> OpenOtlp:
        made = OtlpSettings(**{"endpoint": receiver.endpoint, **settings})
        sinks.append(OtlpSink().open(made, "node17"))
        return sinks[-1]

    yield open_sink
    for sink in sinks:
        await sink.close()


def moment(number: int = 1, **changes: Any) -> Points:
    return replace(unpacked(number, packed(snapshot(), "1.2.3", SINCE_NS)), **changes)


def numbered(first: int, last: int, **changes: Any) -> list[NumberedReceipt]:
    return [NumberedReceipt(number, receipt(number, **changes)) for number in range(first, last + 1)]


def by_name(receiver: Receiver) -> dict[str, Metric]:
    metrics = [metric for _, metric in receiver.metrics()]
    assert len({metric.name for metric in metrics}) == len(metrics)
    return {metric.name: metric for metric in metrics}


def series(metric: Metric) -> dict[frozenset[tuple[str, Any]], Any]:
    points = getattr(metric, metric.WhichOneof("data")).data_points
    found = {frozenset(attributes(point.attributes).items()): point for point in points}
    assert len(found) == len(points)
    return found


# metrics


async def test_every_family_arrives_with_value_unit_and_attributes(receiver: Receiver, otlp: Open) -> None:
    sent = moment()
    assert await otlp().points([sent]) == Delivery(1)
    came = by_name(receiver)
    for family in sent.families:
        if family.name.removeprefix("jouled_") in names.CONVENTIONS:
            continue  # tests of their own
        metric = came.pop(names.own_name(family.name, family.unit))
        assert metric.unit == names.own_unit(family.unit)
        assert metric.description == family.help
        assert metric.WhichOneof("data") == {"counter": "sum", "histogram": "histogram"}.get(family.type, "gauge")
        keys = [names.ATTRIBUTES.get(label, f"jouled.{label}") for label in family.labels]
        points = series(metric)
        for labels, value in family.values.items():
            named = {key: label for key, label in zip(keys, labels, strict=True) if label}
            assert points.pop(frozenset(named.items())).as_double == value
        assert len(points) == len(family.histograms)
    assert set(came) == {"hw.energy", "hw.power", "hw.host.energy", "jouled.boundary.energy"}


async def test_names_and_units_are_as_a_reader_would_expect(receiver: Receiver, otlp: Open) -> None:
    await otlp().points([moment()])
    units = {name: metric.unit for name, metric in by_name(receiver).items()}
    assert {
        "jouled.energy": "J",
        "jouled.device.power.limit": "W",
        "jouled.engine.tokens": "{token}",
        "jouled.requests": "{request}",
        "jouled.tokens.per.joule": "{token}/J",
        "jouled.slo.attainment.lower.bound": "1",
        "jouled.books.watermark.timestamp": "s",
        "jouled.co2e": "g",
        "jouled.source.up": "",
        "jouled.energy.cost": "{currency}",
    }.items() <= units.items()


async def test_devices_follow_the_hardware_conventions(receiver: Receiver, otlp: Open) -> None:
    await otlp().points([moment()])
    came = by_name(receiver)
    energy, power = came["hw.energy"], came["hw.power"]
    assert (energy.unit, power.unit) == ("J", "W")
    joules = {key: point.as_double for key, point in series(energy).items()}
    assert joules[frozenset({("hw.id", "gpu3"), ("hw.type", "gpu")})] == 900_000.000001
    watts = {key: point.as_double for key, point in series(power).items()}
    assert watts[frozenset({("hw.id", "gpu0"), ("hw.type", "gpu")})] == 310.0
    assert watts[frozenset({("hw.id", "cpu_package1"), ("hw.type", "cpu")})] == 143.0
    assert watts[frozenset({("hw.id", "dram0"), ("hw.type", "memory")})] == 31.0
    assert len(watts) == 11  # gpu7 is silent
    described = [attributes(point.attributes) for point in came["jouled.device.info"].gauge.data_points]
    [gpu3] = [each for each in described if each["hw.id"] == "gpu3"]
    assert (gpu3["hw.vendor"], gpu3["hw.model"], gpu3["hw.parent"]) == ("nvidia", "H200 SXM", "node")


async def test_energy_of_the_host_is_apart_from_that_of_its_parts(receiver: Receiver, otlp: Open) -> None:
    sent = moment()
    await otlp().points([sent])
    came = by_name(receiver)
    [boundaries] = [family.values for family in sent.families if family.name == "jouled_boundary_energy_joules_total"]
    [host] = came["hw.host.energy"].sum.data_points
    assert (attributes(host.attributes), host.as_double) == ({"hw.id": "node"}, boundaries["node",])
    [compute] = came["jouled.boundary.energy"].sum.data_points
    assert (attributes(compute.attributes), compute.as_double) == (
        {"jouled.boundary": "compute"},
        boundaries["compute",],
    )


async def test_device_without_a_description_has_no_type(receiver: Receiver, otlp: Open) -> None:
    bare = tuple(family for family in moment().families if family.name != "jouled_device_info")
    await otlp().points([moment(families=bare)])
    assert frozenset({("hw.id", "gpu0")}) in series(by_name(receiver)["hw.power"])


async def test_counters_are_cumulative_from_their_start(receiver: Receiver, otlp: Open) -> None:
    await otlp().points([moment()])
    for metric in by_name(receiver).values():
        data = getattr(metric, metric.WhichOneof("data"))
        assert all(point.time_unix_nano == NOW_NS for point in data.data_points)
        if metric.HasField("gauge"):
            assert all(point.start_time_unix_nano == 0 for point in data.data_points)
            continue
        assert data.aggregation_temporality == 2  # cumulative
        assert all(point.start_time_unix_nano == SINCE_NS for point in data.data_points)
        assert not metric.HasField("sum") or data.is_monotonic


async def test_counters_that_began_anew_have_another_start(receiver: Receiver, otlp: Open) -> None:
    later = moment(2, t_ns=NOW_NS + 10, since_ns=NOW_NS + 5)
    assert await otlp().points([moment(1), later]) == Delivery(2)
    energies = [metric.sum.data_points[0] for _, metric in receiver.metrics() if metric.name == "jouled.energy"]
    assert [(point.start_time_unix_nano, point.time_unix_nano) for point in energies] == [
        (SINCE_NS, NOW_NS),
        (NOW_NS + 5, NOW_NS + 10),
    ]


async def test_histogram_has_single_buckets_and_exemplars(receiver: Receiver, otlp: Open) -> None:
    sent = moment()
    await otlp().points([sent])
    [family] = [each for each in sent.families if each.name == "jouled_request_energy_joules"]
    metric = by_name(receiver)["jouled.request.energy"]
    assert metric.unit == "J"
    for labels, histogram in family.histograms.items():
        point = series(metric)[frozenset({("gen_ai.request.model", labels[0])})]
        assert tuple(point.explicit_bounds) == histogram.bounds
        assert tuple(accumulate(point.bucket_counts)) == histogram.counts
        assert (point.count, point.sum) == (histogram.counts[-1], histogram.sum)
        assert len(point.exemplars) == len(histogram.bounds)
        first = point.exemplars[0]
        assert (first.as_double, first.trace_id.hex()) == (0.9, f"{1:032x}")
        assert abs(first.time_unix_nano - NOW_NS) < 1_000


async def test_exemplar_of_no_trace_keeps_its_value(receiver: Receiver, otlp: Open) -> None:
    sent = moment()
    [family] = [each for each in sent.families if each.name == "jouled_request_energy_joules"]
    labels, histogram = next(iter(family.histograms.items()))
    odd = replace(histogram, exemplars=((0.5, "no-trace", 7.0), (1.5, "0" * 32, 7.0), None))
    await otlp().points([moment(families=(replace(family, histograms={labels: odd}),))])
    [point] = by_name(receiver)["jouled.request.energy"].histogram.data_points
    assert [(each.as_double, each.trace_id, each.time_unix_nano) for each in point.exemplars] == [
        (0.5, b"", 7_000_000_000),
        (1.5, b"", 7_000_000_000),
    ]


async def test_states_are_gauges_of_one_and_zero(receiver: Receiver, otlp: Open) -> None:
    await otlp().points([moment()])
    states = series(by_name(receiver)["jouled.source.state"])
    assert states[frozenset({("jouled.source", "rapl"), ("jouled.state", "denied")})].as_double == 1.0
    assert states[frozenset({("jouled.source", "rapl"), ("jouled.state", "ok")})].as_double == 0.0


async def test_resource_is_the_node_and_nothing_of_requests(receiver: Receiver, otlp: Open) -> None:
    await otlp().points([moment(node="node18")])
    await otlp().receipts(numbered(1, 1))
    metrics, logs = receiver.requests
    wanted = {"service.name": "jouled", "service.version": jouled.__version__}
    assert attributes(metrics.resource_metrics[0].resource.attributes) == {**wanted, "host.name": "node18"}
    assert attributes(logs.resource_logs[0].resource.attributes) == {**wanted, "host.name": "node17"}
    assert metrics.resource_metrics[0].schema_url == f"https://opentelemetry.io/schemas/{names.CONVENTIONS_VERSION}"


async def test_same_moment_sent_again_is_the_same_request(receiver: Receiver, otlp: Open) -> None:
    await otlp().points([moment()])
    await otlp().points([moment()])
    first, second = receiver.requests
    assert first == second
    assert receiver.compressed_bytes[0] < first.ByteSize() / 4


# names


def test_names_of_the_table_are_in_the_catalogue() -> None:
    assert set(names.CONVENTIONS) <= set(CATALOGUE)
    labels = {label for metric in CATALOGUE.values() for label in metric.labels}
    assert set(names.ATTRIBUTES) <= labels | {"jouled_source_state"}
    assert set(names.RECEIPT_ATTRIBUTES) <= set(Receipt.__struct_fields__)
    for name, convention in names.CONVENTIONS.items():
        assert set(convention.attributes) <= set(CATALOGUE[name].labels)
        assert convention.only is None or convention.only[0] in CATALOGUE[name].labels
        assert convention.unit == names.MEASURES[CATALOGUE[name].unit]


def test_every_metric_of_the_catalogue_has_a_name_and_a_unit_of_its_own() -> None:
    own = [names.own_name(metric.full_name, metric.unit) for metric in CATALOGUE.values()]
    assert len(set(own)) == len(own)
    assert all(re.fullmatch(r"jouled(\.[a-z0-9]+)+", name) for name in own)
    for metric in CATALOGUE.values():
        names.own_unit(metric.unit)


def test_units_of_the_table_are_in_use() -> None:
    used = {metric.unit for metric in CATALOGUE.values()}
    assert set(names.COUNTS) | set(names.MEASURES) == used


def test_conventions_have_these_names_and_units() -> None:
    """Against the package that OpenTelemetry makes from the conventions."""
    semconv = "opentelemetry.semconv._incubating"
    hardware = importlib.import_module(f"{semconv}.metrics.hw_metrics")
    schemas = importlib.import_module("opentelemetry.semconv.schemas").Schemas
    known = {
        value
        for module in ("hw", "gen_ai", "log")
        for value in vars(importlib.import_module(f"{semconv}.attributes.{module}_attributes")).values()
        if isinstance(value, str)
    }
    assert names.SCHEMA_URL in {version.value for version in schemas}
    ours = {*names.ATTRIBUTES.values(), *names.RECEIPT_ATTRIBUTES.values(), names.RECORD_ID, names.HARDWARE_TYPE}
    assert {name for name in ours if not name.startswith("jouled.")} <= known
    text = Path(str(hardware.__file__)).read_text(encoding="utf-8")
    for name, convention in names.CONVENTIONS.items():
        constant = convention.name.upper().replace(".", "_")
        assert getattr(hardware, constant) == convention.name
        _, _, described = text.partition(f"{constant}: Final = ")
        assert f"Unit: {convention.unit}\n" in described.split('"""')[1]
        instrument = {"counter": "counter", "gauge": "gauge"}[CATALOGUE[name].type]
        assert f"Instrument: {instrument}\n" in described.split('"""')[1]
    types = {member.value for member in _hardware_types()}
    assert set(names.HARDWARE_TYPES.values()) <= types


def _hardware_types() -> Any:
    return importlib.import_module("opentelemetry.semconv._incubating.attributes.hw_attributes").HwTypeValues


# receipts


async def test_receipt_is_an_event_with_its_trace(receiver: Receiver, otlp: Open) -> None:
    sent = receipt(5, span_id="00f067aa0ba902b7", good={"chat": True, "batch": False}, method={"split": "kv"})
    assert await otlp().receipts([NumberedReceipt(41, sent)]) == Delivery(1)
    [record] = receiver.logs()
    assert record.event_name == "jouled.request"
    assert record.time_unix_nano == record.observed_time_unix_nano == sent.last_token_ns
    assert (record.severity_number, record.severity_text) == (9, "INFO")
    assert (record.trace_id.hex(), record.span_id.hex()) == (f"{5:032x}", "00f067aa0ba902b7")
    told = attributes(record.attributes)
    assert {
        "gen_ai.request.model": sent.model,
        "gen_ai.response.id": sent.id,
        "gen_ai.usage.input_tokens": 905,
        "gen_ai.usage.output_tokens": 240,
        "gen_ai.usage.cache_read.input_tokens": 128,
        "jouled.engine": sent.engine,
        "jouled.outcome": "completed",
        "jouled.joules": 321.5,
        "jouled.joules_prefill": 80.25,
        "jouled.sigma_joules": 9.5,
        "jouled.provisional": False,
        "jouled.quality": "measured",
        "jouled.good.chat": True,
        "jouled.good.batch": False,
        "jouled.method.split": "kv",
        "log.record.uid": f"node17/{sent.engine}/{sent.id}/41",
    }.items() <= told.items()
    assert "jouled.joules_residual" not in told  # absent is absent
    assert "jouled.tenant" not in told


@pytest.mark.parametrize("trace_id", ["", "abc", "0" * 32, "z" * 32, "ab" * 8])
async def test_ids_that_are_none_are_left_out(receiver: Receiver, otlp: Open, trace_id: str) -> None:
    await otlp().receipts(numbered(1, 1, trace_id=trace_id, span_id="00f067aa0ba902b7"))
    [record] = receiver.logs()
    assert (record.trace_id, record.span_id) == (b"", b"")


async def test_receipt_sent_again_has_the_same_id_and_others_have_others(receiver: Receiver, otlp: Open) -> None:
    await otlp().receipts(numbered(1, 3))
    await otlp().receipts(numbered(1, 3))
    ids = [attributes(record.attributes)["log.record.uid"] for record in receiver.logs()]
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3


async def test_receipt_as_span_is_a_child_of_the_engines(receiver: Receiver, otlp: Open) -> None:
    sent = receipt(5, span_id="00f067aa0ba902b7", outcome=Outcome.FAILED)
    sink = otlp(receipts="spans")
    await sink.receipts([NumberedReceipt(41, sent)])
    await sink.receipts([NumberedReceipt(41, sent), NumberedReceipt(42, replace(sent, outcome=Outcome.COMPLETED))])
    assert receiver.paths == ["/v1/traces"] * 2
    first, again, other = receiver.spans()
    assert first == again
    assert (first.name, first.kind) == ("jouled.request", Span.SPAN_KIND_INTERNAL)
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (sent.trace_id, "00f067aa0ba902b7")
    assert len(first.span_id) == 8
    assert first.span_id not in {other.span_id, first.parent_span_id}
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (sent.arrival_ns, sent.last_token_ns)
    assert (first.status.code, other.status.code) == (2, 0)  # error, unset
    assert attributes(first.attributes)["jouled.joules"] == 321.5


async def test_receipt_without_a_trace_is_a_span_of_its_own(receiver: Receiver, otlp: Open) -> None:
    sink = otlp(receipts="spans")
    await sink.receipts(numbered(1, 2, trace_id="", span_id="00f067aa0ba902b7"))
    first, second = receiver.spans()
    assert len(first.trace_id) == 16
    assert first.trace_id != second.trace_id
    assert first.parent_span_id == b""


async def test_streams_are_those_of_the_settings(otlp: Open) -> None:
    sink = otlp()
    assert isinstance(sink, TakesPoints)
    assert isinstance(sink, TakesReceipts)
    assert set(sink.most) == {"points", "receipts"}
    assert set(otlp(receipts="none").most) == {"points"}


# answers


async def test_partial_success_counts_the_last_as_rejected(receiver: Receiver, otlp: Open) -> None:
    said = ExportLogsServiceResponse()
    said.partial_success.rejected_log_records = 200  # a varint of two bytes, which is no UTF-8
    said.partial_success.error_message = "attribute too long"
    receiver.answer = lambda _: protobuf(said)
    delivery = await otlp().receipts(numbered(1, 500))
    assert delivery.taken == 500
    assert [each.index for each in delivery.rejected] == list(range(300, 500))
    assert {each.reason for each in delivery.rejected} == {"refused"}
    assert delivery.rejected[0].message == (
        "200 of 500 log records rejected, which ones is not told: attribute too long"
    )
    assert len(receiver.requests) == 1  # OTLP forbids to send it again


async def test_answer_in_pieces_is_read_whole(receiver: Receiver, otlp: Open) -> None:
    said = ExportLogsServiceResponse()
    said.partial_success.rejected_log_records = 2
    said.partial_success.error_message = "too long" * 100
    receiver.answer = lambda _: protobuf(said)
    receiver.is_slow = True
    delivery = await otlp().receipts(numbered(1, 3))
    assert [each.index for each in delivery.rejected] == [1, 2]
    assert delivery.rejected[0].message.endswith("too long" * 100)


async def test_partial_success_of_spans_is_read_too(receiver: Receiver, otlp: Open) -> None:
    said = ExportTraceServiceResponse()
    said.partial_success.rejected_spans = 1
    receiver.answer = lambda _: protobuf(said)
    delivery = await otlp(receipts="spans").receipts(numbered(1, 3))
    assert [each.index for each in delivery.rejected] == [2]


@pytest.mark.parametrize(("share", "moments"), [(0.0, 0), (0.01, 1), (1.0, 1), (1.01, 2), (9.0, 3)])
async def test_rejected_data_points_are_as_many_moments_as_hold_them(
    receiver: Receiver, otlp: Open, share: float, moments: int
) -> None:
    sent = moment()
    size = sum(len(family.values) + len(family.histograms) for family in sent.families)
    said = ExportMetricsServiceResponse()
    said.partial_success.rejected_data_points = round(share * size)
    receiver.answer = lambda _: protobuf(said)
    delivery = await otlp().points([moment(1), moment(2), moment(3)])
    assert delivery.taken == 3
    assert [each.index for each in delivery.rejected] == list(range(3 - moments, 3))


async def test_warning_rejects_nothing_and_is_logged_once(
    receiver: Receiver, otlp: Open, caplog: pytest.LogCaptureFixture
) -> None:
    said = ExportLogsServiceResponse()
    said.partial_success.error_message = "soon this will be too old"
    receiver.answer = lambda _: protobuf(said)
    sink = otlp()
    assert await sink.receipts(numbered(1, 2)) == Delivery(2)
    assert await sink.receipts(numbered(3, 4)) == Delivery(2)
    assert caplog.text.count("soon this will be too old") == 1


@pytest.mark.parametrize("body", [b"", b"ok", b"\xff\xff\xff", b"{}"])
async def test_answer_that_is_no_protobuf_is_a_success(receiver: Receiver, otlp: Open, body: bytes) -> None:
    receiver.answer = lambda _: web.Response(body=body, content_type="application/x-protobuf")
    assert await otlp().receipts(numbered(1, 2)) == Delivery(2)


def _refuses(bad: set[int]) -> Callable[[Any], web.Response | None]:
    def answer(request: Any) -> web.Response | None:
        records = request.resource_logs[0].scope_logs[0].log_records
        ids = {int(attributes(record.attributes)["log.record.uid"].rpartition("/")[2]) for record in records}
        return failure(400, "bad data") if ids & bad else None

    return answer


async def test_only_the_culprits_of_bad_data_are_rejected(receiver: Receiver, otlp: Open) -> None:
    receiver.answer = _refuses({7, 60})
    delivery = await otlp().receipts(numbered(1, 64))
    assert delivery.taken == 64
    assert [each.index for each in delivery.rejected] == [6, 59]
    assert "bad data" in delivery.rejected[0].message
    assert not re.search(r"[\x00-\x1f]", delivery.rejected[0].message)
    came = [int(attributes(each.attributes)["log.record.uid"].rpartition("/")[2]) for each in receiver.logs()]
    assert sorted(came) == [number for number in range(1, 65) if number not in {7, 60}]


async def test_search_for_culprits_ends(receiver: Receiver, otlp: Open) -> None:
    receiver.answer = _refuses(set(range(1, 1_001)))
    with pytest.raises(SinkError, match="everything is refused alike"):
        await otlp().receipts(numbered(1, 1_000))
    assert len(receiver.paths) < 200


async def test_partial_success_and_culprits_stand_in_order(receiver: Receiver, otlp: Open) -> None:
    said = ExportLogsServiceResponse()
    said.partial_success.rejected_log_records = 1
    refuses = _refuses({2})
    receiver.answer = lambda request: refuses(request) or protobuf(said)
    delivery = await otlp().receipts(numbered(11, 12) + numbered(2, 3))
    assert delivery.taken == 4
    assert [each.index for each in delivery.rejected] == [1, 2, 3]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "throttled"), (502, "server_error"), (503, "server_error"), (504, "server_error"), (500, "server_error")],
)
async def test_busy_or_broken_receiver_takes_nothing(receiver: Receiver, otlp: Open, status: int, reason: str) -> None:
    receiver.answer = lambda _: failure(status, "come back later", **{"Retry-After": "17"})
    with pytest.raises(SinkError, match="come back later") as failed:
        await otlp().points([moment()])
    assert (failed.value.reason, failed.value.retry_after_seconds) == (reason, 17.0)


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "unauthorized"), (404, "not_found"), (405, "refused"), (415, "refused")]
)
async def test_receiver_that_is_none_rejects_no_record(
    receiver: Receiver, otlp: Open, status: int, reason: str
) -> None:
    receiver.answer = lambda _: web.Response(status=status, text="no")
    with pytest.raises(SinkError) as failed:
        await otlp().receipts(numbered(1, 9))
    assert failed.value.reason == reason
    assert len(receiver.paths) == 1


async def test_nobody_there_is_unreachable() -> None:
    sink = OtlpSink().open(OtlpSettings(endpoint=f"http://127.0.0.1:{free_port()}"), "node17")
    with pytest.raises(SinkError) as failed:
        await sink.receipts(numbered(1, 1))
    assert failed.value.reason == "unreachable"
    await sink.close()


# settings


@pytest.mark.parametrize("tail", ["", "/", "/prefix", "/prefix/"])
async def test_signals_are_appended_to_the_base(receiver: Receiver, otlp: Open, tail: str) -> None:
    sink = otlp(endpoint=receiver.endpoint + tail)
    await sink.points([moment()])
    await sink.receipts(numbered(1, 1))
    base = tail.rstrip("/")
    assert receiver.paths == [f"{base}/v1/metrics", f"{base}/v1/logs"]


async def test_secrets_and_headers_are_sent(receiver: Receiver, otlp: Open, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "headers").write_text("X-Api-Key: k:e:y\nX-Other:  o \n")
    sink = otlp(
        token_file=str(tmp_path / "token"), headers_file=str(tmp_path / "headers"), headers={"X-Scope-OrgID": "gpus"}
    )
    await sink.receipts(numbered(1, 1))
    [headers] = receiver.headers
    assert headers["Authorization"] == "Bearer s3cret"
    assert headers["X-Api-Key"] == "k:e:y"
    assert headers["X-Other"] == "o"
    assert headers["X-Scope-OrgID"] == "gpus"
    assert headers["User-Agent"] == f"jouled/{jouled.__version__}"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"endpoint": "collector:4318"}, "endpoint"),
        ({"endpoint": "grpc://collector:4317"}, "endpoint"),
        ({"endpoint": "http://user:s3cret@collector:4318"}, "endpoint"),
        ({"endpoint": "http://collector:4318/?token=s3cret"}, "endpoint"),
        ({"endpoint": "http://collector:4318/v1/metrics"}, "endpoint"),
        ({"headers": {"Authorization": "s3cret"}}, "headers"),
        ({"key_file": "/x"}, "cert_file"),
        ({"ca_file": "/does/not/exist"}, "/does/not/exist"),
        ({"token_file": "/does/not/exist"}, "token_file"),
        ({"headers_file": "FOLDER/broken"}, "line 2 of headers_file"),
        ({"headers_file": "FOLDER/authorization", "token_file": "FOLDER/token"}, "Authorization"),
    ],
)
async def test_settings_without_sense_are_refused_without_their_secrets(
    tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    (tmp_path / "broken").write_text("X-Api-Key: s3cret\ns3cret\n")
    (tmp_path / "authorization").write_text("authorization: Basic s3cret\n")
    (tmp_path / "token").write_text("s3cret\n")
    placed = {
        key: value.replace("FOLDER", str(tmp_path)) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    with pytest.raises(ConfigurationError, match=re.escape(word)) as refused:
        OtlpSink().open(OtlpSettings(**placed), "node17")
    assert "s3cret" not in str(refused.value)


def self_signed(folder: Path) -> tuple[Path, Path]:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


async def test_receiver_with_a_certificate_is_trusted_by_its_file(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    receiver = Receiver()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    server = TestServer(receiver.server.app, scheme="https", host="localhost")
    await server.start_server(ssl=context)
    endpoint = f"https://localhost:{server.port}"
    known = OtlpSettings(endpoint=endpoint, ca_file=str(certificate), cert_file=str(certificate), key_file=str(key))
    trusting = OtlpSink().open(known, "node17")
    assert await trusting.receipts(numbered(1, 1)) == Delivery(1)
    for stranger in (OtlpSettings(endpoint=endpoint), OtlpSettings(endpoint=endpoint, ca_file=str(certificate))):
        refusing = OtlpSink().open(stranger, "node17")
        with pytest.raises(SinkError) as failed:
            await refusing.receipts(numbered(1, 1))
        assert failed.value.reason == "unreachable"
        await refusing.close()
    await trusting.close()
    await server.close()


def test_protobuf_is_imported_only_when_it_is_needed() -> None:
    script = (
        "import sys, jouled.outputs.sinks.otlp as otlp; "
        "loaded = {name.partition('.')[0] for name in sys.modules} & {'google', 'opentelemetry'}; "
        "sys.exit(' '.join(loaded) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
