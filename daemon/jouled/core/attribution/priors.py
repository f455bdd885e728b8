"""Expected joules per unit of work, from the model's configuration (docs/attribution.md, priors).

Only the ratios matter: the scale comes from the meter.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from jouled.core.attribution.known_models import known_model
from jouled.core.attribution.model_config import ModelSizes, bytes_per_weight
from jouled.model.engine import Engine

JOULES_PER_FLOP = 0.45e-12
"""Order of magnitude of an H100-class part at serving precision (attribution.md section 3.7)."""
JOULES_PER_BYTE = 60e-12
"""The same for a byte read from HBM."""
GENERIC_PARAMETERS = 8e9
"""An 8B dense model: between 8B and 405B the ratios hardly differ."""
BYTES_PER_WEIGHT = 2.0
"""Where nothing is said of the number format."""
HEAD_RATIO = 128
"""Hidden size per layer of common dense models (Llama 8B: 4096/32, 70B: 8192/80 ≈ 102); used where only N is known."""
EXPERTS_OF_ACTIVE, EXPERT_SHARE_MAX = 0.65, 1 / 32
"""Where nobody tells what share of its experts a mixture's token takes: about so much of the share of its parameters
that are active (the rest is attention and what all tokens pass), and no more than models of many small experts do."""
MIXTURE_SHARE = 0.75
"""A model that works with less than this of its parameters on a token is a mixture of experts. A dense one leaves out
its embedding table, at most a fifth."""
ARCHITECTURE_SOURCES = ("configuration", "config_file", "known_model")
EXPERTS_TAKEN_OF_FEW = 2
"""Of the experts of an `NxMB` name (Mixtral's)."""
_FEW_EXPERTS = re.compile(r"(?<![\d.a-z])([0-9]{1,4})x([0-9]{1,6}(?:\.[0-9]{1,6})?)b(?![a-z\d])")
_LARGEST_NAMED = 1e14
_LARGEST_TOLD = 1e18


class Betas(NamedTuple):
    """Joules per unit of work of the channels 1 to 5: step, prompt token, attention pair, output token, KV token."""

    step: float
    prefill: float
    attention: float
    decode: float
    kv: float
    source: str
    """Where the sizes come from: `configuration`, `config_file`, `known_model`, `name` or `generic`."""
    is_mixture: bool = False
    """Whether the model is a mixture of experts."""
    expert_share: float = 1.0
    """Of its experts, the share that one token takes."""
    always_read: float = 1.0
    """Of its weights, the share outside the experts, which every step reads."""

    def weight_reads(self, steps: float, tokens: float) -> float:
        """How many times all weights are read by steps that carry so many tokens together.

        A mixture's step reads the experts that any of its tokens takes: from some dozens of tokens on, nearly all.
        """
        if self.expert_share >= 1.0 or steps <= 0.0:
            return steps
        untouched: float = (1.0 - self.expert_share) ** max(tokens / steps, 1.0)
        return steps * (1.0 - (1.0 - self.always_read) * untouched)

    @property
    def knows_architecture(self) -> bool:
        """Whether the sizes are the model's own, not guessed from its name."""
        return self.source in ARCHITECTURE_SOURCES

    def scaled(self, factors: Sequence[float]) -> "Betas":
        """The same with each channel's joules multiplied by a factor, in the order of the channels."""
        step, prefill, attention, decode, kv = factors
        return self._replace(
            step=self.step * step,
            prefill=self.prefill * prefill,
            attention=self.attention * attention,
            decode=self.decode * decode,
            kv=self.kv * kv,
        )


class Sizes(NamedTuple):
    """The sizes that the priors reckon with, told or assumed; `source` as in `Betas`."""

    parameters: float
    active_parameters: float
    layers: int
    hidden_size: int
    attention_width: float
    weight_bytes: float
    kv_bytes_per_token: float
    expert_share: float
    source: str


def sizes_from_name(model: str) -> tuple[float, float] | None:
    """(parameters, active parameters) spelt in a model's name: `8B`, `30B-A3B`, `8x7B`, `0.6b`; `None` without any.

    An `NxMB` name counts N·M parameters, two experts active (Mixtral's).
    """
    text = model.lower()
    mixture = _FEW_EXPERTS.search(text)
    if mixture:
        experts, size = int(mixture[1]), float(mixture[2]) * 1e9
        return _plausible(experts * size, min(EXPERTS_TAKEN_OF_FEW, experts) * size)
    total = re.search(r"(?<![\d.a-z])([0-9]{1,6}(?:\.[0-9]{1,6})?)(b|m)(?![a-z\d])", text)
    if not total:
        return None
    parameters = float(total[1]) * (1e9 if total[2] == "b" else 1e6)
    active = re.search(r"[-_]a([0-9]{1,6}(?:\.[0-9]{1,6})?)b(?![a-z\d])", text)
    return _plausible(parameters, min(float(active[1]) * 1e9, parameters) if active else parameters)


def _plausible(parameters: float, active: float) -> tuple[float, float] | None:
    return (parameters, active) if 0 < active <= parameters <= _LARGEST_NAMED else None


def with_sizes(engine: Engine, sizes: ModelSizes, source: str) -> Engine:
    """The engine with what it does not tell filled in from its model's sizes; `sizes_from` says who told the weights.

    Layers and widths are taken together, so that no half of them is of another model.
    """
    tells_weights, tells_shape = _tells_weights(engine), _told(engine.layers) or _told(engine.hidden_size)
    shape = engine if tells_shape else sizes
    weight_bytes = _told(engine.weight_bytes)
    if weight_bytes is None and _told(engine.parameters) is None:
        weight_bytes = sizes.weight_bytes(
            bytes_per_weight(engine.precision)
            or sizes.bytes_per_weight
            or bytes_per_weight(engine.model)
            or BYTES_PER_WEIGHT
        )
    return replace(
        engine,
        parameters=_told(engine.parameters) or sizes.parameters,
        active_parameters=_told(engine.active_parameters) or sizes.active_parameters,
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        attention_width=shape.attention_width,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=_told(engine.kv_bytes_per_token) or sizes.kv_bytes_per_token,
        expert_share=engine.expert_share or sizes.expert_share,
        sizes_from=engine.sizes_from or ("configuration" if tells_weights else source),
    )


def sizes_for(engine: Engine) -> Sizes:
    """What is known of the engine's model: told, else of a known model, else from its name, else an 8B dense model."""
    known = None if engine.sizes_from == "config_file" else known_model(engine.model)
    if known is not None:
        engine = with_sizes(engine, known, "known_model")
    named = sizes_from_name(engine.model)
    told_by = engine.sizes_from if engine.sizes_from in ARCHITECTURE_SOURCES else "configuration"
    guessed_by = "name" if named else "generic"
    width = bytes_per_weight(engine.precision) or bytes_per_weight(engine.model) or BYTES_PER_WEIGHT
    parameters, active = _parameters(engine, named, width)
    hidden = _told(engine.hidden_size) or max(1, round((active * HEAD_RATIO / 12) ** (1 / 3)))
    layers = _told(engine.layers) or max(1, round(hidden / HEAD_RATIO))
    return Sizes(
        parameters=parameters,
        active_parameters=active,
        layers=int(layers),
        hidden_size=int(hidden),
        attention_width=_told(engine.attention_width) or hidden,
        weight_bytes=_told(engine.weight_bytes) or parameters * width,
        kv_bytes_per_token=_told(engine.kv_bytes_per_token) or float(layers * hidden),
        expert_share=_expert_share(engine, active / parameters),
        source=told_by if _tells_weights(engine) else guessed_by,
    )


def _parameters(engine: Engine, named: tuple[float, float] | None, width: float) -> tuple[float, float]:
    """Parameters and active parameters: told, from the bytes of the weights, from the name, or generic."""
    weight_bytes, told_active = _told(engine.weight_bytes), _told(engine.active_parameters)
    parameters = _told(engine.parameters) or (weight_bytes / width if weight_bytes else None)
    parameters = parameters or (named[0] if named else told_active or GENERIC_PARAMETERS)
    return parameters, told_active or (min(named[1], parameters) if named else parameters)


def _expert_share(engine: Engine, active_share: float) -> float:
    """Of a mixture's experts that a token takes: told, from a name of eight experts (`8x7B`), or usual; 1 of others."""
    if active_share >= MIXTURE_SHARE:
        return 1.0
    told = engine.expert_share
    if told is not None and 0.0 < told < 1.0:
        return told
    few = _FEW_EXPERTS.search(engine.model.lower())
    if few and int(few[1]) > EXPERTS_TAKEN_OF_FEW:
        return EXPERTS_TAKEN_OF_FEW / int(few[1])
    return min(EXPERTS_OF_ACTIVE * active_share, EXPERT_SHARE_MAX)


def betas(engine: Engine) -> Betas:
    """The priors of one engine."""
    sizes = sizes_for(engine)
    active_share = min(sizes.active_parameters / sizes.parameters, 1.0)
    expert_share = min(sizes.expert_share, 1.0)
    always_read = max((active_share - expert_share) / (1.0 - expert_share), 0.0) if expert_share < 1.0 else 1.0
    return Betas(
        step=JOULES_PER_BYTE * sizes.weight_bytes,
        prefill=2 * sizes.active_parameters * JOULES_PER_FLOP,
        attention=4 * sizes.layers * sizes.attention_width * JOULES_PER_FLOP,
        decode=2 * sizes.active_parameters * JOULES_PER_FLOP,
        kv=JOULES_PER_BYTE * sizes.kv_bytes_per_token,
        source=sizes.source,
        is_mixture=expert_share < 1.0,
        expert_share=expert_share,
        always_read=always_read,
    )


def _tells_weights(engine: Engine) -> bool:
    return any(map(_told, (engine.parameters, engine.weight_bytes, engine.active_parameters)))


def _told(size: float | None) -> float | None:
    """A size that can be one; a recording may hold anything."""
    return size if size is not None and 1 <= size <= _LARGEST_TOLD else None
