"""A model's sizes from its Hugging Face `config.json`: parameters, the part that works on a token, layers, KV cache.

Counted are the language model's matrices; norms, biases and towers for images or sound (which no decode step reads)
are left out. The formula meets published totals within 2 % (tests/core/attribution/test_known_models.py).
"""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

KV_BYTES_PER_NUMBER = 2.0
"""Keys and values are kept in 16 bits unless the configuration says 8."""
WINDOW_CONTEXT_TOKENS = 4096
"""A layer that sees a window of w tokens counts for the share w / 4096 of a layer in attention and KV reads."""

_NESTED = ("text_config", "llm_config", "language_config")
_LARGEST = 1e9
_UNGATED = {"gpt_neox", "nemotron", "phi", "starcoder2"}
"""Families whose feed-forward block has two matrices; all others here have three."""
_TIED = ("gemma", "cohere")
"""Families that tie their embeddings without saying so in the file."""
_WIDTHS = (
    (re.compile(r"fp32|float32|(?<![a-z\d])f32"), 4.0),
    (re.compile(r"int8|8[-_]?bit|w8a\d+|fp8|float8|(?<![a-z\d])f8(?![a-z\d])"), 1.0),
    (re.compile(r"int4|4[-_]?bit|w4a\d+|fp4|(?<![a-z])nf4|awq|gptq"), 0.5),
    (re.compile(r"bf16|fp16|float16|(?<![a-z\d])f16(?![a-z\d])"), 2.0),
)
_GGUF = re.compile(r"(?<![a-z\d])i?q([1-8])(?![a-z\d])")
_BITS_PER_WEIGHT = re.compile(r"(?<![\d.])(\d{1,2}(?:\.\d{1,3})?)[-_]?bpw")


class ModelSizes(NamedTuple):
    """What a configuration tells. `embeddings` of the parameters are never quantised.

    attention_width: heads times head size, the mean over the layers (a layer with a window counts in part).
    bytes_per_weight: `None` where nothing is said of quantisation. expert_share: of its experts that a token takes; 1
    of a dense model.
    """

    parameters: float
    active_parameters: float
    embeddings: float
    layers: int
    hidden_size: int
    attention_width: float
    kv_bytes_per_token: float
    bytes_per_weight: float | None = None
    expert_share: float = 1.0

    def weight_bytes(self, bytes_per_weight: float) -> float:
        """Bytes of all weights; embeddings stay at 16 bits."""
        return (self.parameters - self.embeddings) * bytes_per_weight + self.embeddings * max(2.0, bytes_per_weight)


def sizes_of(config: Any) -> ModelSizes | None:
    """Sizes of the model that a `config.json` describes; `None` if it lacks what is needed. Any JSON will do."""
    if not isinstance(config, Mapping):
        return None
    model = _language_model(config)
    hidden, layers = _whole(model, "hidden_size"), _whole(model, "num_hidden_layers")
    heads, vocabulary = _whole(model, "num_attention_heads"), _whole(model, "vocab_size")
    if not (hidden and layers and heads and vocabulary):
        return None
    feed_forward = _feed_forward(model, hidden, layers)
    if feed_forward is None:
        return None
    all_blocks, active_blocks = feed_forward
    attention, width, kv_numbers = _attention(model, hidden, heads)
    embedding = vocabulary * hidden
    embeddings = embedding if _is_tied(model) else 2 * embedding
    seen = _layers_seen(model, layers)
    return ModelSizes(
        parameters=float(layers * attention + all_blocks + embeddings),
        active_parameters=float(layers * attention + active_blocks + embedding),
        embeddings=float(embeddings),
        layers=layers,
        hidden_size=hidden,
        attention_width=width * seen / layers,
        kv_bytes_per_token=kv_numbers * seen * _kv_bytes(model),
        bytes_per_weight=_quantised(model),
        expert_share=_expert_share(model),
    )


def bytes_per_weight(text: str) -> float | None:
    """Bytes of a weight by a format's name in a text (`fp8`, `w4a16`, `AWQ`, `Q4_K_M`, `4.5bpw`); `None` without any.

    A GGUF type of n bits takes half a bit more for its scales (Q8_0 8.5, Q4_0 4.5).
    """
    text = text.lower()
    if gguf := _GGUF.search(text):
        return (int(gguf[1]) + 0.5) / 8
    if told := _BITS_PER_WEIGHT.search(text):
        return float(told[1]) / 8 or None
    return next((width for words, width in _WIDTHS if words.search(text)), None)


def _language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, what stands only outside added."""
    for key in _NESTED:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            return {**config, **inner}
    return config


def _number(config: Mapping[str, Any], *keys: str) -> float | None:
    """The first of the keys that holds a number above 0 and within reason."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST and isfinite(value):
            return float(value)
    return None


def _whole(config: Mapping[str, Any], *keys: str) -> int:
    return int(_number(config, *keys) or 0)


