"""LMDeploy's API server (TurboMind and PyTorch engines): `/metrics/`."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import command_line, facts
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader

_PROGRAM = "lmdeploy"
_UNQUANTISED = "hf"
_DEFAULT_CONNECTOR = "DLSlime"
_READER = PageReader(
    "lmdeploy",
    (
        "prompt_tokens",
        "cached_tokens",
        "generation_tokens",
        "iteration_tokens_total_sum",
        "num_requests_running",
        "num_requests_waiting",
        "num_api_requests_waiting",
    ),
)
# `time_per_output_token_seconds` has one observation an iteration: it says nothing of a request's mean.
_LATENCIES: Mapping[Latency, HistogramReader] = {
    "ttft": HistogramReader("lmdeploy", "time_to_first_token_seconds"),
    "e2el": HistogramReader("lmdeploy", "e2e_request_latency_seconds"),
}


class LmdeployCollector:
    """Reads LMDeploy's page. Metrics are off by default up to 0.10 (`--enable-metrics`), and on from 0.12 at least.

    As read in the released packages 0.9.2 (the first with metrics), 0.10.0, 0.12.0 and 0.18.0, and seen on pages of
    their own loggers: `prompt_tokens_total` includes cached tokens and moves when a request's first token is there,
    `generation_tokens_total` includes the first token and those of aborted requests and moves every iteration,
    `cached_tokens_total` (not in 0.12) moves when a request finishes. The running and waiting requests are brought up
    to date every 10 s. An iteration is one request's, so that their number says nothing of the engine's steps.

    The commit 0168eed, which no release contains, counted every generated token twice. Each release has a histogram
    of prompt and generated tokens together, which that commit lacks: generated tokens are told only where the two
    counters do not exceed it.
    """

    name: ClassVar[str] = "lmdeploy"
    page_path: ClassVar[str] = "/metrics/"
    version_path: ClassVar[str] = ""
    default_port: ClassVar[int] = 23_333
    semantics: ClassVar[CounterSemantics] = CounterSemantics()

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is `lmdeploy serve api_server …`, or the same by `python -m lmdeploy`."""
        program, arguments = command_line.program(argv)
        return command_line.file_name(program) == _PROGRAM and list(arguments[:2]) == ["serve", "api_server"]

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--server-port`, else 23333. With `--dp` further servers follow on the next ports."""
        return command_line.port(["--port", command_line.option(argv, "--server-port")], self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics/`. Raises `ValueError` with the reason if this is no page of LMDeploy."""
        families = _READER.read(body)
        waiting = [*families.get("num_requests_waiting", ()), *families.get("num_api_requests_waiting", ())]
        return EnginePage(
            model=_model(families),
            prompt_tokens=total(families.get("prompt_tokens")),
            cached_prompt_tokens=total(families.get("cached_tokens")),
            generation_tokens=_generated(families),
            requests_running=total(families.get("num_requests_running")),
            requests_waiting=total(waiting),
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of `/metrics/`. Raises `ValueError` with the reason."""
        read = {name: reader.read(body) for name, reader in _LATENCIES.items() if name in wanted}
        return {name: histogram for name, histogram in read.items() if histogram is not None}

    def version(self, body: bytes) -> str:  # noqa: ARG002  # there is nothing to read
        """There is no path that tells it. Raises `ValueError`."""
        raise ValueError("LMDeploy does not tell its version")

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:  # noqa: ARG002  # the command line says it all
        """What `lmdeploy serve api_server MODEL …` was told, as options of 0.18.0."""
        _, arguments = command_line.program(argv)
        model_format = command_line.option(argv, "--model-format")
        role = facts.ROLES.get(command_line.option(argv, "--role").lower(), "")
        connector = command_line.option(argv, "--migration-backend") or _DEFAULT_CONNECTOR
        return EngineFacts(
            model=command_line.option(argv, "--model-name") or command_line.positional(arguments[2:]),
            role=role,
            precision=facts.precision(
                command_line.option(argv, "--dtype"), "" if model_format == _UNQUANTISED else model_format
            ),
            parallelism=facts.parallelism(
                dp=command_line.size(argv, "--dp"),
                ep=command_line.size(argv, "--ep"),
                cp=command_line.size(argv, "--cp"),
                tp=command_line.size(argv, "--tp"),
            ),
            kv_connector=facts.kv_connector(connector) if role else "",
            speculation=command_line.option(argv, "--speculative-algorithm").lower(),
        )


def _generated(families: Mapping[str, Sequence[Series]]) -> int | None:
    prompt, generated = total(families.get("prompt_tokens")), total(families.get("generation_tokens"))
    both = total(families.get("iteration_tokens_total_sum"))
    if prompt is None or generated is None or both is None or prompt + generated > both:
        return None
    return generated


def _model(families: Mapping[str, Sequence[Series]]) -> str:
    """The model's name, the same in all series of a server."""
    for series in families.get("generation_tokens") or families.get("num_requests_running") or ():
        if name := series.labels.get("model_name"):
            return name
    return ""
