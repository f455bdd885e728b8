"""vLLM's OpenAI-compatible server (V1 engine): `/metrics` and `/version`."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import answers, command_line, facts
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader

_SERVERS = ("vllm.entrypoints.openai.api_server", "vllm/entrypoints/openai/api_server.py")
_COMMANDS = ("vllm", "vllm.entrypoints.cli.main")
_TENSOR_PARALLEL = ("--tensor-parallel-size", "-tp")
_DATA_PARALLEL = ("--data-parallel-size", "-dp")
_PREFILL_CONTEXT = ("--prefill-context-parallel-size", "-pcp")
_DECODE_CONTEXT = ("--decode-context-parallel-size", "-dcp")

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
        "request_success",
        "nixl_num_failed_transfers",
        "mooncake_num_failed_transfers",
        "umbp_transfer_submitted",
    ),
)
# One observation a request each. `inter_token_latency_seconds` has one a token: it says nothing of a request's mean.
# A request with one token is an observation of 0 in the second, so that it passes every limit, as it should.
_LATENCIES: Mapping[Latency, HistogramReader] = {
    "ttft": HistogramReader("vllm", "time_to_first_token_seconds"),
    "tpot": HistogramReader("vllm", "request_time_per_output_token_seconds"),
    "e2el": HistogramReader("vllm", "e2e_request_latency_seconds"),
}
# A connector's families are on the page from the start, and only while it is active. Nothing there tells the role:
# `num_requests_kv_fetch_by_stage` is shown by `kv_consumer` and by `kv_both` alike.
_CONNECTOR_FAMILIES = {
    "nixl_num_failed_transfers": "nixl",
    "mooncake_num_failed_transfers": "mooncake",
    "umbp_transfer_submitted": "mori",
}
_TRANSFERRED = "external_kv_transfer"


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
        return command_line.file_name(program) in _COMMANDS and list(arguments[:1]) == ["serve"]

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, else 8000."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of vLLM."""
        families = _READER.read(body)
        return EnginePage(
            model=_model(families),
            facts=EngineFacts(kv_connector=_connector(families)),
            steps=total(families.get("iteration_tokens_total_count")),
            prompt_tokens=total(families.get("prompt_tokens")),
            cached_prompt_tokens=_cached(families),
            transferred_prompt_tokens=_by_source(families, _TRANSFERRED),
            generation_tokens=total(families.get("generation_tokens")),
            requests_running=total(families.get("num_requests_running")),
            requests_waiting=total(families.get("num_requests_waiting")),
            requests_finished=total(families.get("request_success")),
        )

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:  # noqa: ARG002  # the command line says it all
        """What `vllm serve` was started with, as vLLM 0.33.0 spells it; a file of `--config` is not read.

        Expert parallelism has no size of its own: it spans the tensor and data parallel ranks.
        """
        _, arguments = command_line.program(argv)
        model = command_line.positional(arguments[1:]) if list(arguments[:1]) == ["serve"] else ""
        tp, dp = command_line.size(argv, *_TENSOR_PARALLEL), command_line.size(argv, *_DATA_PARALLEL)
        cp = [command_line.size(argv, *names) for names in (_PREFILL_CONTEXT, _DECODE_CONTEXT)]
        kv_connector, role = facts.kv_transfer(command_line.json_option(argv, "--kv-transfer-config"))
        return EngineFacts(
            model=command_line.option(argv, "--served-model-name") or command_line.option(argv, "--model") or model,
            role=role,
            precision=facts.precision(
                command_line.option(argv, "--dtype"), command_line.option(argv, "--quantization", "-q")
            ),
            parallelism=facts.parallelism(
                dp=dp,
                ep=tp * dp if command_line.has_flag(argv, "--enable-expert-parallel", "-ep") else 1,
                pp=command_line.size(argv, "--pipeline-parallel-size", "-pp"),
                cp=max(cp),
                tp=tp,
            ),
            kv_connector=kv_connector,
            speculation=facts.speculation(command_line.json_option(argv, "--speculative-config", "-sc")),
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
    return _by_source(families, "local_cache_hit", _TRANSFERRED)


def _by_source(families: Mapping[str, Sequence[Series]], *sources: str) -> int | None:
    return total([each for each in families.get("prompt_tokens_by_source", ()) if each.labels.get("source") in sources])


def _connector(families: Mapping[str, Sequence[Series]]) -> str:
    return next((name for family, name in _CONNECTOR_FAMILIES.items() if family in families), "")


def _model(families: Mapping[str, Sequence[Series]]) -> str:
    """The model's served name; of several, the one that made most tokens, of equals the first on the page.

    The counters cover all of them: energy is the engine's, and a change of the name must not look like a reset.
    """
    tokens: dict[str, float] = {}
    for series in families.get("generation_tokens") or families.get("num_requests_running") or ():
        if name := series.labels.get("model_name"):
            tokens[name] = tokens.get(name, 0.0) + series.value
    return max(tokens, key=tokens.__getitem__, default="")
