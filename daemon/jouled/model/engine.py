"""Inference engines: what they are and what their counters say."""

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


class Engine(Struct, frozen=True, kw_only=True):
    """One engine replica and the devices it runs on. `name` is stable over restarts, never a pid.

    Sizes are counts of parameters, bytes of all resident weights, bytes of KV cache per token; `None` is not known.
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
    url: str = ""
    pid: int | None = None
    parameters: float | None = None
    active_parameters: float | None = None
    layers: int | None = None
    hidden_size: int | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    counter_semantics: CounterSemantics = CounterSemantics()


class EngineSample(Struct, frozen=True, gc=False, kw_only=True, tag="engine_counters"):
    """One look at an engine's page: cumulative counters and two gauges; what the page lacks is `None`."""

    engine: str
    t_ns: int
    model: str = ""
    steps: int | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    generation_tokens: int | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
