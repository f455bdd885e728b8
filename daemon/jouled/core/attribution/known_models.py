"""Widely served models, as their `config.json` files describe them: for engines whose file is not at hand."""

import re
from collections.abc import Mapping
from typing import Any

from jouled.core.attribution.model_config import ModelSizes, bytes_per_weight, sizes_of


def known_model(name: str) -> ModelSizes | None:
    """Sizes of a model in the table, by its name as an engine serves it; `None` if it is not there.

    A number format in the name (`-AWQ`, `-FP8`, `Q4_K_M`) counts before the one that the model was published in.
    """
    config = _BY_KEY.get(model_key(name))
    sizes = sizes_of(config) if config is not None else None
    if sizes is None:
        return None
    return sizes._replace(bytes_per_weight=bytes_per_weight(name) or sizes.bytes_per_weight)


def model_key(name: str) -> str:
    """A model's name without organisation, case, separators, number format, training stage and date.

    `meta-llama/Meta-Llama-3.1-8B-Instruct-AWQ-INT4` and `llama3.1:8b` become `llama3.18b`.
    """
    last = name.strip().rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    last = _GGUF_TYPE.sub("", last)
    parts = [part for part in re.split(r"[-_:\s]+", last) if part]
    while len(parts) > 1 and _SUFFIX.fullmatch(parts[-1]):
        parts.pop()
    if len(parts) > 1 and parts[0] in {"meta", "unsloth"}:
        parts = parts[1:]
    return "".join(parts)


_GGUF_TYPE = re.compile(r"[-_.:](ud-)?i?q[1-8](_[a-z\d]+)*$")
_SUFFIX = re.compile(
    r"instruct|it|chat|base|hf|latest|thinking|preview|"
    r"fp8|fp4|nvfp4|mxfp4|int4|int8|w4a16|w8a8|w8a16|bf16|fp16|f16|[48]bit|nf4|bnb|awq|gptq|gguf|qat|mlx|"
    r"\d+(\.\d+)?bpw|dynamic|block|kv|quantized(\.w\d+a\d+)?|marlin|autoround|"
    r"v0\.\d|2\d(0[1-9]|1[0-2])|0[1-9][0-3]\d|\d+k"
)
"""What may follow a name without changing the architecture; `2507` and `0528` are dates."""


def _dense(
    hidden: int, layers: int, inner: int, heads: int, kv_heads: int, vocabulary: int, **more: object
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


def _mixture(experts: int, chosen: int, expert_inner: int, model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **model,
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": expert_inner,
    }


_TIED = {"tie_word_embeddings": True}
_FP8 = {"quantization_config": {"quant_method": "fp8"}}
_LLAMA_8B = _dense(4096, 32, 14336, 32, 8, 128256)
_LLAMA_70B = _dense(8192, 80, 28672, 64, 8, 128256)
_LLAMA_4 = {"head_dim": 128, "model_type": "llama4_text", "intermediate_size_mlp": 16384}
_QWEN_2_5_7B = _dense(3584, 28, 18944, 28, 4, 152064)
_QWEN_2_5_14B = _dense(5120, 48, 13824, 40, 8, 152064)
_QWEN_2_5_32B = _dense(5120, 64, 27648, 40, 8, 152064)
_QWEN_2_5_72B = _dense(8192, 80, 29568, 64, 8, 152064)
_QWEN_3_8B = _dense(4096, 36, 12288, 32, 8, 151936, head_dim=128)
_QWEN_3_30B = _mixture(128, 8, 768, _dense(2048, 48, 6144, 32, 4, 151936, head_dim=128))
_MISTRAL_7B = _dense(4096, 32, 14336, 32, 8, 32768)
_MISTRAL_SMALL = _dense(5120, 40, 32768, 32, 8, 131072, head_dim=128)
_LATENT = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_shared_experts": 1,
}
_DEEPSEEK_V3 = _mixture(
    256,
    8,
    2048,
    _dense(7168, 61, 18432, 128, 128, 129280, **_LATENT, **_FP8, q_lora_rank=1536, first_k_dense_replace=3),
)
_KIMI_K2 = _mixture(
    384,
    8,
    2048,
    _dense(7168, 61, 18432, 64, 64, 163840, **_LATENT, **_FP8, q_lora_rank=1536, first_k_dense_replace=1),
)
_DEEPSEEK_V2_LITE = _mixture(
    64, 6, 1408, _dense(2048, 27, 10944, 16, 16, 102400, **{**_LATENT, "n_shared_experts": 2}, first_k_dense_replace=1)
)
_GEMMA_2 = {**_TIED, "head_dim": 256}
_GEMMA_3 = {**_GEMMA_2, "sliding_window": 1024, "sliding_window_pattern": 6}
_GLM_4_5 = _mixture(
    160, 8, 1536, _dense(5120, 92, 12288, 96, 8, 151552, head_dim=128, n_shared_experts=1, first_k_dense_replace=3)
)
_PHI_4 = _dense(5120, 40, 17920, 40, 10, 100352)


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    model = _dense(2880, layers, 2880, 64, 8, 201088, head_dim=64, sliding_window=128, sliding_window_pattern=2)
    return _mixture(experts, 4, 2880, {**model, "quantization_config": {"quant_method": "mxfp4"}})


