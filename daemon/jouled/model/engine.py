"""Inference engines: what they are and what their counters say."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct


class CounterSemantics(Struct, frozen=True):
    """What an engine's token counters include and when they move (attribution.md section 4).

    prompt: `total` includes tokens taken from the prefix cache, `computed` does not. prompt_at / generation_at: the
    moment at which a request's tokens enter the counter. generation: whether the first token is counted.
    The defaults are vLLM's.
    """

    prompt: Literal["computed", "total"] = "total"
    prompt_at: Literal["step", "first_token", "finish"] = "first_token"
    generation: Literal["all", "without_first"] = "all"
    generation_at: Literal["step", "finish"] = "step"

    @property
    def moves(self) -> Literal["live", "at_finish"]:
        """When the counter of generated tokens moves: as they are made, or when their request finishes."""
        return "live" if self.generation_at == "step" else "at_finish"


class Engine(Struct, frozen=True, kw_only=True):
    """One engine replica and the devices it runs on. `name` is stable over restarts, never a pid.

    parallelism: sizes above one, as in `dp2 tp4`. kv_connector: what carries the KV cache between pools. speculation:
    method of speculative decoding. driver: version of that of its devices. Of each, empty is not known or none.
    Sizes are counts of parameters, bytes of all resident weights, bytes of KV cache per token; `None` is not known.
    attention_width: heads times head size, where it is not the hidden size. expert_share: of a mixture's experts, the
    share that one token takes. sizes_from: where the sizes come from if
    not from the engine or the configuration of jouled itself (`config_file`: the model's `config.json`).
    `model` may be empty until the engine's page has told it.
    """

    name: str
    type: str = ""
    model: str = ""
    devices: tuple[str, ...] = ()
    role: str = "unified"
    version: str = ""
    precision: str = ""
    parallelism: str = ""
    driver: str = ""
    kv_connector: str = ""
    speculation: str = ""
    url: str = ""
    pid: int | None = None
    instance: str = ""
    parameters: float | None = None
    active_parameters: float | None = None
    layers: int | None = None
    hidden_size: int | None = None
    attention_width: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    expert_share: float | None = None
    sizes_from: str = ""
    counter_semantics: CounterSemantics = CounterSemantics()


ENGINE_FACTS = ("model", "version", "precision", "parallelism", "driver", "role", "kv_connector", "speculation")
"""The fields of an `Engine` a change of which may change its efficiency."""

ENGINE_SIZES = (
    "parameters",
    "active_parameters",
    "layers",
    "hidden_size",
    "attention_width",
    "weight_bytes",
    "kv_bytes_per_token",
    "expert_share",
)
"""The fields of an `Engine` that say how large its model is."""

Latency = Literal["ttft", "tpot", "e2el"]
"""What an SLO can limit, in the spelling of `vllm bench serve --goodput`."""


class LatencyHistogram(Struct, frozen=True, gc=False):
    """A cumulative histogram of a latency, one observation a request.

    counts[i]: observations of at most bounds_seconds[i]; one count more than bounds, the last one of all of them.
    """

    bounds_seconds: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def is_sound(self) -> bool:
        """Whether it can be one: bounds ascend, counts do not descend, and there is one more of them."""
        bounds, counts = list(self.bounds_seconds), list(self.counts)
        ascends = bounds == sorted({*bounds}) and counts == sorted(counts)
        return ascends and len(counts) == len(bounds) + 1 and counts[0] >= 0


class EngineSample(Struct, frozen=True, gc=False, kw_only=True, tag="engine_counters"):
    """One look at an engine's page: cumulative counters and two gauges; what the page lacks is `None`.

    latencies: histograms that an SLO needs, as far as the page has them. cpu_seconds: cumulative CPU time of the
    engine's processes, not of the page. reported_energy_joules: cumulative, by the engine's own meter.
    forward_seconds: cumulative time in which its accelerators computed, by kind of step, as the engine times it.
    departed_counts: by kind (`steps`, `prompt`, `generation`) what the counters have lost since the last sample while
    the engine ran on, as when one of its models was unloaded: no restart, and what is left is not counted again.
    """

    engine: str
    t_ns: int
    model: str = ""
    steps: int | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    generation_tokens: int | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    cpu_seconds: float | None = None
    reported_energy_joules: float | None = None
    forward_seconds: Mapping[str, float] = {}
    latencies: Mapping[Latency, LatencyHistogram] = {}
    departed_counts: Mapping[str, int] = {}
