"""`POST /v1/traces`: OTLP/HTTP, of which vLLM's request spans are taken and all others left alone."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
from msgspec.structs import replace

from jouled.api import Received, Rejected
from jouled_collectors.requests.checks import RefusedError
from jouled_collectors.requests.json_body import media_type
from jouled_collectors.requests.spans import SpanBatch
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
        batch = _read_spans(body, content_type)
        requests = []
        for position, span in batch.wanted:
            try:
                requests.append(replace(read_request(span), position=position))
            except RefusedError as error:
                batch.rejected.add(Rejected(position, error.reason, str(error)))
        return Received(
            requests=requests, rejected=batch.rejected.kept, more_rejected=batch.rejected.more, ignored=batch.ignored
        )

    def respond(self, received: Received, content_type: str) -> tuple[bytes, Mapping[str, str]]:
        """`ExportTraceServiceResponse` in the sender's encoding, with what was refused as partial success."""
        if media_type(content_type) == _JSON:
            return _json_answer(received), {"Content-Type": _JSON}
        return _protobuf_answer(received), {"Content-Type": _PROTOBUF}


# The protobuf library costs a fifth of a second and some megabytes: it is imported when the first such body comes.


def _read_spans(body: bytes, content_type: str) -> SpanBatch:
    if media_type(content_type) == _JSON:
        from jouled_collectors.requests import otlp_json

        return otlp_json.read_spans(body, SPAN_NAME)
    from jouled_collectors.requests import otlp_protobuf

    return otlp_protobuf.read_spans(body, SPAN_NAME)


def _json_answer(received: Received) -> bytes:
    if not received.rejected:
        return b"{}"
    partial = {"rejectedSpans": str(received.rejected_count), "errorMessage": _message(received)}
    return msgspec.json.encode({"partialSuccess": partial})


def _protobuf_answer(received: Received) -> bytes:
    from jouled_collectors.requests import otlp_protobuf

    return otlp_protobuf.answer(received.rejected_count, _message(received)) if received.rejected else b""


def _message(received: Received) -> str:
    named = "; ".join(
        f"{each.position}: {each.reason}: {each.message}" for each in received.rejected[:_NAMED_IN_MESSAGE]
    )
    more = received.rejected_count - _NAMED_IN_MESSAGE
    return f"{named}; and {more} more" if more > 0 else named