KNOWN_MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7B": _dense(4096, 32, 11008, 32, 32, 32000),
    "Llama-2-13B": _dense(5120, 40, 13824, 40, 40, 32000),
    "Llama-2-70B": _dense(8192, 80, 28672, 64, 8, 32000),
    "Llama-3-8B": _LLAMA_8B,
    "Llama-3-70B": _LLAMA_70B,
    "Llama-3.1-8B": _LLAMA_8B,
    "Llama-3.1-70B": _LLAMA_70B,
    "Llama-3.1-405B": _dense(16384, 126, 53248, 128, 8, 128256),
    "Llama-3.2-1B": _dense(2048, 16, 8192, 32, 8, 128256, **_TIED),
    "Llama-3.2-3B": _dense(3072, 28, 8192, 24, 8, 128256, **_TIED),
    "Llama-3.3-70B": _LLAMA_70B,
    "Llama-4-Scout-17B-16E": _mixture(16, 1, 8192, _dense(5120, 48, 8192, 40, 8, 202048, **_LLAMA_4)),
    "Llama-4-Maverick-17B-128E": _mixture(
        128, 1, 8192, _dense(5120, 48, 8192, 40, 8, 202048, **_LLAMA_4, interleave_moe_layer_step=2)
    ),
    "TinyLlama-1.1B": _dense(2048, 22, 5632, 32, 4, 32000),
    "DeepSeek-R1-Distill-Llama-8B": _LLAMA_8B,
    "DeepSeek-R1-Distill-Llama-70B": _LLAMA_70B,
    "DeepSeek-R1-Distill-Qwen-7B": _QWEN_2_5_7B,
    "DeepSeek-R1-Distill-Qwen-14B": _QWEN_2_5_14B,
    "DeepSeek-R1-Distill-Qwen-32B": _QWEN_2_5_32B,
    "DeepSeek-R1-0528-Qwen3-8B": _QWEN_3_8B,
    "DeepSeek-V2-Lite": _DEEPSEEK_V2_LITE,
    "DeepSeek-V3": _DEEPSEEK_V3,
    "DeepSeek-V3.1": _DEEPSEEK_V3,
    "DeepSeek-R1": _DEEPSEEK_V3,
    "Kimi-K2": _KIMI_K2,
    "Qwen2-7B": _QWEN_2_5_7B,
    "Qwen2-72B": _QWEN_2_5_72B,
    "Qwen2.5-0.5B": _dense(896, 24, 4864, 14, 2, 151936, **_TIED),
    "Qwen2.5-1.5B": _dense(1536, 28, 8960, 12, 2, 151936, **_TIED),
    "Qwen2.5-3B": _dense(2048, 36, 11008, 16, 2, 151936, **_TIED),
    "Qwen2.5-7B": _QWEN_2_5_7B,
    "Qwen2.5-14B": _QWEN_2_5_14B,
    "Qwen2.5-32B": _QWEN_2_5_32B,
    "Qwen2.5-72B": _QWEN_2_5_72B,
    "Qwen2.5-Coder-7B": _QWEN_2_5_7B,
    "Qwen2.5-Coder-14B": _QWEN_2_5_14B,
    "Qwen2.5-Coder-32B": _QWEN_2_5_32B,
    "QwQ-32B": _QWEN_2_5_32B,
    "Qwen3-0.6B": _dense(1024, 28, 3072, 16, 8, 151936, head_dim=128, **_TIED),
    "Qwen3-1.7B": _dense(2048, 28, 6144, 16, 8, 151936, head_dim=128, **_TIED),
    "Qwen3-4B": _dense(2560, 36, 9728, 32, 8, 151936, head_dim=128, **_TIED),
    "Qwen3-8B": _QWEN_3_8B,
    "Qwen3-14B": _dense(5120, 40, 17408, 40, 8, 151936, head_dim=128),
    "Qwen3-32B": _dense(5120, 64, 25600, 64, 8, 151936, head_dim=128),
    "Qwen3-30B-A3B": _QWEN_3_30B,
    "Qwen3-Coder-30B-A3B": _QWEN_3_30B,
    "Qwen3-235B-A22B": _mixture(128, 8, 1536, _dense(4096, 94, 12288, 64, 4, 151936, head_dim=128)),
    "Qwen3-Coder-480B-A35B": _mixture(160, 8, 2560, _dense(6144, 62, 8192, 96, 8, 151936, head_dim=128)),
    "Mistral-7B": _MISTRAL_7B,
    "Mistral-Nemo": _dense(5120, 40, 14336, 32, 8, 131072, head_dim=128),
    "Ministral-8B": _dense(4096, 36, 12288, 32, 8, 131072, head_dim=128),
    "Mistral-Small-24B": _MISTRAL_SMALL,
    "Mistral-Small-3.1-24B": _MISTRAL_SMALL,
    "Mistral-Small-3.2-24B": _MISTRAL_SMALL,
    "Mistral-Large": _dense(12288, 88, 28672, 96, 8, 32768),
    "Codestral-22B": _dense(6144, 56, 16384, 48, 8, 32768),
    "Mixtral-8x7B": _mixture(8, 2, 14336, _dense(4096, 32, 14336, 32, 8, 32000)),
    "Mixtral-8x22B": _mixture(8, 2, 16384, _dense(6144, 56, 16384, 48, 8, 32768)),
    "Gemma-2-2B": _dense(2304, 26, 9216, 8, 4, 256000, **_GEMMA_2),
    "Gemma-2-9B": _dense(3584, 42, 14336, 16, 8, 256000, **_GEMMA_2),
    "Gemma-2-27B": _dense(4608, 46, 36864, 32, 16, 256000, **{**_GEMMA_2, "head_dim": 128}),
    "Gemma-3-1B": _dense(1152, 26, 6912, 4, 1, 262144, **{**_GEMMA_3, "sliding_window": 512}),
    "Gemma-3-4B": _dense(2560, 34, 10240, 8, 4, 262208, **_GEMMA_3),
    "Gemma-3-12B": _dense(3840, 48, 15360, 16, 8, 262208, **_GEMMA_3),
    "Gemma-3-27B": _dense(5376, 62, 21504, 32, 16, 262208, **{**_GEMMA_3, "head_dim": 128}),
    "Phi-3-mini": _dense(3072, 32, 8192, 32, 32, 32064),
    "Phi-3.5-mini": _dense(3072, 32, 8192, 32, 32, 32064),
    "Phi-3-medium": _dense(5120, 40, 17920, 40, 10, 32064),
    "Phi-3.5-MoE": _mixture(16, 2, 6400, _dense(4096, 32, 6400, 32, 8, 32064)),
    "Phi-4": _PHI_4,
    "Phi-4-reasoning": _PHI_4,
    "Phi-4-mini": _dense(3072, 32, 8192, 24, 8, 200064, **_TIED),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "GLM-4-9B": _dense(4096, 40, 13696, 32, 2, 151552),
    "GLM-4-32B": _dense(6144, 61, 23040, 48, 2, 151552, head_dim=128),
    "GLM-4.5": _GLM_4_5,
    "GLM-4.6": _GLM_4_5,
    "GLM-4.5-Air": _mixture(
        128, 8, 1408, _dense(4096, 46, 10944, 96, 8, 151552, head_dim=128, n_shared_experts=1, first_k_dense_replace=1)
    ),
    "MiniMax-M2": _mixture(256, 8, 1536, _dense(3072, 62, 1536, 48, 8, 200064, head_dim=128)),
    "Command-R": _dense(8192, 40, 22528, 64, 64, 256000, **_TIED),
    "Yi-34B": _dense(7168, 60, 20480, 56, 8, 64000),
    "SmolLM2-135M": _dense(576, 30, 1536, 9, 3, 49152, **_TIED),
    "SmolLM2-1.7B": _dense(2048, 24, 8192, 32, 32, 49152, **_TIED),
}
"""By published name; the sizes of each are held against the published totals in the tests."""

_BY_KEY = {model_key(name): config for name, config in KNOWN_MODELS.items()}
