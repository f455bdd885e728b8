"""NVIDIA Triton Inference Server: `/metrics` on its metrics port, with the TensorRT-LLM or the vLLM backend."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from jouled.api import EnginePage
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines import command_line
from jouled_collectors.engines.exposition import PageReader, Series, total

_Families = Mapping[str, Sequence[Series]]

_SERVER = "tritonserver"
_READER = PageReader(
    "nv",
    (
        "llm_input_token_len_sum",
        "llm_output_token_len_sum",
        "trt_llm_request_metrics",
        "trt_llm_general_metrics",
        "inference_pending_request_count",
    ),
)
_VLLM_BACKEND = PageReader(
    "vllm",
    ("request_prompt_tokens_sum", "request_generation_tokens_sum", "num_requests_running", "num_requests_waiting"),
)


class TritonCollector:
    """Reads Triton's page. Tokens are told by two backends only, and move when a request is finished.

    The page, its port and what becomes of models were met on a running server, Triton 2.51.0 (24.10) without a GPU.
    What the two backends export on it is from their sources; models that export the same stood in for them there.
    TensorRT-LLM backend (`model_instance_state.cc`, `custom_metrics_reporter.cc`; the Python `model.py` at 89fd9b7 has
    the same names): the sums of the histograms `nv_llm_input_token_len` and `nv_llm_output_token_len`, one observation
    a request, prompt tokens with cached ones, aborted requests with what they got; older ones have the gauges
    `nv_trt_llm_request_metrics` alone (23.11 on), the one on TensorRT-LLM's LLM API nothing. vLLM backend
    (`src/utils/metrics.py` at 1e66a22, where `REPORT_CUSTOM_METRICS` is set): the sums of `vllm:request_prompt_tokens`
    and `vllm:request_generation_tokens`, finished requests only; its counters per step are left, so that all tokens of
    a page move at the same moment. It has no gauges since vLLM's V1 (2b3cb93).
    Running requests are those scheduled, as the Gateway API inference extension has it. A gauge that one of several
    such models lacks is absent: those of the others are no sum. Where no model tells anything itself, the waiting ones
    are those in Triton's own queues (`nv_inference_pending_request_count`; an ensemble's steps count, not itself).

    The page is there once all models of the start are loaded, and until the last one is unloaded at the end. Series of
    an unloaded model leave it where its backend deletes them, and begin at zero when it is loaded again; else they
    stay, and go on then. Both were met; by their sources TensorRT-LLM's in C++ deletes them, those in Python do not.
    `nv_energy_consumption` and `nv_gpu_power_usage` are whole GPUs, which jouled reads itself: never added. Without a
    GPU they are not there.
    """

    name: ClassVar[str] = "triton"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = ""
    default_port: ClassVar[int] = 8002
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="total", prompt_at="finish", generation="all", generation_at="finish"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is a `tritonserver` that has a metrics port: of several ranks only the first."""
        program, _ = command_line.program(argv)
        if command_line.file_name(program) != _SERVER:
            return False
        return command_line.option(argv, "--allow-metrics").lower() not in {"false", "0"}

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--metrics-port`, else 8002."""
        return command_line.port(["--port", command_line.option(argv, "--metrics-port")], self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`. Raises `ValueError` with the reason if this is no page of Triton."""
        families: _Families = _READER.read(body)
        vllm: _Families = _VLLM_BACKEND.read(body) if _VLLM_BACKEND.is_page(body) else {}
        prompt = [*families.get("llm_input_token_len_sum", ()), *vllm.get("request_prompt_tokens_sum", ())]
        generated = [*families.get("llm_output_token_len_sum", ()), *vllm.get("request_generation_tokens_sum", ())]
        running = [*_of_type(families, "request", "scheduled"), *vllm.get("num_requests_running", ())]
        waiting = [*_of_type(families, "request", "waiting"), *vllm.get("num_requests_waiting", ())]
        telling = {_model(each) for each in (*generated, *running)}
        steps = _of_type(families, "general", "iteration_counter")
        queued = waiting if telling else families.get("inference_pending_request_count", ())
        return EnginePage(
            model=_busiest(generated),
            steps=total(steps),
            prompt_tokens=total(prompt),
            generation_tokens=total(generated),
            requests_running=_of_all(telling, running),
            requests_waiting=_of_all(telling, queued),
            counts_by_model=_by_model(steps=steps, prompt=prompt, generation=generated),
        )

    def version(self, body: bytes) -> str:  # noqa: ARG002  # there is nothing to read
        """Triton tells it on another port. Raises `ValueError`."""
        raise ValueError("Triton's metrics port does not tell the version")


def _of_type(families: _Families, group: str, kind: str) -> list[Series]:
    """The series of one kind from a group of gauges of the TensorRT-LLM backend."""
    series = families.get(f"trt_llm_{group}_metrics", ())
    return [each for each in series if each.labels.get(f"{group}_type") == kind]


def _model(series: Series) -> tuple[str, str]:
    """Whose it is: several versions of one model may be loaded."""
    return series.labels.get("model", ""), series.labels.get("version", "")


def _of_all(models: set[tuple[str, str]], gauge: Sequence[Series]) -> int | None:
    """The sum of a gauge, if each of these models tells it."""
    return total(gauge) if models <= {_model(each) for each in gauge} else None


def _by_model(**counters: Sequence[Series]) -> dict[str, dict[str, int]]:
    """What each model has in the sums, as far as there are sums."""
    told: dict[str, dict[str, int]] = {}
    for kind, series in counters.items():
        if total(series) is not None:
            told[kind] = {}
            for each in series:
                model = "/".join(_model(each))
                told[kind][model] = told[kind].get(model, 0) + round(each.value)
    return told


def _busiest(generated: Sequence[Series]) -> str:
    """The model that made most tokens, as Triton's repository calls it."""
    named = [each for each in generated if each.labels.get("model") and each.value >= 0]
    return max(named, key=lambda each: each.value).labels["model"] if named else ""
