"""Whatever a span says under the names that its readers ask for: it is a sound request, refused, or none."""

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.support.otlp import attribute, decode_both_loosely

from jouled.model.requests import RequestEvent
from jouled_collectors.requests.otlp import READERS
from jouled_collectors.requests.spans import Wanted

WANTED = Wanted(READERS)
NAMES = ["llm_request", " Req 5f0c1a2e", "prefill Req 5f0c1a2e", "decode Req ", "chat tiny", "text_completion", "other"]
SCOPES = ["trt.llm", "vllm.tracing.otel", "sglang server", ""]

VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 1000)
    | st.floats()
    | st.floats(0, 2)
    | st.booleans()
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(["chat", '["stop"]', '["abort"]', "[", "127.0.0.1"])
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3)
)
VALID: dict[str, object] = {
    "gen_ai.request.id": "r1",
    "gen_ai.usage.prompt_tokens": 100,
    "gen_ai.usage.completion_tokens": 50,
    "gen_ai.usage.cached_tokens": 10,
    "gen_ai.latency.time_to_first_token": 0.2,
    "gen_ai.latency.e2e": 1.0,
    "gen_ai.operation.name": "chat",
    "gen_ai.response.id": "r1",
    "gen_ai.response.time_to_first_chunk": 0.2,
}
TIMES = st.integers(0, 2**64 - 1) | st.integers(10**18, 10**18 + 10**10)


@given(
    name=st.sampled_from(NAMES),
    scope=st.sampled_from(SCOPES),
    changes=st.dictionaries(st.sampled_from(sorted(WANTED.attributes)), VALUES, max_size=4),
    left_out=st.sets(st.sampled_from(sorted(VALID)), max_size=2),
    resource=st.dictionaries(st.sampled_from(sorted(WANTED.resource)), VALUES),
    times=st.tuples(TIMES, TIMES) | st.just((10**18, 10**18 + 10**9)),
)
def test_any_values_make_a_sound_request_or_none(
    name: str,
    scope: str,
    changes: dict[str, object],
    left_out: set[str],
    resource: dict[str, object],
    times: tuple[int, int],
) -> None:
    attributes = {key: value for key, value in (VALID | changes).items() if key not in left_out}
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.extend(attribute(key, value) for key, value in resource.items())
    spans = of_resource.scope_spans.add()
    spans.scope.name = scope
    spans.spans.add(
        name=name,
        start_time_unix_nano=times[0],
        end_time_unix_nano=times[1],
        attributes=[attribute(key, value) for key, value in attributes.items()],
    )
    received = decode_both_loosely(request)
    assert len(received.requests) + received.rejected_count + received.ignored == 1
    for each in received.requests:
        event = each.event
        assert isinstance(event, RequestEvent)
        assert 0 < event.arrival_ns <= event.first_token_ns <= event.last_token_ns < 2**63
        assert 0 <= (event.cached_prompt_tokens or 0) <= event.prompt_tokens <= 10_000_000
        assert 0 <= event.generation_tokens <= 10_000_000
        assert event.id.strip()


def test_names_that_are_wanted() -> None:
    assert [name for name in NAMES if not WANTED.name(name)] == ["other"]
    assert not WANTED.name("")
    assert not WANTED.name("Req")
    assert {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.prompt"}.isdisjoint(WANTED.attributes)
