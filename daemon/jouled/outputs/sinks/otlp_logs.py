"""Receipts as OTLP log records (events) or as spans.

https://opentelemetry.io/docs/specs/otel/logs/data-model/ and .../trace/api/
"""

from collections.abc import Sequence
from hashlib import blake2b

from msgspec import structs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from jouled.model.points import NumberedReceipt
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome
from jouled.outputs.sinks.otlp_names import RECEIPT_ATTRIBUTES, RECORD_ID, REQUEST_EVENT, SCHEMA_URL
from jouled.outputs.sinks.otlp_wire import (
    SPAN_ID_BYTES,
    TRACE_ID_BYTES,
    Scalar,
    attributes,
    decoded,
    id_bytes,
    resource,
    scope,
)

LOGS_PATH, SPANS_PATH = "/v1/logs", "/v1/traces"


def encoded_logs(receipts: Sequence[NumberedReceipt], node: str) -> bytes:
    """Receipts as one export request of log records."""
    records = [_log_record(each, node) for each in receipts]
    scoped = logs_pb2.ScopeLogs(scope=scope(), log_records=records, schema_url=SCHEMA_URL)
    logs = logs_pb2.ResourceLogs(resource=resource(node), scope_logs=[scoped], schema_url=SCHEMA_URL)
    return ExportLogsServiceRequest(resource_logs=[logs]).SerializeToString()


def encoded_spans(receipts: Sequence[NumberedReceipt], node: str) -> bytes:
    """Receipts as one export request of spans."""
    scoped = trace_pb2.ScopeSpans(scope=scope(), spans=[_span(each, node) for each in receipts], schema_url=SCHEMA_URL)
    spans = trace_pb2.ResourceSpans(resource=resource(node), scope_spans=[scoped], schema_url=SCHEMA_URL)
    return ExportTraceServiceRequest(resource_spans=[spans]).SerializeToString()


def refused_logs(answer: bytes) -> tuple[int, str]:
    """Log records that the other side rejected, and what it says."""
    said = decoded(ExportLogsServiceResponse, answer).partial_success
    return said.rejected_log_records, said.error_message


def refused_spans(answer: bytes) -> tuple[int, str]:
    """Spans that the other side rejected, and what it says."""
    said = decoded(ExportTraceServiceResponse, answer).partial_success
    return said.rejected_spans, said.error_message


def _log_record(numbered: NumberedReceipt, node: str) -> logs_pb2.LogRecord:
    receipt = numbered.receipt
    trace_id = id_bytes(receipt.trace_id, TRACE_ID_BYTES)
    return logs_pb2.LogRecord(
        event_name=REQUEST_EVENT,
        time_unix_nano=receipt.last_token_ns,
        observed_time_unix_nano=receipt.last_token_ns,  # of no use to the reader, and the same when it is sent again
        severity_number=logs_pb2.SEVERITY_NUMBER_INFO,
        severity_text="INFO",
        trace_id=trace_id,
        span_id=id_bytes(receipt.span_id, SPAN_ID_BYTES) if trace_id else b"",  # a span is one of a trace
        attributes=attributes({**_described(receipt), RECORD_ID: _record_id(numbered, node)}),
    )


def _span(numbered: NumberedReceipt, node: str) -> trace_pb2.Span:
    """A child of the engine's span; in a trace of its own where the engine told of none."""
    receipt = numbered.receipt
    record_id = _record_id(numbered, node)
    trace_id = id_bytes(receipt.trace_id, TRACE_ID_BYTES)
    is_failed = receipt.outcome is Outcome.FAILED
    return trace_pb2.Span(
        name=REQUEST_EVENT,
        kind=trace_pb2.Span.SPAN_KIND_INTERNAL,
        trace_id=trace_id or _hash(record_id, TRACE_ID_BYTES),
        span_id=_hash(record_id, SPAN_ID_BYTES),
        parent_span_id=id_bytes(receipt.span_id, SPAN_ID_BYTES) if trace_id else b"",
        start_time_unix_nano=receipt.arrival_ns,
        end_time_unix_nano=receipt.last_token_ns,
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR) if is_failed else None,
        attributes=attributes({**_described(receipt), RECORD_ID: record_id}),
    )


def _record_id(numbered: NumberedReceipt, node: str) -> str:
    """The same whenever this receipt is sent, and that of no other one."""
    receipt = numbered.receipt
    return f"{node}/{receipt.engine}/{receipt.id}/{numbered.number}"


def _hash(record_id: str, size: int) -> bytes:
    return blake2b(record_id.encode(), digest_size=size).digest()


def _described(receipt: Receipt) -> dict[str, Scalar]:
    """Every field that is known; those of tables one by one (`jouled.good.<slo>`)."""
    found: dict[str, Scalar] = {}
    for field, value in structs.asdict(receipt).items():
        key = RECEIPT_ATTRIBUTES.get(field) or f"jouled.{field}"
        if isinstance(value, dict):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        elif value is not None:
            found[key] = value
    return found
