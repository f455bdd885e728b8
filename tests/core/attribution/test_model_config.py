"""Sizes from a `config.json`: what shapes there are, and that no JSON breaks it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.core.attribution.model_config import bytes_per_weight, sizes_of

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
KEYS = [
    *LLAMA_8B,
    "head_dim",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "first_k_dense_replace",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "q_lora_rank",
    "sliding_window",
    "sliding_window_pattern",
    "layer_types",
    "mlp_only_layers",
    "quantization_config",
    "text_config",
]


def test_a_dense_model():
    sizes = sizes_of(LLAMA_8B)
    assert sizes.parameters == pytest.approx(8.03e9, rel=0.001)
    assert sizes.parameters - sizes.active_parameters == 128256 * 4096
    assert (sizes.layers, sizes.hidden_size, sizes.attention_width) == (32, 4096, 4096)
    assert sizes.kv_bytes_per_token == 131072
    assert sizes.bytes_per_weight is None
    assert sizes.weight_bytes(2.0) == 2 * sizes.parameters
    assert sizes.weight_bytes(0.5) == pytest.approx(5.6e9, rel=0.01)  # published AWQ files: 5.7 GB


def test_a_multimodal_model_is_its_language_model():
    outer = {"text_config": {k: v for k, v in LLAMA_8B.items() if k != "tie_word_embeddings"}, "vision_config": {}}
    assert sizes_of({**outer, "tie_word_embeddings": False}) == sizes_of(LLAMA_8B)
    tied = sizes_of({**outer, "tie_word_embeddings": True})
    assert tied.parameters == sizes_of(LLAMA_8B).parameters - 128256 * 4096


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "awq", "bits": 4}, 0.5),
        ({"quant_method": "gptq", "bits": 8}, 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, 0.5),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0),
        ({"quant_method": "mxfp4"}, 0.5),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 1.0),
        ({"quant_method": "something-new"}, None),
        ([], None),
    ],
)
def test_quantised_weights(scheme, width):
    assert sizes_of({**LLAMA_8B, "quantization_config": scheme}).bytes_per_weight == width


def test_a_model_kept_in_32_bits_is_served_in_16():
    assert sizes_of({**LLAMA_8B, "torch_dtype": "float32"}).bytes_per_weight is None
    assert sizes_of({**LLAMA_8B, "dtype": "float8_e4m3fn"}).bytes_per_weight == 1.0


@pytest.mark.parametrize("scheme", [{"kv_cache_scheme": {"num_bits": 8}}, {"kv_cache_quant_algo": "FP8"}])
def test_a_cache_of_8_bits(scheme):
    assert sizes_of({**LLAMA_8B, "quantization_config": scheme}).kv_bytes_per_token == 65536


def test_layers_with_a_window_count_in_part():
    whole = sizes_of(LLAMA_8B)
    kinds = ["sliding_attention", "full_attention"] * 16
    mixed = sizes_of({**LLAMA_8B, "sliding_window": 1024, "layer_types": kinds})
    assert mixed.kv_bytes_per_token == whole.kv_bytes_per_token * (16 + 16 / 4) / 32
    assert mixed.attention_width == whole.attention_width * 20 / 32
    assert sizes_of({**LLAMA_8B, "sliding_window": 1024, "use_sliding_window": False}) == whole
    assert sizes_of({**LLAMA_8B, "sliding_window": None}) == whole


def test_a_mixture_with_dense_layers_and_shared_experts():
    mixture = {
        **LLAMA_8B,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 1000,
        "n_shared_experts": 1,
        "first_k_dense_replace": 2,
    }
    dense, mixed = sizes_of(LLAMA_8B), sizes_of(mixture)
    expert = 3 * 4096 * 1000
    blocks = 2 * 3 * 4096 * 14336 + 30 * (9 * expert + 4096 * 8)
    assert mixed.parameters == dense.parameters - 32 * 3 * 4096 * 14336 + blocks
    assert mixed.parameters - mixed.active_parameters == 30 * 6 * expert + 128256 * 4096


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_what_is_needed_and_lacks_makes_it_absent(key):
    assert sizes_of({k: v for k, v in LLAMA_8B.items() if k != key}) is None
    assert sizes_of({**LLAMA_8B, key: "many"}) is None
    assert sizes_of({**LLAMA_8B, key: True}) is None
    assert sizes_of({**LLAMA_8B, key: float("nan")}) is None


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("fp8", 1.0),
        ("w8a8", 1.0),
        ("w4a16", 0.5),
        ("NVFP4", 0.5),
        ("Llama-AWQ", 0.5),
        ("x-GPTQ-Int8", 1.0),
        ("x-Q4_K_M.gguf", 4.5 / 8),
        ("x-Q8_0", 8.5 / 8),
        ("x-IQ3_XS", 3.5 / 8),
        ("x-4.0bpw-exl2", 0.5),
        ("bf16", 2.0),
        ("float32", 4.0),
        ("x-bnb-4bit", 0.5),
        ("", None),
        ("auto", None),
        ("Qwen3-8B", None),
        ("Phi-4", None),
    ],
)
def test_number_formats_in_names(text, width):
    assert bytes_per_weight(text) == width


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=6),
    max_leaves=12,
)


@given(json)
def test_no_json_breaks_it(config):
    sizes_of(config)


@given(st.dictionaries(st.sampled_from(KEYS), json, max_size=6))
def test_no_strange_value_in_a_good_file_breaks_it(odd):
    sizes = sizes_of({**LLAMA_8B, **odd})
    if sizes is not None:
        assert sizes.parameters >= sizes.active_parameters > 0
        assert sizes.attention_width > 0
        assert sizes.kv_bytes_per_token > 0
        assert sizes.weight_bytes(0.5) > 0


@given(
    st.sampled_from(["hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"]),
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_what_grows_makes_no_size_smaller(key, value, more, mixture):
    base = {**LLAMA_8B, "head_dim": 128}
    if mixture:
        base |= {"num_experts": 8, "num_experts_per_tok": 2}
    less, greater = sizes_of({**base, key: value}), sizes_of({**base, key: value + more})
    for name in ("parameters", "active_parameters", "layers", "hidden_size", "kv_bytes_per_token"):
        assert getattr(greater, name) >= getattr(less, name)


@given(st.text())
def test_no_name_breaks_the_format(text):
    width = bytes_per_weight(text)
    assert width is None or width > 0
