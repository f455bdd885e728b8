"""Expected joules per unit of work, from the model's configuration (docs/attribution.md, priors).

Only the ratios matter: the scale comes from the meter.
"""

import re
from typing import NamedTuple

from jouled.model.engine import Engine

JOULES_PER_FLOP = 0.45e-12
"""Order of magnitude of an H100-class part at serving precision (attribution.md section 3.7)."""
JOULES_PER_BYTE = 60e-12
"""The same for a byte read from HBM."""
GENERIC_PARAMETERS = 8e9
"""An 8B dense model: between 8B and 405B the ratios hardly differ."""
BYTES_PER_PARAMETER = {
    "fp8": 1.0,
    "int8": 1.0,
    "w8a8": 1.0,
    "fp4": 0.5,
    "nvfp4": 0.5,
    "mxfp4": 0.5,
    "int4": 0.5,
    "awq": 0.5,
    "gptq": 0.5,
    "q4": 0.5,
    "4bit": 0.5,
    "fp32": 4.0,
    "float32": 4.0,
}
HEAD_RATIO = 128
"""Hidden size per layer of common dense models (Llama 8B: 4096/32, 70B: 8192/80 ≈ 102); used where only N is known."""


class Betas(NamedTuple):
    """Joules per unit of work of the channels 1 to 5: step, prompt token, attention pair, output token, KV token."""

    step: float
    prefill: float
    attention: float
    decode: float
    kv: float
    source: str
    """Where the sizes come from: `configuration`, `name` or `generic`."""


def sizes_from_name(model: str) -> tuple[float, float] | None:
    """(parameters, active parameters) spelt in a model's name: `8B`, `30B-A3B`, `8x7B`, `0.6b`; `None` without any.

    An `NxMB` name counts N·M parameters, two experts active.
    """
    text = model.lower()
    mixture = re.search(r"(?<![\d.a-z])(\d+)x(\d+(?:\.\d+)?)b(?![a-z\d])", text)
    if mixture:
        experts, size = int(mixture[1]), float(mixture[2]) * 1e9
        return experts * size, min(2, experts) * size
    total = re.search(r"(?<![\d.a-z])(\d+(?:\.\d+)?)(b|m)(?![a-z\d])", text)
    if not total:
        return None
    parameters = float(total[1]) * (1e9 if total[2] == "b" else 1e6)
    active = re.search(r"[-_]a(\d+(?:\.\d+)?)b(?![a-z\d])", text)
    return parameters, min(float(active[1]) * 1e9, parameters) if active else parameters


def bytes_per_parameter(engine: Engine) -> float:
    """Bytes of one weight: 2, less for quantised models, by the precision told or the model's name."""
    text = f"{engine.precision} {engine.model}".lower()
    return next((size for word, size in BYTES_PER_PARAMETER.items() if word in text), 2.0)


def betas(engine: Engine) -> Betas:
    """The priors of one engine: what it tells, else sizes from its model's name, else an 8B dense model."""
    named = sizes_from_name(engine.model)
    told = engine.parameters is not None or engine.weight_bytes is not None or engine.active_parameters is not None
    source = "configuration" if told else "name" if named else "generic"
    width = bytes_per_parameter(engine)
    parameters = engine.parameters or (engine.weight_bytes / width if engine.weight_bytes else None)
    parameters = parameters or (named[0] if named else engine.active_parameters or GENERIC_PARAMETERS)
    active = engine.active_parameters or (min(named[1], parameters) if named else parameters)
    hidden = engine.hidden_size or round((active * HEAD_RATIO / 12) ** (1 / 3))
    layers = engine.layers or max(1, round(hidden / HEAD_RATIO))
    kv_bytes = engine.kv_bytes_per_token or float(layers * hidden)
    return Betas(
        step=JOULES_PER_BYTE * (engine.weight_bytes or parameters * width),
        prefill=2 * active * JOULES_PER_FLOP,
        attention=4 * layers * hidden * JOULES_PER_FLOP,
        decode=2 * active * JOULES_PER_FLOP,
        kv=JOULES_PER_BYTE * kv_bytes,
        source=source,
    )
