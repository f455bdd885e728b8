"""Every way of a trace into a real daemon, by real OpenTelemetry exporters, as far as the receipt."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.types import AttributeValue
from tests.e2e.conftest import METER, Launch
from tests.e2e.engine_server import engine_server
from tests.support.live import PATIENCE_SECONDS, wait_for
from tests.support.tools import free_port

LATENCIES = {"gen_ai.latency.time_to_first_token": 0.2, "gen_ai.latency.e2e": 1.0}
COUNTS = {"gen_ai.usage.prompt_tokens": 100, "gen_ai.usage.completion_tokens": 50}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


def span(scope: str, name: str, attributes: Mapping[str, AttributeValue], service: str) -> Sequence[ReadableSpan]:
    """One span of a second that has just ended."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    now_ns = time.time_ns()
    made = provider.get_tracer(scope).start_span(name, start_time=now_ns - 10**9, attributes=attributes)
    made.end(now_ns)
    provider.shutdown()
    return kept.get_finished_spans()


def of_vllm(request_id: str) -> Sequence[ReadableSpan]:
    attributes = {"gen_ai.request.id": request_id, **COUNTS, **LATENCIES}
    return span("vllm.tracing.otel", "llm_request", attributes, "vllm-0")


def of_sglang(request_id: str) -> Sequence[ReadableSpan]:
    attributes = {"rid": request_id, "gen_ai.request.id": request_id, **COUNTS, **LATENCIES}
    return span("sglang server", f" Req {request_id[:8]}", attributes, "sg-0")


def of_tensorrt_llm(request_id: str) -> Sequence[ReadableSpan]:
    attributes = {"gen_ai.request.id": int(request_id), **COUNTS, **LATENCIES}
    return span("trt.llm", "llm_request", attributes, "trt-0")


def of_a_client(request_id: str, port: int) -> Sequence[ReadableSpan]:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.id": request_id,
        "gen_ai.response.time_to_first_chunk": 0.2,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 50,
        "server.address": "localhost",
        "server.port": port,
    }
    return span("opentelemetry.instrumentation.genai.openai", "chat tiny", attributes, "shop")


def test_spans_of_every_kind_by_every_way_become_receipts(launch: Launch) -> None:
    port = free_port()
    with engine_server() as (_, url), engine_server() as (_, second), engine_server() as (_, third):
        names = {"vllm-0": url, "sg-0": second, "trt-0": third}
        engines = "".join(
            f'[[engines]]\nname = "{name}"\ntype = "vllm"\nurl = "{at}"\ndevices = ["gpu0"]\ninterval_seconds = 0.5\n'
            for name, at in names.items()
        )
        daemon = launch(METER + f'[requests.otlp]\ngrpc_listen = "127.0.0.1:{port}"\n' + engines)
        began = time.monotonic()
        wait_for(
            lambda: time.monotonic() - began > 1.5, PATIENCE_SECONDS, "time stands still"
        )  # the requests take a second
        exporters = {
            "http": HttpExporter(endpoint=f"{daemon.url}/v1/traces"),
            "http-gzip": HttpExporter(endpoint=f"{daemon.url}/v1/traces", compression=Compression.Gzip),
            "grpc": GrpcExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True),
            "grpc-gzip": GrpcExporter(
                endpoint=f"http://127.0.0.1:{port}", insecure=True, compression=grpc.Compression.Gzip
            ),
        }
        for number, (way, exporter) in enumerate(exporters.items()):
            for spans in (
                of_vllm(f"v-{way}"),
                of_sglang(f"s-{way}"),
                of_tensorrt_llm(f"10{number}"),
                of_a_client(f"c-{way}", urlsplit(url).port or 0),
            ):
                assert exporter.export(spans) is SpanExportResult.SUCCESS, daemon.log_tail()
            exporter.shutdown()
        wait_for(lambda: all(daemon.receipt(f"c-{way}") for way in exporters), PATIENCE_SECONDS, "no receipts")
        for number, way in enumerate(exporters):
            owners = {"v-": "vllm-0", "s-": "sg-0", "c-": "vllm-0"}
            found = {kind: (daemon.receipt(kind + way) or {}).get("engine") for kind in owners}
            assert found == owners
            assert (daemon.receipt(f"10{number}") or {}).get("engine") == "trt-0"
        assert b"jouled_rejected_events_total{" not in daemon.get("/metrics")


def test_a_port_that_is_taken_ends_the_start_with_the_key_to_change(launch: Launch, tmp_path: Path) -> None:
    daemon = launch(METER)
    taken = f'{METER}[requests.otlp]\ngrpc_listen = "{urlsplit(daemon.url).netloc}"\n'
    second = launch(taken, "--state", tmp_path / "other", ready=False)
    assert second.process is not None
    assert second.process.wait(PATIENCE_SECONDS) != 0
    assert "grpc_listen" in second.log_tail()