def _attention(model: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, float, int]:
    """Of one layer: parameters, attention width, and numbers kept per token."""
    latent = _whole(model, "kv_lora_rank")
    if latent:
        return _latent_attention(model, hidden, heads, latent)
    head = _whole(model, "head_dim") or max(1, hidden // heads)
    kv_heads = _whole(model, "num_key_value_heads") or heads
    return 2 * hidden * heads * head + 2 * hidden * kv_heads * head, float(heads * head), 2 * kv_heads * head


def _latent_attention(model: Mapping[str, Any], hidden: int, heads: int, latent: int) -> tuple[int, float, int]:
    """Multi-head latent attention (DeepSeek-V2 on): a token keeps the latent and the rotary part of the key."""
    rotary, plain = _whole(model, "qk_rope_head_dim"), _whole(model, "qk_nope_head_dim")
    value, query_latent = _whole(model, "v_head_dim"), _whole(model, "q_lora_rank")
    queries = heads * (plain + rotary)
    query = hidden * query_latent + query_latent * queries if query_latent else hidden * queries
    key_value = hidden * (latent + rotary) + latent * heads * (plain + value)
    return query + key_value + heads * value * hidden, max(1, heads * (plain + rotary + value)) / 2, latent + rotary


def _feed_forward(model: Mapping[str, Any], hidden: int, layers: int) -> tuple[int, int] | None:
    """Parameters of all feed-forward blocks, and of those that work on one token; `None` if no width is told."""
    matrices = 2 if str(model.get("model_type")) in _UNGATED else 3
    inner = _whole(model, "intermediate_size")
    experts = _experts(model)
    if experts < 2:
        return (layers * matrices * hidden * inner,) * 2 if inner else None
    expert_inner = _whole(model, "moe_intermediate_size") or inner
    if not expert_inner:
        return None
    chosen = round(experts * _expert_share(model))
    mixed = _mixture_layers(model, layers)
    dense = (layers - mixed) * matrices * hidden * (_whole(model, "intermediate_size_mlp") or inner)
    expert = matrices * hidden * expert_inner
    always = mixed * (matrices * hidden * _shared_inner(model, expert_inner) + hidden * experts)
    return dense + always + mixed * experts * expert, dense + always + mixed * chosen * expert


def _experts(model: Mapping[str, Any]) -> int:
    return _whole(model, "num_experts", "num_local_experts", "n_routed_experts")


def _expert_share(model: Mapping[str, Any]) -> float:
    """Of its experts that a token takes; 1 without any."""
    experts = _experts(model)
    if experts < 2:
        return 1.0
    return min(experts, _whole(model, "num_experts_per_tok", "num_experts_per_token") or 1) / experts


def _shared_inner(model: Mapping[str, Any], expert_inner: int) -> int:
    """Width of the experts that every token passes."""
    told = _whole(model, "shared_expert_intermediate_size")
    if not told and str(model.get("model_type")).startswith("llama4"):
        return expert_inner
    return told or _whole(model, "n_shared_experts", "num_shared_experts") * expert_inner


def _mixture_layers(model: Mapping[str, Any], layers: int) -> int:
    """How many layers have experts: not the first ones that are replaced, and only every n-th where it says so."""
    every = _whole(model, "interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq") or 1
    first = min(layers, _whole(model, "first_k_dense_replace"))
    named = model.get("mlp_only_layers")
    dense = min(layers, len(named)) if isinstance(named, Sequence) and not isinstance(named, str) else 0
    return max(0, (layers - first) // every - dense)


def _layers_seen(model: Mapping[str, Any], layers: int) -> float:
    """Layers that read the whole context, those with a window in part (`WINDOW_CONTEXT_TOKENS`)."""
    window = _number(model, "sliding_window")
    share = 1.0 if window is None else min(1.0, window / WINDOW_CONTEXT_TOKENS)
    kinds = model.get("layer_types")
    if isinstance(kinds, Sequence) and not isinstance(kinds, str) and len(kinds) == layers:
        shares = {"sliding_attention": share, "linear_attention": 0.0}
        seen = sum(shares.get(kind, 1.0) if isinstance(kind, str) else 1.0 for kind in kinds)
        return seen or share
    if model.get("use_sliding_window") is False:
        return float(layers)
    every = _whole(model, "sliding_window_pattern")
    whole = layers // every if every else 0
    return whole + (layers - whole) * share


def _is_tied(model: Mapping[str, Any]) -> bool:
    told = model.get("tie_word_embeddings")
    return told if isinstance(told, bool) else str(model.get("model_type")).startswith(_TIED)


def _quantised(model: Mapping[str, Any]) -> float | None:
    """Bytes of a quantised weight. A model kept in 32 bits is served in 16, so `dtype` matters below 16 only."""
    scheme = model.get("quantization_config") or model.get("compression_config")
    if isinstance(scheme, Mapping):
        bits = _number(scheme, "bits", "w_bit") or _group_bits(scheme)
        if bits is not None:
            return min(bits, 32.0) / 8
        if scheme.get("load_in_4bit") is True:
            return 0.5
        if told := bytes_per_weight(f"{scheme.get('quant_algo')} {scheme.get('quant_method')} {scheme.get('format')}"):
            return told
        if scheme.get("load_in_8bit") is True:
            return 1.0
    dtype = bytes_per_weight(f"{model.get('dtype') or model.get('torch_dtype')}")
    return dtype if dtype is not None and dtype < 2.0 else None


def _group_bits(scheme: Mapping[str, Any]) -> float | None:
    """Bits of the first group of a `compressed-tensors` scheme."""
    groups = scheme.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and (bits := _number(weights, "num_bits")):
            return bits
    return None


def _kv_bytes(model: Mapping[str, Any]) -> float:
    scheme = model.get("quantization_config")
    if not isinstance(scheme, Mapping):
        return KV_BYTES_PER_NUMBER
    told = scheme.get("kv_cache_scheme")
    bits = _number(told, "num_bits") if isinstance(told, Mapping) else None
    if bits is not None:
        return min(bits, 32.0) / 8
    return bytes_per_weight(f"{scheme.get('kv_cache_quant_algo')}") or KV_BYTES_PER_NUMBER
