"""NVIDIA NIM for large language models: `/v1/metrics` and `/v1/version`.

NIM 1.x has names of its own, without a prefix. NIM 2 is a proxy before vLLM or SGLang, whose page it hands on; where
the engine's process can be seen, it is found as that engine.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import answers, command_line
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader
from jouled_collectors.engines.sglang import SglangCollector
from jouled_collectors.engines.tensorrt_llm import TensorRtLlmCollector
from jouled_collectors.engines.vllm import VllmCollector

_MODULES = (
    "nim_llm_sdk.entrypoints.launch",
    "nim_llm_sdk.entrypoints.openai.api_server",
    "vllm_nvext.entrypoints.openai.api_server",
)
_Backend = VllmCollector | SglangCollector | TensorRtLlmCollector
_BACKENDS: Mapping[str, _Backend] = {
    "vllm": VllmCollector(),
    "sglang": SglangCollector(),
    "trtllm": TensorRtLlmCollector(),
}
_PAGES = {prefix: PageReader(prefix, ()) for prefix in _BACKENDS}
_READER = PageReader(
    "", ("prompt_tokens", "generation_tokens", "num_requests_running", "num_requests_waiting", "num_request_max")
)
_LATENCIES: Mapping[Latency, HistogramReader] = {
    "ttft": HistogramReader("", "time_to_first_token_seconds"),
    "e2el": HistogramReader("", "e2e_request_latency_seconds"),
}
# `time_per_output_token_seconds` is documented as one observation a request, but has one a token after the first.


class _Version(Struct):
    release: str


class NimCollector:
    """Reads NIM's page: its own names of 1.x, or those of the engine behind it.

    By NVIDIA's documents of NIM for LLMs 1.x: tokens are counted per iteration, which is taken to be as vLLM does.
    """

    name: ClassVar[str] = "nim"
    page_path: ClassVar[str] = "/v1/metrics"
    version_path: ClassVar[str] = "/v1/version"
    default_port: ClassVar[int] = 8000
    port_variables: ClassVar[Sequence[str]] = ("NIM_SERVER_PORT",)
    semantics: ClassVar[CounterSemantics] = CounterSemantics()

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is the server of NIM 1.x, such as `python3 -m nim_llm_sdk.entrypoints.openai.api_server`."""
        program, _ = command_line.program(argv)
        return program in _MODULES

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, else 8000."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/v1/metrics`. Raises `ValueError` with the reason if this is no page of NIM."""
        backend = _backend(body)
        if backend is not None:
            page = backend.page(body)
            return replace(page, semantics=page.semantics or backend.semantics)
        families = _READER.read(body)
        return EnginePage(
            model=_model(families),
            prompt_tokens=total(families.get("prompt_tokens")),
            generation_tokens=total(families.get("generation_tokens")),
            requests_running=total(families.get("num_requests_running")),
            requests_waiting=total(families.get("num_requests_waiting")),
        )

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        """What NIM's own variables and vLLM's arguments, which NIM 1.x takes, say."""
        told = VllmCollector().facts(argv, environ)
        model = environ.get("NIM_SERVED_MODEL_NAME", "").partition(",")[0] or environ.get("NIM_MODEL_NAME", "")
        return replace(told, model=told.model or model)

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of `/v1/metrics`. Raises `ValueError` with the reason."""
        backend = _backend(body)
        if backend is not None:
            return backend.latencies(body, wanted)
        read = {name: reader.read(body) for name, reader in _LATENCIES.items() if name in wanted}
        return {name: histogram for name, histogram in read.items() if histogram is not None}

    def version(self, body: bytes) -> str:
        """Read `{"release": "1.3.0", "api": "1.3.0"}`. Raises `ValueError`."""
        return answers.version(answers.decode(body, _Version).release)


def _backend(body: bytes) -> _Backend | None:
    return next((_BACKENDS[prefix] for prefix, reader in _PAGES.items() if reader.is_page(body)), None)


def _model(families: Mapping[str, Sequence[Series]]) -> str:
    names = (each.labels.get("model_name", "") for series in families.values() for each in series)
    return next(filter(None, names), "")
