"""OTLP traces, by HTTP at `/v1/traces` and by gRPC: the spans of requests are taken, all others left alone."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
from msgspec.structs import replace

from jouled.api import Received, ReceivedRequest, Rejected
from jouled_collectors.requests import dynamo_span, genai_span, sglang_span, tensorrt_llm_span, vllm_span
from jouled_collectors.requests.answers import Answers
from jouled_collectors.requests.checks import RefusedError
from jouled_collectors.requests.dynamo_join import DynamoJoin
from jouled_collectors.requests.json_body import media_type
from jouled_collectors.requests.spans import Span, SpanBatch, SpanReader, Wanted

READERS: Sequence[SpanReader] = (
    tensorrt_llm_span.READER,
    vllm_span.READER,
    sglang_span.READER,
    genai_span.READER,
)
"""Of those who want a span's name, the first one that makes a request of it has it."""

_WANTED = Wanted((*READERS, dynamo_span.KIND))

_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_NAMED_IN_MESSAGE = 3


class OtlpReceiver:
    """Takes spans of requests. A broken one is refused with its position, the others are taken.

    Of Dynamo several processes tell of one request, in bodies of their own: spans are held until all have come.
    """

    name: ClassVar[str] = "otlp"
    path: ClassVar[str] = "/v1/traces"
    content_types: ClassVar[Sequence[str]] = (_PROTOBUF, _JSON)
    method: ClassVar[str] = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

    def __init__(self) -> None:
        self._dynamo = DynamoJoin()
        self._answers = Answers()

    def decode(self, body: bytes, content_type: str) -> Received:
        """Read an export request. Raises `MalformedBodyError` with the position of the fault."""
        if media_type(content_type) == _JSON:
            from jouled_collectors.requests import otlp_json

            return self._received(otlp_json.read_spans(body, _WANTED))
        return self.decode_message(body)

    def respond(self, received: Received, content_type: str) -> tuple[bytes, Mapping[str, str]]:
        """`ExportTraceServiceResponse` in the sender's encoding, with what was refused as partial success."""
        if media_type(content_type) == _JSON:
            return _json_answer(received), {"Content-Type": _JSON}
        return self.response_message(received), {"Content-Type": _PROTOBUF}

    # The protobuf library costs a fifth of a second and some megabytes: it is imported when the first such body comes.

    def decode_message(self, message: bytes) -> Received:
        """Read an `ExportTraceServiceRequest`. Raises `MalformedBodyError` with the position of the fault."""
        from jouled_collectors.requests import otlp_protobuf

        return self._received(otlp_protobuf.read_spans(message, _WANTED))

    def response_message(self, received: Received) -> bytes:
        """`ExportTraceServiceResponse`, with what was refused as partial success."""
        from jouled_collectors.requests import otlp_protobuf

        return otlp_protobuf.answer(received.rejected_count, _message(received)) if received.rejected else b""

    def overdue(self, now_ns: int) -> Received:
        """Requests of Dynamo of which a part has not come in time."""
        return self._dynamo.overdue(now_ns)

    def _received(self, batch: SpanBatch) -> Received:
        requests: list[ReceivedRequest] = []
        ignored = batch.ignored
        for position, span in batch.wanted:
            try:
                part = dynamo_span.read(span)
                request = None if part else _read(span)
                whole = self._dynamo.add(part, position) if part else ()
            except RefusedError as error:
                batch.rejected.add(Rejected(position, error.reason, str(error)))
                continue
            requests += whole
            if request is not None:
                requests.append(self._answers.numbered(replace(request, position=position)))
            elif not whole:  # of no request, or of one that is not whole yet
                ignored += 1
        refused, more = batch.rejected.kept, batch.rejected.more
        return Received(requests=requests, rejected=refused, more_rejected=more, ignored=ignored)


def _read(span: Span) -> ReceivedRequest | None:
    for reader in READERS:
        if reader.wants(span.name) and (request := reader.read(span)) is not None:
            return request
    return None


def _json_answer(received: Received) -> bytes:
    if not received.rejected:
        return b"{}"
    partial = {"rejectedSpans": str(received.rejected_count), "errorMessage": _message(received)}
    return msgspec.json.encode({"partialSuccess": partial})


def _message(received: Received) -> str:
    named = "; ".join(
        f"{each.position}: {each.reason}: {each.message}" for each in received.rejected[:_NAMED_IN_MESSAGE]
    )
    more = received.rejected_count - _NAMED_IN_MESSAGE
    return f"{named}; and {more} more" if more > 0 else named
