"""vLLM's OpenAI-compatible server (V1 engine): `/metrics` and `/version`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import ClassVar

from msgspec import Struct

from jouled.api import EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import answers, command_line
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader

_SERVERS = ("vllm.entrypoints.openai.api_server", "vllm/entrypoints/openai/api_server.py")
_COMMANDS = ("vllm", "vllm.entrypoints.cli.main")

# `vllm:iteration_tokens_total` is a histogram despite its name; it sees one observation per engine step.
_READER = PageReader(
    "vllm",
    (
        "prompt_tokens",
        "prompt_tokens_cached",
        "prompt_tokens_by_source",
        "generation_tokens",
        "iteration_tokens_total_count",
        "num_requests_running",
        "num_requests_waiting",
    ),
)
# One observation a request each. `inter_token_latency_seconds` has one a token: it says nothing of a request's mean.
# A request with one token is an observation of 0 in the second, so that it passes every limit, as it should.
_LATENCIES: Mapping[Latency, HistogramReader] = {
    "ttft": HistogramReader("vllm", "time_to_first_token_seconds"),
    "tpot": HistogramReader("vllm", "request_time_per_output_token_seconds"),
    "e2el": HistogramReader("vllm", "e2e_request_latency_seconds"),
}
_CACHE_SOURCES = ("local_cache_hit", "external_kv_transfer")


class _Version(Struct):
    version: str


class VllmCollector:
    """Reads vLLM's page. Series of several engines (data parallelism) are added up.

    Names and behaviour as measured on vLLM 0.32.0 and 0.33.0: `prompt_tokens_total` includes cached tokens and moves
    when a request's first token is there, `generation_tokens_total` includes the first token and moves every step.
    """

    name: ClassVar[str] = "vllm"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = "/version"
    default_port: ClassVar[int] = 8000
    semantics: ClassVar[CounterSemantics] = CounterSemantics()

    def recognises(self, argv: Sequence[str], title: str) -> bool:
        """Whether this is an API server: `vllm serve …` or `python -m vllm.entrypoints.openai.api_server …`.

        `VLLM::EngineCore` and `VLLM::Worker` are its children, and a server with `--headless` has no port.
        """
        if "VLLM::" in title or "--headless" in argv:
            return False
        program, arguments = command_line.program(argv)
        if program.endswith(_SERVERS):
            return True
        return PurePath(program).name in _COMMANDS and list(arguments[:1]) == ["serve"]

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, else 8000."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of vLLM."""
        families = _READER.read(body)
        return EnginePage(
            model=_model(families),
            steps=total(families.get("iteration_tokens_total_count")),
            prompt_tokens=total(families.get("prompt_tokens")),
            cached_prompt_tokens=_cached(families),
            generation_tokens=total(families.get("generation_tokens")),
            requests_running=total(families.get("num_requests_running")),
            requests_waiting=total(families.get("num_requests_waiting")),
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of `/metrics`. Raises `ValueError` with the reason."""
        read = {name: reader.read(body) for name, reader in _LATENCIES.items() if name in wanted}
        return {name: histogram for name, histogram in read.items() if histogram is not None}

    def version(self, body: bytes) -> str:
        """Read `{"version": "0.32.0"}`. Raises `ValueError`."""
        return answers.version(answers.decode(body, _Version).version)


def _cached(families: Mapping[str, Sequence[Series]]) -> int | None:
    if "prompt_tokens_cached" in families:
        return total(families["prompt_tokens_cached"])
    by_source = families.get("prompt_tokens_by_source", ())
    return total([series for series in by_source if series.labels.get("source") in _CACHE_SOURCES])


def _model(families: Mapping[str, Sequence[Series]]) -> str:
    """The model's served name; of several, the one that made most tokens, of equals the first on the page.

    The counters cover all of them: energy is the engine's, and a change of the name must not look like a reset.
    """
    tokens: dict[str, float] = {}
    for series in families.get("generation_tokens") or families.get("num_requests_running") or ():
        if name := series.labels.get("model_name"):
            tokens[name] = tokens.get(name, 0.0) + series.value
    return max(tokens, key=tokens.__getitem__, default="")
