"""Hugging Face's Text Generation Inference (TGI): the router's `/metrics` and `/info`."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import answers, command_line, facts
from jouled_collectors.engines.exposition import PageReader, total
from jouled_collectors.engines.histograms import HistogramReader

_ROUTER = "text-generation-router"
"""`text-generation-router-v2`, `-v3` and `-llamacpp` are routers too."""

_READER = PageReader(
    "tgi",
    (
        "batch_inference_count",
        "request_input_length_sum",
        "request_generated_tokens_sum",
        "batch_current_size",
        "queue_size",
    ),
)
# There is no time to first token, and `request_mean_time_per_token_duration` divides the whole inference, prefill
# included, by all tokens: no time per output token.
_REQUEST_DURATION = HistogramReader("tgi", "request_duration")


class _Info(Struct):
    version: str


class TgiCollector:
    """Reads the router's page, which has no labels and no token counters: tokens are the sums of two histograms.

    As read in `router/src/validation.rs` and `router/src/server.rs` at commits 01067f8 and d957e32, and on a page of a
    running server (the Datadog integration's): `request_input_length` has cached tokens too and moves when a request
    is validated, before it is queued; that is nearest to the first token, which it precedes by the queueing time.
    `request_generated_tokens` moves when a request succeeds: tokens of aborted and failed ones are never in it.
    `batch_inference_count` counts the model server's calls, prefill and decode. Names of counters have no `_total`.
    """

    name: ClassVar[str] = "tgi"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = "/info"
    default_port: ClassVar[int] = 3000
    port_variables: ClassVar[Sequence[str]] = ("PORT",)
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="total", prompt_at="first_token", generation="all", generation_at="finish"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is the router, which has the port.

        `text-generation-launcher` starts it and the model servers (`text-generation-server`), and has none itself.
        """
        program, _ = command_line.program(argv)
        return command_line.file_name(program).startswith(_ROUTER)

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, which the launcher always gives, else 3000."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of TGI."""
        families = _READER.read(body)
        return EnginePage(
            steps=total(families.get("batch_inference_count")),
            prompt_tokens=total(families.get("request_input_length_sum")),
            generation_tokens=total(families.get("request_generated_tokens_sum")),
            requests_running=total(families.get("batch_current_size")),
            requests_waiting=total(families.get("queue_size")),
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read the end-to-end latency, if it is wanted. Raises `ValueError` with the reason."""
        histogram = _REQUEST_DURATION.read(body) if "e2el" in wanted else None
        return {} if histogram is None else {"e2el": histogram}

    def version(self, body: bytes) -> str:
        """Read the version of `/info`. Raises `ValueError`."""
        return answers.version(answers.decode(body, _Info).version)

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        """The model of `--tokenizer-name`; the rest from the environment, where a container's options stand.

        The launcher gives number format and shards to the model servers alone, and its environment to the router too.
        `SPECULATE` is drafted by Medusa heads where the model has them, else by n-grams: which, only the weights tell.
        """
        shards = command_line.size(["--shards", environ.get("NUM_SHARD", "")], "--shards")
        return EngineFacts(
            model=command_line.option(argv, "--tokenizer-name") or environ.get("MODEL_ID", ""),
            precision=facts.precision(environ.get("DTYPE", ""), environ.get("QUANTIZE", "")),
            parallelism=facts.parallelism(tp=shards),
            speculation="" if environ.get("SPECULATE", "") in {"", "0"} else "medusa_or_ngram",
        )
