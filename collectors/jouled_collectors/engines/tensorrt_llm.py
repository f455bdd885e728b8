"""TensorRT-LLM's `trtllm-serve`: `/prometheus/metrics`, `/version` and `/energy_metrics`.

The first needs `return_perf_metrics: true`, the last `enable_energy_metrics: true` in the file of `--config`.
`/metrics` and `/perf_metrics` are never asked: each answer empties a queue that belongs to somebody else.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import answers, command_line, facts
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader

_MODULES = ("tensorrt_llm.commands.serve", "tensorrt_llm/commands/serve.py")
# Other subcommands serve no model or none by HTTP.
_OTHER_COMMANDS = ("disaggregated", "disaggregated_mpi_worker", "grpc", "mm_embedding_serve")

_NAMES = (
    "prompt_tokens",
    "prompt_cached_tokens",
    "generation_tokens",
    "num_requests_running",
    "num_requests_waiting",
    "model_config_info",
    "parallel_config_info",
    "speculative_config_info",
    "request_success",
    "e2e_request_latency_seconds_count",
)
_PREFIXED, _BARE = PageReader("trtllm", _NAMES), PageReader("", _NAMES)
_LATENCY_NAMES: Mapping[Latency, str] = {
    "ttft": "time_to_first_token_seconds",
    "tpot": "time_per_output_token_seconds",
    "e2el": "e2e_request_latency_seconds",
}
_LATENCIES = {
    latency: (HistogramReader("trtllm", name), HistogramReader("", name)) for latency, name in _LATENCY_NAMES.items()
}
# In the order in which the engine looks at them.
_TRANSPORTS = {
    "TRTLLM_USE_NIXL_KVCACHE": "nixl",
    "TRTLLM_USE_UCX_KVCACHE": "ucx",
    "TRTLLM_USE_MOONCAKE_KVCACHE": "mooncake",
    "TRTLLM_USE_MPI_KVCACHE": "mpi",
}
_NO_NAME = ("", "undefined", "unknown")

Families = Mapping[str, Sequence[Series]]


class _Version(Struct):
    version: str


class _Energy(Struct):
    total_energy_j: float


class TensorRtLlmCollector:
    """Reads TensorRT-LLM's Prometheus page, with the names of all its releases.

    It met pages that the engine's own metrics code printed, at commit 050f80d of NVIDIA/TensorRT-LLM (2026; `trtllm_`,
    which Dynamo also spelled `trtllm:`) and at 89fd9b7 (1.0: five families without a prefix and without tokens), but no
    server. All token counters move when a request has ended, the prompt's with cached tokens among them, the generated
    ones for each of several answers. Histograms leave out zeros. A series appears with its first use; only that of the
    cached tokens is there from the start.

    As read in its server: a request whose client left while it was streamed never enters, another one enters as
    `cancelled`. Running and waiting requests are those of the last iteration that was told: they are asked for from a
    request's end until half a second brought none, and only with `enable_iter_perf_stats: true`.

    Servers that are given one `PROMETHEUS_MULTIPROC_DIR` show one another's series, counters added up: give each its
    own, or none.
    """

    name: ClassVar[str] = "tensorrt_llm"
    page_path: ClassVar[str] = "/prometheus/metrics"
    version_path: ClassVar[str] = "/version"
    energy_path: ClassVar[str] = "/energy_metrics"
    default_port: ClassVar[int] = 8000
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="total", prompt_at="finish", generation="all", generation_at="finish"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is `trtllm-serve MODEL …` or `trtllm-serve serve MODEL …`."""
        program, arguments = command_line.program(argv)
        if not (command_line.file_name(program) == "trtllm-serve" or program.endswith(_MODULES)):
            return False
        return bool(arguments) and arguments[0] not in _OTHER_COMMANDS

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, else 8000."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/prometheus/metrics`. Raises `ValueError` with the reason if this is no page of TensorRT-LLM."""
        families = (_PREFIXED if _PREFIXED.is_page(body) else _BARE).read(body)
        return EnginePage(
            model=_model(families),
            facts=_facts(families),
            prompt_tokens=_tokens(families, "prompt_tokens"),
            cached_prompt_tokens=total(families.get("prompt_cached_tokens")),
            generation_tokens=_tokens(families, "generation_tokens"),
            requests_running=total(families.get("num_requests_running")),
            requests_waiting=total(families.get("num_requests_waiting")),
        )

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        """What `trtllm-serve` was started with; the file of `--config`, which may say more, is not read."""
        _, arguments = command_line.program(argv)
        role = command_line.option(argv, "--server-role").lower()
        return EngineFacts(
            model=command_line.positional(arguments[1:] if list(arguments[:1]) == ["serve"] else arguments),
            role=facts.ROLES.get(role, ""),
            parallelism=facts.parallelism(
                ep=command_line.size(argv, "--moe-expert-parallel-size", "--ep-size"),
                pp=command_line.size(argv, "--pipeline-parallel-size", "--pp-size"),
                cp=command_line.size(argv, "--context-parallel-size", "--cp-size"),
                tp=command_line.size(argv, "--tensor-parallel-size", "--tp-size"),
            ),
            kv_connector=next((name for variable, name in _TRANSPORTS.items() if environ.get(variable) == "1"), ""),
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of `/prometheus/metrics`. Raises `ValueError` with the reason."""
        prefix = 0 if _PREFIXED.is_page(body) else 1
        read = {name: readers[prefix].read(body) for name, readers in _LATENCIES.items() if name in wanted}
        return {name: histogram for name, histogram in read.items() if histogram is not None}

    def version(self, body: bytes) -> str:
        """Read `{"version": "1.2.1"}`. Raises `ValueError`."""
        return answers.version(answers.decode(body, _Version).version)

    def energy_joules(self, body: bytes) -> float:
        """Read `/energy_metrics`: joules of the GPUs of all ranks since the server's start, by NVML's counters.

        Where ranks run on other nodes, the engine reckons their energy from this node's (its `energy_monitor.py`).
        Raises `ValueError`, as for the answer of a server without `enable_energy_metrics: true`.
        """
        joules = answers.decode(body, _Energy).total_energy_j
        if not 0.0 <= joules < math.inf:
            raise ValueError(f"{joules} J can be no energy")
        return joules


def _tokens(families: Families, name: str) -> int | None:
    """A counter of tokens, whose series appears with the first request that ends.

    The cached ones are on the page from the start: a page with them that lacks the others tells zero.
    """
    if name not in families and "prompt_cached_tokens" in families:
        return 0
    return total(families.get(name))


def _model(families: Families) -> str:
    """The name in all series' labels; of several the first. 1.0 sent `undefined`."""
    names = (each.labels.get("model_name", "") for series in families.values() for each in series)
    return next((name for name in names if name not in _NO_NAME), "")


def _facts(families: Families) -> EngineFacts:
    model = _labels(families, "model_config_info")
    parallel = _labels(families, "parallel_config_info")
    sizes = {
        short: _size(parallel.get(f"{name}_parallel_size") or parallel.get(f"{short}_size", ""))
        for short, name in (("ep", "expert"), ("pp", "pipeline"), ("cp", "context"), ("tp", "tensor"))
    }
    return EngineFacts(
        precision=facts.precision(model.get("dtype", ""), model.get("quantization", "")),
        parallelism=facts.parallelism(**sizes),
        speculation=_labels(families, "speculative_config_info").get("spec_method", "").lower(),
    )


def _labels(families: Families, name: str) -> Mapping[str, str]:
    series = families.get(name, ())
    return series[0].labels if series else {}


def _size(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1
