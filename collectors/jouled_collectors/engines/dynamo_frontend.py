"""NVIDIA Dynamo's frontend, the OpenAI-compatible server before the workers: `/metrics`."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import command_line, dynamo
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader

# Each name is that of the metric `dynamo_frontend_…`. `input_sequence_tokens` and `cached_tokens` are histograms.
_READER = PageReader(
    "dynamo_frontend",
    ("output_tokens", "input_sequence_tokens_sum", "cached_tokens_sum", "inflight_requests", "queued_requests"),
)
# One observation a request each; `inter_token_latency_seconds` has one a token.
_LATENCIES: Mapping[Latency, HistogramReader] = {
    "ttft": HistogramReader("dynamo_frontend", "time_to_first_token_seconds"),
    "e2el": HistogramReader("dynamo_frontend", "request_duration_seconds"),
}


class DynamoFrontendCollector:
    """Reads the frontend's page.

    It runs on no accelerator, and its workers tell the same tokens: its role is `frontend`, with which nothing of it is
    counted. Where workers tell no tokens, configure `role = "unified"`: then the frontend counts for all of them.

    As measured on 1.6.1 and read in `lib/llm/src/http/service/metrics.rs`: `output_tokens_total` moves with every piece
    of an answer; prompt tokens (cached ones among them) enter with a request's first token, cached ones when the engine
    tells them. A series appears with the first request of its model, and `DYN_METRICS_PREFIX` can rename all of them.
    """

    name: ClassVar[str] = "dynamo_frontend"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = ""
    default_port: ClassVar[int] = 8000
    port_variables: ClassVar[Sequence[str]] = ("DYN_HTTP_PORT",)
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="total", prompt_at="first_token", generation="all", generation_at="step"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # it sets no title
        """Whether this is `python -m dynamo.frontend …`."""
        return dynamo.module(argv) == "frontend"

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--http-port`, else 8000."""
        return command_line.port(["--port", command_line.option(argv, "--http-port")], self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of a frontend."""
        families = _READER.read(body)
        return EnginePage(
            model=_model(families),
            facts=EngineFacts(role="frontend"),
            prompt_tokens=total(families.get("input_sequence_tokens_sum")),
            cached_prompt_tokens=total(families.get("cached_tokens_sum")),
            generation_tokens=total(families.get("output_tokens")),
            requests_running=total(families.get("inflight_requests")),
            requests_waiting=total(families.get("queued_requests")),
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of `/metrics`. Raises `ValueError` with the reason."""
        read = {name: reader.read(body) for name, reader in _LATENCIES.items() if name in wanted}
        return {name: histogram for name, histogram in read.items() if histogram is not None}

    def version(self, body: bytes) -> str:  # noqa: ARG002  # nobody asks
        """There is none to ask for. Raises `ValueError`."""
        raise ValueError("the frontend of Dynamo does not tell its version")


def _model(families: Mapping[str, Sequence[Series]]) -> str:
    """Of several models the one that made most tokens."""
    tokens = {each.labels.get("model", ""): each.value for each in families.get("output_tokens", ())}
    return max(tokens, key=tokens.__getitem__, default="")
