"""SGLang's server: `/metrics` (with `--enable-metrics`) and `/server_info`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import answers, command_line, facts
from jouled_collectors.engines.exposition import MAXIMUM_COUNT, PageReader, Series, total
from jouled_collectors.engines.histograms import HistogramReader

_SERVERS = ("sglang.launch_server", "sglang/launch_server.py")
_COMMANDS = ("sglang", "sglang.cli.main")

# Requests that wait for more than a place in the batch, under all names that they have had since 0.4.9: `infight` is
# 0.4.9's own spelling, `prefill_prealloc` was renamed `prefill_bootstrap` before 0.5.12.
_QUEUES = (
    "num_queue_reqs",
    "num_prefill_bootstrap_queue_reqs",
    "num_prefill_prealloc_queue_reqs",
    "num_prefill_inflight_queue_reqs",
    "num_prefill_infight_queue_reqs",
    "num_decode_prealloc_queue_reqs",
    "num_decode_transfer_queue_reqs",
    "num_decode_host_receive_queue_reqs",
)
_READER = PageReader(
    "sglang",
    (
        "realtime_tokens",
        "prefill_effective_tokens",
        "prompt_tokens",
        "cached_tokens",
        "generation_tokens",
        "forward_execution_seconds",
        "num_running_reqs",
        *_QUEUES,
    ),
)
# One observation a request each. `inter_token_latency_seconds` has one a token; releases before 0.5.16 lack the second.
_LATENCIES: Mapping[Latency, HistogramReader] = {
    "ttft": HistogramReader("sglang", "time_to_first_token_seconds"),
    "tpot": HistogramReader("sglang", "request_time_per_output_token_seconds"),
    "e2el": HistogramReader("sglang", "e2e_request_latency_seconds"),
}
_AT_FINISH = CounterSemantics(prompt="total", prompt_at="finish", generation="all", generation_at="finish")

Families = Mapping[str, Sequence[Series]]


class _ServerInfo(Struct):
    version: str


class SglangCollector:
    """Reads SGLang's page. Ranks of data parallelism are added up; other ranks that tell the same count once.

    Names and behaviour as in the sources of 0.4.9 to 0.5.23. `realtime_tokens_total` (since 0.5.7) moves with every
    batch: computed prompt tokens, cached ones, and tokens of decode steps, among which a request's first token is not.
    Before, `prompt_tokens_total` (with cached tokens) and `generation_tokens_total` move when a request has ended.
    """

    name: ClassVar[str] = "sglang"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = "/server_info"
    default_port: ClassVar[int] = 30000
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="computed", prompt_at="step", generation="without_first", generation_at="step"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:
        """Whether this is an API server: `python -m sglang.launch_server …` or `sglang serve …`.

        `sglang::scheduler` and the like are its children, and a server on a node other than the first has no page.
        """
        program, arguments = command_line.program(argv)
        is_command = command_line.file_name(program) in _COMMANDS and list(arguments[:1]) == ["serve"]
        if "sglang::" in title or not (is_command or program.endswith(_SERVERS)):
            return False
        return command_line.option(argv, "--node-rank") in {"", "0"}

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, else 30000."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of SGLang."""
        families = _READER.read(body)
        page = EnginePage(
            model=_model(families),
            facts=EngineFacts(role=_role(families)),
            requests_running=_of_schedulers(families, "num_running_reqs"),
            requests_waiting=_waiting(families),
        )
        page = _with_live_tokens(page, families) if _is_live(families) else _with_tokens_at_finish(page, families)
        return replace(page, forward_seconds=_forward_seconds(families))

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:  # noqa: ARG002  # the command line says it all
        """What the server was started with, as SGLang 0.5.23 spells it; a file of `--config` is not read."""
        _, arguments = command_line.program(argv)
        model = command_line.positional(arguments[1:]) if list(arguments[:1]) == ["serve"] else ""
        mode = command_line.option(argv, "--disaggregation-mode")
        # `--tp` and the like are what argparse takes for the long names.
        cp = [command_line.size(argv, *names) for names in (_CONTEXT_PARALLEL, _DECODE_CONTEXT_PARALLEL)]
        return EngineFacts(
            model=command_line.option(argv, "--served-model-name")
            or command_line.option(argv, "--model-path", "--model")
            or model,
            role=facts.ROLES.get(mode, "unified"),
            precision=facts.precision(
                command_line.option(argv, "--dtype"), command_line.option(argv, "--quantization")
            ),
            parallelism=facts.parallelism(
                dp=command_line.size(argv, "--data-parallel-size", "--dp-size", "--dp"),
                ep=command_line.size(argv, "--expert-parallel-size", "--ep-size", "--ep"),
                pp=command_line.size(argv, "--pipeline-parallel-size", "--pp-size", "--pp"),
                cp=max(cp),
                tp=command_line.size(argv, "--tensor-parallel-size", "--tp-size", "--tp"),
            ),
            kv_connector=_transfer_backend(argv) if mode in {"prefill", "decode"} else "",
            speculation=command_line.option(argv, "--speculative-algorithm").lower(),
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of `/metrics`. Raises `ValueError` with the reason."""
        read = {name: reader.read(body) for name, reader in _LATENCIES.items() if name in wanted}
        return {name: histogram for name, histogram in read.items() if histogram is not None}

    def version(self, body: bytes) -> str:
        """Read the version of `/server_info` (since 0.5.7) and nothing else of it. Raises `ValueError`."""
        return answers.version(answers.decode(body, _ServerInfo).version)


_CONTEXT_PARALLEL = ("--attention-context-parallel-size", "--attn-cp-size")
_DECODE_CONTEXT_PARALLEL = ("--decode-context-parallel-size", "--dcp-size")


def _transfer_backend(argv: Sequence[str]) -> str:
    return facts.kv_connector(command_line.option(argv, "--disaggregation-transfer-backend") or "mooncake")


def _is_live(families: Families) -> bool:
    """Whether this release counts live tokens: their family is on a page only when there have been some.

    `prefill_effective_tokens_total`, since 0.5.18 or earlier, is there from the start.
    """
    return "realtime_tokens" in families or "prefill_effective_tokens" in families


def _with_live_tokens(page: EnginePage, families: Families) -> EnginePage:
    """Live counts: of a family whose series appear with their first token, a missing one is zero."""
    series = _one_of_each_group(families.get("realtime_tokens", ()))

    def count(mode: str) -> int | None:
        chosen = [each for each in series if each.labels.get("mode") == mode]
        return total(chosen) if chosen else 0

    return replace(
        page,
        prompt_tokens=count("prefill_compute"),
        cached_prompt_tokens=count("prefill_cache"),
        generation_tokens=count("decode"),
        semantics=SglangCollector.semantics,
    )


def _with_tokens_at_finish(page: EnginePage, families: Families) -> EnginePage:
    if "prompt_tokens" not in families:
        return page
    cached = families.get("cached_tokens")
    return replace(
        page,
        prompt_tokens=total(families["prompt_tokens"]),
        cached_prompt_tokens=total(cached) if cached else 0,
        generation_tokens=total(families.get("generation_tokens")),
        semantics=_AT_FINISH,
    )


def _forward_seconds(families: Families) -> dict[str, float]:
    """Seconds by forward mode, with `SGLANG_ENABLE_METRICS_DEVICE_TIMER`; one that cannot be a time is left out."""
    seconds: dict[str, float] = {}
    for each in _one_of_each_group(families.get("forward_execution_seconds", ())):
        mode = each.labels.get("category", "")
        if mode and 0.0 <= each.value <= MAXIMUM_COUNT:
            seconds[mode] = seconds.get(mode, 0.0) + each.value
    return seconds


def _waiting(families: Families) -> int | None:
    queues = [_of_schedulers(families, name) for name in _QUEUES if name in families]
    known = [count for count in queues if count is not None]
    return sum(known) if known and len(known) == len(queues) else None


def _of_schedulers(families: Families, name: str) -> int | None:
    """A gauge of the schedulers; with priorities, the series of the empty one has the sum of the others."""
    return total([each for each in _one_of_each_group(families.get(name, ())) if not each.labels.get("priority")])


def _one_of_each_group(series: Iterable[Series]) -> list[Series]:
    """The series of one scheduler for each rank of data parallelism.

    Pipeline stages, and with `--enable-metrics-for-all-schedulers` tensor ranks, all count the same tokens. Releases
    with data parallelism inside the tensor group label each part with its `dp_rank` too.
    """
    groups: dict[str, dict[tuple[int, int], list[Series]]] = {}
    for each in series:
        rank = _rank(each, "pp_rank"), _rank(each, "tp_rank")
        groups.setdefault(each.labels.get("dp_rank", ""), {}).setdefault(rank, []).append(each)
    return [each for ranks in groups.values() for each in ranks[min(ranks)]]


def _rank(series: Series, label: str) -> int:
    text = series.labels.get(label, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _model(families: Families) -> str:
    names = (each.labels.get("model_name", "") for series in families.values() for each in series)
    return next(filter(None, names), "")


def _role(families: Families) -> str:
    """The role that all series agree on.

    A server that changes it says `dynamic`, and releases up to 0.5.5 say `unified` of every server: neither tells one.
    """
    told = {each.labels.get("engine_type", "") for series in families.values() for each in series} - {""}
    return told.pop() if told in ({"prefill"}, {"decode"}) else ""
