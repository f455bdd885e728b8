"""Every door takes any bytes: it reads them or says what is wrong, and never fails in another way.

The seeds are captures of real engines and what lies in `corpus/<door>/`; an input that once broke something is put
there and stays. `JOULED_FUZZ` says how many changed bodies each door gets (300 by default).
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.fuzz.mutate import mutants

from jouled.api import MalformedBodyError
from jouled.app.config.load import load
from jouled.app.runtime.recording.files import RecordingError
from jouled.app.runtime.recording.recording import read
from jouled.model.errors import ConfigurationError, SourceError
from jouled.outputs.serve.web_config import read_web_config
from jouled_collectors.engines.llama_cpp import LlamaCppCollector
from jouled_collectors.engines.vllm import VllmCollector
from jouled_collectors.power import dcgm_page, ipmi_output, redfish_parse
from jouled_collectors.power.mqtt_meter_payload import available, said
from jouled_collectors.power.mqtt_meter_settings import MeterSettings
from jouled_collectors.requests.http_events import HttpEventsReceiver
from jouled_collectors.requests.otlp import OtlpReceiver

COUNT = int(os.environ.get("JOULED_FUZZ", "300"))
FIXTURES = Path(__file__).parents[1] / "fixtures"
CORPUS = Path(__file__).parent / "corpus"
SPANS = [
    line for path in sorted((FIXTURES / "requests").glob("*-otlp.jsonl")) for line in path.read_bytes().splitlines()
]
LATENCIES = ("ttft", "tpot", "e2el")


def corpus(door: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / door).iterdir())]


def spans_as_protobuf() -> list[bytes]:
    return [ParseDict(json.loads(line), ExportTraceServiceRequest()).SerializeToString() for line in SPANS]


def pages() -> list[bytes]:
    return [path.read_bytes() for path in sorted((FIXTURES / "engines").glob("*.prom"))]


def otlp(content_type: str) -> Callable[[bytes, Path], object]:
    return lambda body, _: OtlpReceiver().decode(body, content_type)


def events(content_type: str) -> Callable[[bytes, Path], object]:
    return lambda body, _: HttpEventsReceiver().decode(body, content_type)


def page(collector) -> Callable[[bytes, Path], object]:
    def look(body: bytes, _: Path) -> object:
        found = collector.page(body)
        if isinstance(collector, VllmCollector):
            collector.latencies(body, LATENCIES)
        return found

    return look


def in_a_file(look: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def look_at(body: bytes, folder: Path) -> object:
        path = folder / "input"
        path.write_bytes(body)
        return look(path)

    return look_at


METERS = (
    MeterSettings(name="a", kind="shelly", topic="a/status/switch:0"),
    MeterSettings(name="b", kind="tasmota", topic="tele/b/SENSOR"),
    MeterSettings(name="c", kind="zigbee2mqtt", topic="zigbee2mqtt/c"),
    MeterSettings(name="d", kind="json", topic="d", power_path="a.b.0.watts", energy_path="/a/b/0/wh"),
)


def mqtt_payload(body: bytes, _: Path) -> object:
    told = [said(meter, topic, body) for meter in METERS for topic in (meter.topic, "a/events/rpc")]
    assert all(each.watts is None or 0.0 <= each.watts < float("inf") for each in told)
    assert all(each.microjoules is None or 0 <= each.microjoules < 2**63 for each in told)
    available(body)
    return told


def redfish_document(body: bytes, _: Path) -> object:
    document = json.loads(body)
    if not isinstance(document, dict):  # the session refuses it
        raise ValueError(document)  # noqa: TRY004 - as for other bad bytes
    for key in ("PowerWatts", "EnvironmentMetrics", "MetricValues"):
        watts, energy = redfish_parse.excerpt_watts(document, key), redfish_parse.excerpt_joules(document, key)
        assert watts is None or watts >= 0.0
        assert energy is None or energy >= 0.0
    chosen = redfish_parse.whole_power_control(document)
    if chosen is not None:
        redfish_parse.power_control_watts(document, chosen)
    for supply in redfish_parse.supply_indices(document):
        redfish_parse.supply_input_watts(document, supply)
    return redfish_parse.report_entry(document, ["/redfish/v1/Chassis/HGX_GPU_SXM_1/Sensors/p"])


DOORS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes, Path], object], tuple[type[Exception], ...]]] = {
    "otlp_protobuf": (spans_as_protobuf, otlp("application/x-protobuf"), (MalformedBodyError,)),
    "otlp_json": (lambda: list(SPANS), otlp("application/json"), (MalformedBodyError,)),
    "events": (list, events("application/json"), (MalformedBodyError,)),
    "event_lines": (list, events("application/x-ndjson"), (MalformedBodyError,)),
    "vllm_page": (pages, page(VllmCollector()), (ValueError,)),
    "llama_page": (pages, page(LlamaCppCollector()), (ValueError,)),
    "configuration": (list, in_a_file(lambda path: load(path, {})), (ConfigurationError,)),
    "web_config": (list, in_a_file(read_web_config), (ConfigurationError,)),
    "mqtt_meter": (list, mqtt_payload, ()),
    "redfish": (list, redfish_document, (ValueError, RecursionError)),
    "dcgm_page": (list, lambda body, _: dcgm_page.parse(body), (ValueError,)),
    "ipmi_output": (list, lambda body, _: ipmi_output.readout(body.decode(errors="replace")), (SourceError,)),
    "recording": (list, in_a_file(lambda path: list(read(path))), (RecordingError,)),
}


@pytest.mark.parametrize("door", DOORS)
def test_any_bytes_are_read_or_refused(door, tmp_path):
    seeds, look, refusals = DOORS[door]
    known = [*seeds(), *corpus(door)]
    read_whole = 0
    for body in (*known, *mutants(known, COUNT, seed=len(door))):
        try:
            look(body, tmp_path)
        except refusals:
            continue
        read_whole += 1
    assert read_whole, "not one of them was good: the seeds are no bodies of this door"


REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
    b"GET /api/v1/requests?all=1&limit=5&tenant=red HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/requests/chatcmpl-1?all=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /lines HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{}\n{}",
    b"POST /lines HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HEAD /static/page.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
)


@pytest.fixture
def _unlogged() -> Iterator[None]:
    """Lines of log that hold such bytes could not be handed on by the worker that runs the test."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_unlogged")
async def test_the_server_outlives_any_bytes(serve):
    served = await serve()
    for body in mutants([*REQUESTS, *corpus("http")], COUNT, seed=5):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
        writer.write(body)
        writer.write_eof()
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
        writer.close()
    assert "ok" in await served.get("/healthz")
