"""The way of a joule: from a meter and an engine through a span to a receipt, in a real daemon."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from tests.e2e.conftest import METER, Launch, until_covered
from tests.e2e.engine_server import engine_server
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for

GENERATED = 'jouled_engine_tokens_total{engine="tiny-0",kind="generation",model_name="tiny"}'


def engine_table(name: str, url: str) -> str:
    return f'[[engines]]\nname = "{name}"\ntype = "vllm"\nurl = "{url}"\ndevices = ["gpu0"]\ninterval_seconds = 0.5\n'


def send_span(daemon: LiveDaemon, request_id: str, seconds: float = 1.5) -> None:
    """Tell of a request that has just ended, as vLLM does, by the real exporter."""
    provider = TracerProvider(resource=Resource.create({"service.name": "vllm"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{daemon.url}/v1/traces")))
    end_ns = time.time_ns()
    start_ns = end_ns - round(seconds * 1e9)
    span = provider.get_tracer("vllm.tracing.otel").start_span(
        "llm_request",
        kind=SpanKind.SERVER,
        start_time=start_ns,
        attributes={
            "gen_ai.request.id": request_id,
            "gen_ai.usage.prompt_tokens": 100,
            "gen_ai.usage.completion_tokens": 50,
            "gen_ai.latency.time_in_queue": 0.001,
            "gen_ai.latency.time_to_first_token": 0.2,
            "gen_ai.latency.e2e": seconds,
            "gen_ai.latency.time_in_model_prefill": 0.198,
            "gen_ai.latency.time_in_model_decode": seconds - 0.2,
            "gen_ai.latency.time_in_model_inference": seconds - 0.002,
        },
    )
    span.end(end_ns)
    provider.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def test_a_span_becomes_a_receipt(launch: Launch) -> None:
    with engine_server() as (engine, url):
        daemon = launch(METER + engine_table("tiny-0", url))
        wait_for(
            lambda: (
                "engine_info{" in daemon.get("/metrics").decode()
                and daemon.json("/api/v1/snapshot")["engines"][0]["version"]
            ),
            PATIENCE_SECONDS,
            "the engine's page was not read",
        )
        until_covered(daemon, engine, 2.0)
        send_span(daemon, "chatcmpl-e2e-1")
        engine.until_looked_at()
        engine.prompt += 100
        engine.generation += 50
        first = wait_for(lambda: daemon.receipt("e2e-1"), PATIENCE_SECONDS, "no receipt")
        assert first["engine"] == "tiny-0"
        assert first["model"] == "tiny"
        assert first["generation_tokens"] == 50
        final = wait_for(
            lambda: (found := daemon.receipt("e2e-1")) and not found["provisional"] and found,
            PATIENCE_SECONDS,
            "the receipt is not final",
        )
        assert 0 < final["joules"] <= 200 * 1.6
        wait_for(lambda: shows(daemon, f"{GENERATED} 50.0\n"), PATIENCE_SECONDS, "the tokens were not counted")
        page = daemon.page()
        assert page.total("jouled_engine_tokens_total", kind="generation") == 50
        assert page.total("jouled_requests_total", outcome="completed", engine="tiny-0") == 1
        assert page.total("jouled_device_energy_joules_total", device="gpu0") > 200
        owners = page.total("jouled_energy_joules_total", quality="measured")
        opened = page.total("jouled_open_energy_joules", quality="measured")
        assert owners + opened == pytest.approx(page.total("jouled_boundary_energy_joules_total", boundary="compute"))
        assert daemon.json("/api/v1/snapshot")["balance_uj"] == 0


def shows(daemon: LiveDaemon, text: str) -> bool:
    return text in daemon.get("/metrics").decode()


def test_a_request_that_is_sent_again_after_a_restart_counts_once(launch: Launch) -> None:
    event = {
        "id": "again", "engine": "tiny-0", "ttft_seconds": 0.1, "e2e_seconds": 1.0, "prompt_tokens": 5,
        "generation_tokens": 5,
    }  # fmt: skip

    def send(daemon: LiveDaemon) -> None:
        body, headers = json.dumps(event).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(daemon.url + "/api/v1/requests", body, headers)
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()

    with engine_server() as (engine, url):
        daemon = launch(METER + engine_table("tiny-0", url))
        until_covered(daemon, engine, 1.5)
        event["arrival_ns"] = time.time_ns() - 1_000_000_000
        send(daemon)
        wait_for(
            lambda: (r := daemon.receipt("again")) and not r["provisional"],
            PATIENCE_SECONDS,
            "the receipt is not final",
        )
        daemon.kill()
        again = launch(METER + engine_table("tiny-0", url))
        wait_for(lambda: shows(again, "jouled_device_power_watts{"), PATIENCE_SECONDS, "nothing is read")
        send(again)
        wait_for(lambda: shows(again, 'reason="duplicate"} 1'), PATIENCE_SECONDS, "it was taken again")
        assert again.page().total("jouled_requests_total") == 1


def test_a_bad_engine_delays_nobody(launch: Launch) -> None:
    with (
        engine_server() as (_, good),
        engine_server("hang") as (_, hanging),
        engine_server("drip") as (_, dripping),
        engine_server("garbage") as (_, garbage),
    ):
        tables = [
            engine_table(name, url)
            for name, url in (("good", good), ("hanging", hanging), ("dripping", dripping), ("garbage", garbage))
        ]
        daemon = launch(METER + "".join(tables))

        def states() -> dict[str, str]:
            return {source["source"]: source["state"] for source in daemon.json("/api/v1/snapshot")["sources"]}

        wait_for(
            lambda: states().get("good") == states().get("fake") == "ok", PATIENCE_SECONDS, "the good ones are not read"
        )
        before = daemon.page().total("jouled_device_energy_joules_total")
        bad = ("hanging", "dripping", "garbage")
        wait_for(lambda: {states().get(name) for name in bad} == {"down"}, PATIENCE_SECONDS, "a bad page is not told")
        reasons = {source["source"]: source["reason"] for source in daemon.json("/api/v1/snapshot")["sources"]}
        assert reasons["hanging"] == reasons["dripping"] == "timeout"
        assert reasons["garbage"] == "not_a_page"
        log = daemon.log.read_text()
        first_timeout = min(log.index(f"source {name} is down") for name in ("hanging", "dripping"))
        assert max(log.index(f"source {name} is ok") for name in ("good", "fake")) < first_timeout, "they were delayed"
        wait_for(
            lambda: daemon.page().total("jouled_device_energy_joules_total") > before + 200,
            PATIENCE_SECONDS,
            "metering stands still",
        )


def test_malformed_bodies_are_refused_and_metering_goes_on(launch: Launch) -> None:
    daemon = launch()
    for path, content_type, body in (
        ("/v1/traces", "application/x-protobuf", b"\xff" * 100),
        ("/v1/traces", "application/json", b'{"resourceSpans": [{'),
        ("/api/v1/requests", "application/json", b'{"id": 1}'),
    ):
        request = urllib.request.Request(daemon.url + path, body, {"Content-Type": content_type})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
        assert refused.value.code == 400
        refused.value.close()
    times = b'"arrival_ns": 1, "first_token_ns": 2, "last_token_ns": 3'
    unknown = b'{"id": "x", %b, "prompt_tokens": 1, "generation_tokens": 1}' % times
    request = urllib.request.Request(daemon.url + "/api/v1/requests", unknown, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
    assert b"no engine matches" in refused.value.read()
    wait_for(
        lambda: daemon.page().values.get('jouled_rejected_events_total{reason="unknown_engine"}') == 1,
        PATIENCE_SECONDS,
        "not counted",
    )
    assert daemon.get("/readyz") == b"ready\n"


def test_spans_are_forwarded_unchanged(launch: Launch) -> None:
    with engine_server() as (other, url):
        daemon = launch(f'{METER}\n[requests.otlp]\nforward = "{url}/v1/traces"\n')
        send_span(daemon, "forwarded-1")
        wait_for(lambda: other.bodies, PATIENCE_SECONDS, "nothing was forwarded")
        content_type, body = other.bodies[0]
        assert content_type == "application/x-protobuf"
        assert b"forwarded-1" in body
        wait_for(
            lambda: daemon.page().values.get('jouled_forwarded_bodies_total{result="sent"}') == 1,
            PATIENCE_SECONDS,
            "not counted",
        )


def test_recording_of_a_run(launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    daemon = launch(METER, "--record", out)
    wait_for(
        lambda: daemon.page().values.get("jouled_sample_lateness_seconds_count", 0) >= 10, PATIENCE_SECONDS, "no reads"
    )
    assert daemon.stop() == 0
    lines = out.read_text().splitlines()
    assert '"header"' in lines[0]
    assert sum('"type":"energy"' in line for line in lines) >= 10
