"""NVIDIA Dynamo's workers: `/metrics` on the system port, with the metrics of the engine inside."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import ClassVar, Protocol

from msgspec.structs import replace

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled_collectors.engines import command_line
from jouled_collectors.engines.exposition import PageReader, Series, total
from jouled_collectors.engines.sglang import SglangCollector
from jouled_collectors.engines.tensorrt_llm import TensorRtLlmCollector
from jouled_collectors.engines.vllm import VllmCollector

_PACKAGE = "dynamo"
_ENDPOINT = "generate"
_LONGEST_ID = 16  # hexadecimal digits
_READER = PageReader("dynamo", ("component_inflight_requests", "component_uptime_seconds", "request_queue"))
_ROLES = {"prefill": "prefill", "decode": "decode", "agg": "unified", "prefill_and_decode": "unified"}
_OLD_ROLE_FLAGS = {"--is-prefill-worker": "prefill", "--is-decode-worker": "decode"}  # before 1.0

Families = Mapping[str, Sequence[Series]]


class _Inner(Protocol):
    """What is used of the collector of the engine inside a worker."""

    semantics: ClassVar[CounterSemantics]

    def page(self, body: bytes) -> EnginePage: ...

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]: ...

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts: ...


_INNER: Mapping[str, tuple[PageReader, _Inner]] = {
    "vllm": (PageReader("vllm", ("num_requests_running",)), VllmCollector()),
    "sglang": (PageReader("sglang", ("num_running_reqs",)), SglangCollector()),
    "trtllm": (PageReader("trtllm", ("request_success",)), TensorRtLlmCollector()),
}
_MODULES = (*_INNER, "mocker")


class DynamoCollector:
    """Reads a worker's page: what the engine inside tells, by its own collector, and what Dynamo adds.

    The page is there if `DYN_SYSTEM_PORT` is set (docs use 8081; off otherwise). Dynamo adds its labels to the engine's
    series and `dynamo_component_*` to the page; as measured on 1.6.1, `dynamo_component="prefill"` is a prefill worker
    and `backend` a decode worker or one that does both. The frontend's page tells the same tokens again: see
    `dynamo_frontend`. A worker without an engine's counters (the mocker) has no tokens here.
    """

    name: ClassVar[str] = "dynamo"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = ""
    default_port: ClassVar[int] = 8081
    port_variables: ClassVar[Sequence[str]] = ("DYN_SYSTEM_PORT",)
    semantics: ClassVar[CounterSemantics] = CounterSemantics()

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # workers set no title
        """Whether this is `python -m dynamo.vllm …` or another worker of Dynamo's own."""
        return module(argv) in _MODULES

    def port(self, argv: Sequence[str]) -> int:  # noqa: ARG002  # no argument tells it
        """The port of the documentation; the real one stands in `DYN_SYSTEM_PORT`."""
        return self.default_port

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of a worker."""
        families = _READER.read(body)
        inner = _inner_of(body)
        page = EnginePage() if inner is None else inner.page(body)
        semantics = page.semantics or (inner.semantics if inner is not None else None)
        role, instance = _role(families), _instance(families)
        running, waiting = page.requests_running, page.requests_waiting
        return replace(
            page,
            semantics=semantics,
            facts=replace(page.facts, role=role or page.facts.role, instance=instance),
            requests_running=_running(families) if running is None else running,
            requests_waiting=total(families.get("request_queue")) if waiting is None else waiting,
        )

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of the engine inside. Raises `ValueError` with the reason."""
        inner = _inner_of(body)
        return {} if inner is None else inner.latencies(body, wanted)

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        """What the worker was started with: the engine's own options, the role by `--disaggregation-mode`."""
        _, inner = _INNER.get(module(argv), (None, None))
        told = EngineFacts() if inner is None else inner.facts(argv, environ)
        model = command_line.option(argv, "--served-model-name", "--model-name") or told.model
        model = model or command_line.option(argv, "--model", "--model-path")
        return replace(told, model=model, role=_role_started(argv) or told.role)

    def version(self, body: bytes) -> str:  # noqa: ARG002  # nobody asks
        """There is none to ask for. Raises `ValueError`."""
        raise ValueError("a worker of Dynamo does not tell its version")


def module(argv: Sequence[str]) -> str:
    """Which part of Dynamo a process is, as `vllm` of `python -m dynamo.vllm`; empty if it is none."""
    program, _ = command_line.program(argv)
    package, _, name = program.partition(".")
    if package == _PACKAGE:
        return name.removesuffix(".__main__")
    if not program.endswith("/__main__.py"):
        return ""
    path = PurePath(program)
    if path.parent.parent.name == _PACKAGE:
        return path.parent.name
    return ""


def _inner_of(body: bytes) -> _Inner | None:
    return next((inner for reader, inner in _INNER.values() if reader.is_page(body)), None)


def _running(families: Families) -> int | None:
    """Requests at the worker's endpoint; others of its endpoints answer questions about the KV cache."""
    inflight = families.get("component_inflight_requests", ())
    return total([each for each in inflight if each.labels.get("dynamo_endpoint") == _ENDPOINT])


def _role(families: Families) -> str:
    """`prefill` by the component's name; `backend` is the name of decode workers and of workers that do both."""
    names = {each.labels.get("dynamo_component") for each in families.get("component_inflight_requests", ())}
    return "prefill" if names == {"prefill"} else ""


def _role_started(argv: Sequence[str]) -> str:
    for flag, role in _OLD_ROLE_FLAGS.items():
        if command_line.has_flag(argv, flag):
            return role
    return _ROLES.get(command_line.option(argv, "--disaggregation-mode"), "")


def _instance(families: Families) -> str:
    """The id by which spans name the worker (`instance_id`, a decimal number there), hexadecimal as on the page."""
    ids = {each.labels.get("worker_id", "").lstrip("0") for series in families.values() for each in series} - {""}
    return ids.pop()[:_LONGEST_ID] if len(ids) == 1 else ""
