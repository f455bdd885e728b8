"""`POST /v1/traces`: OTLP/HTTP, of which vLLM's request spans are taken and all others left alone."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from jouled.api import Received, Rejected
from jouled_collectors.requests import otlp_json, otlp_protobuf
from jouled_collectors.requests.checks import RefusedError
from jouled_collectors.requests.json_body import media_type
from jouled_collectors.requests.vllm_span import SPAN_NAME, read_request

_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_NAMED_IN_MESSAGE = 3


class OtlpReceiver:
    """Takes `llm_request` spans. A broken span is refused with its position, the others are taken."""

    name: ClassVar[str] = "otlp"
    path: ClassVar[str] = "/v1/traces"
    content_types: ClassVar[Sequence[str]] = (_PROTOBUF, _JSON)

    def decode(self, body: bytes, content_type: str) -> Received:
        """Read an export request. Raises `MalformedBodyError` with the position of the fault."""
        reader = otlp_json if media_type(content_type) == _JSON else otlp_protobuf
        batch = reader.read_spans(body, SPAN_NAME)
        requests = []
        rejected = list(batch.rejected)
        for position, span in batch.wanted:
            try:
                requests.append(read_request(span))
            except RefusedError as error:
                rejected.append(Rejected(position, error.reason, str(error)))
        return Received(requests=requests, rejected=rejected, ignored=batch.ignored)

    def respond(self, received: Received, content_type: str) -> tuple[bytes, Mapping[str, str]]:
        """`ExportTraceServiceResponse` in the sender's encoding, with what was refused as partial success."""
        if media_type(content_type) == _JSON:
            return _json_answer(received.rejected), {"Content-Type": _JSON}
        return _protobuf_answer(received.rejected), {"Content-Type": _PROTOBUF}


def _json_answer(rejected: Sequence[Rejected]) -> bytes:
    if not rejected:
        return b"{}"
    partial = {"rejectedSpans": str(len(rejected)), "errorMessage": _message(rejected)}
    return msgspec.json.encode({"partialSuccess": partial})


def _protobuf_answer(rejected: Sequence[Rejected]) -> bytes:
    if not rejected:
        return ExportTraceServiceResponse().SerializeToString()
    partial = ExportTracePartialSuccess(rejected_spans=len(rejected), error_message=_message(rejected))
    return ExportTraceServiceResponse(partial_success=partial).SerializeToString()


def _message(rejected: Sequence[Rejected]) -> str:
    named = "; ".join(f"{each.position}: {each.reason}: {each.message}" for each in rejected[:_NAMED_IN_MESSAGE])
    more = len(rejected) - _NAMED_IN_MESSAGE
    return f"{named}; and {more} more" if more > 0 else named
