"""The priors: where their sizes come from, in which order, and how they follow the sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jouled.core.attribution.known_models import known_model
from jouled.core.attribution.priors import (
    JOULES_PER_BYTE,
    JOULES_PER_FLOP,
    betas,
    sizes_for,
    sizes_from_name,
    with_sizes,
)
from jouled.model.engine import Engine

LLAMA = known_model("Llama-3.1-8B")


def engine(model="", **sizes):
    return Engine(name="e", model=model, **sizes)


@pytest.mark.parametrize(
    ("told", "source", "knows"),
    [
        (engine("Llama-3.1-8B", parameters=9e9), "configuration", True),
        (engine("Llama-3.1-8B", weight_bytes=8e9), "configuration", True),
        (engine("x", active_parameters=3e9), "configuration", True),
        (with_sizes(engine("chat"), LLAMA, "config_file"), "config_file", True),
        (with_sizes(engine("chat", parameters=9e9), LLAMA, "config_file"), "configuration", True),
        (engine("chat", parameters=9e9, sizes_from="elsewhere"), "configuration", True),
        (engine("meta-llama/Llama-3.1-8B-Instruct"), "known_model", True),
        (engine("Llama-3.1-8B", kv_bytes_per_token=1000.0), "known_model", True),
        (engine("my-8B"), "name", False),
        (engine("chat"), "generic", False),
        (engine("chat", layers=40), "generic", False),
        (engine("chat", sizes_from="config_file"), "generic", False),
        (engine("chat", parameters=float("nan"), weight_bytes=-1.0), "generic", False),
    ],
)
def test_the_source_is_said(told, source, knows):
    assert (betas(told).source, betas(told).knows_architecture) == (source, knows)


def test_a_file_counts_before_the_table():
    other = LLAMA._replace(parameters=5e9, active_parameters=5e9, kv_bytes_per_token=7.0)
    sizes = sizes_for(with_sizes(engine("Llama-3.1-8B"), other, "config_file"))
    assert (sizes.parameters, sizes.kv_bytes_per_token, sizes.source) == (5e9, 7.0, "config_file")


def test_what_the_engine_tells_is_never_replaced():
    told = engine("Llama-3.1-8B", active_parameters=1e9, kv_bytes_per_token=5.0, hidden_size=64)
    filled = with_sizes(told, LLAMA, "config_file")
    assert (filled.active_parameters, filled.kv_bytes_per_token, filled.hidden_size) == (1e9, 5.0, 64)
    assert filled.layers is None  # layers and width are of one model
    assert filled.parameters == LLAMA.parameters


def test_the_weights_of_told_parameters_are_not_those_of_the_file():
    sizes = sizes_for(engine("Llama-3.1-8B", parameters=4e9))
    assert sizes.weight_bytes == 8e9


@pytest.mark.parametrize(
    ("told", "weight_bytes"),
    [
        (engine("Llama-3.1-8B"), 2 * 8.03e9),
        (engine("Llama-3.1-8B", precision="fp8"), 6.98e9 + 2.1e9),
        (engine("Llama-3.1-8B-FP8"), 6.98e9 + 2.1e9),
        (engine("Llama-3.1-8B-Instruct-Q4_K_M.gguf"), 6.98e9 * 0.5625 + 2.1e9),
        (engine("gpt-oss-120b"), 63e9),  # published: 60.8 GiB with 16 bit attention
        (engine("DeepSeek-V3"), 671e9),
        (engine("my-70B-w4a16"), 35e9),
    ],
)
def test_bytes_of_the_weights_follow_the_number_format(told, weight_bytes):
    assert betas(told).step == pytest.approx(JOULES_PER_BYTE * weight_bytes, rel=0.06)


def test_attention_is_as_wide_as_its_heads():
    wide = betas(engine("Qwen3-30B-A3B"))  # 32 heads of 128 on a hidden size of 2048
    assert wide.attention == pytest.approx(4 * 48 * 4096 * JOULES_PER_FLOP)
    assert betas(engine("x", layers=10, hidden_size=100)).attention == pytest.approx(4000 * JOULES_PER_FLOP)


@pytest.mark.parametrize(
    ("told", "is_mixture"),
    [
        (engine("Qwen3-30B-A3B"), True),
        (engine("Mixtral-8x7B"), True),
        (engine("gpt-oss-20b"), True),
        (engine("new-40B-A4B"), True),
        (engine("x", parameters=30e9, active_parameters=3e9), True),
        (engine("Llama-3.1-8B"), False),
        (engine("Qwen2.5-7B"), False),  # its embedding table is 7 % of it
        (engine("my-8B"), False),
        (engine("chat"), False),
    ],
)
def test_mixtures_are_known_as_such(told, is_mixture):
    assert betas(told).is_mixture is is_mixture


def test_a_mixture_reads_all_its_weights_each_step():
    assert betas(engine("Mixtral-8x7B")).step == pytest.approx(JOULES_PER_BYTE * 2 * 46.7e9, rel=0.01)


maybe = st.none() | st.floats()
engines = st.builds(
    engine,
    st.text() | st.sampled_from(["Llama-3.1-8B", "x-0B", "y-30B-A3B", "8x7b"]),
    parameters=maybe,
    active_parameters=maybe,
    weight_bytes=maybe,
    attention_width=maybe,
    kv_bytes_per_token=maybe,
    layers=st.none() | st.integers(-5, 10**6),
    hidden_size=st.none() | st.integers(-5, 10**6),
    precision=st.text(),
    sizes_from=st.text(),
)


@given(engines)
def test_whatever_an_engine_tells_there_are_priors(told):
    assert all(value > 0 for value in betas(told)[:5])


@given(st.text() | st.from_regex(r"[0-9.]{0,400}x?[0-9.]{0,400}[bm](-a[0-9]{1,20}b)?", fullmatch=True))
def test_no_name_breaks_the_sizes(name):
    sizes = sizes_from_name(name)
    assert sizes is None or 0 < sizes[1] <= sizes[0] < float("inf")


@given(
    st.sampled_from(["parameters", "active_parameters", "weight_bytes", "kv_bytes_per_token", "attention_width"]),
    st.floats(1e3, 1e13),
    st.floats(1.0, 100.0),
    st.sampled_from(["", "my-8B", "Llama-3.1-8B", "Mixtral-8x7B"]),
)
def test_a_greater_size_makes_no_prior_smaller(field, size, factor, model):
    less, greater = betas(engine(model, **{field: size})), betas(engine(model, **{field: size * factor}))
    assert all(after >= before for before, after in zip(less[:5], greater[:5], strict=True))


@given(st.floats(0.1, 9999.0), st.floats(1.0, 10.0))
def test_a_greater_name_makes_no_prior_smaller(billions, factor):
    less, greater = betas(engine(f"x-{billions:.3f}B")), betas(engine(f"x-{billions * factor:.3f}B"))
    assert all(after >= before for before, after in zip(less[:5], greater[:5], strict=True))


def test_filling_in_twice_changes_nothing():
    once = with_sizes(engine("chat"), LLAMA, "config_file")
    assert with_sizes(once, LLAMA._replace(parameters=1.0), "known_model") == once
    assert replace(once, sizes_from="") != once


@pytest.mark.parametrize(
    ("told", "share"),
    [
        (engine("Llama-3.1-8B"), 1.0),
        (engine("Qwen3-30B-A3B"), 8 / 128),
        (engine("openai/gpt-oss-120b"), 4 / 128),
        (engine("mistralai/Mixtral-8x7B-Instruct-v0.1"), 2 / 8),
        (engine("house-8x22B"), 2 / 8),
        (engine("house-30B-A1B"), 0.65 / 30),
        (engine("house-30B-A10B"), 1 / 32),
        (engine("house-30B-A10B", expert_share=0.2), 0.2),
        (engine("house-30B-A10B", expert_share=7.0), 1 / 32),
        (engine("house", parameters=30e9, active_parameters=29e9), 1.0),
        (engine("house", parameters=1e9, active_parameters=3e9), 1.0),
    ],
)
def test_the_share_of_experts_is_told_known_or_guessed(told, share):
    assert betas(told).expert_share == pytest.approx(share)
    assert betas(told).is_mixture == (share < 1.0)


def test_a_dense_step_reads_all_weights_whatever_it_carries():
    assert betas(engine("Llama-3.1-8B")).weight_reads(10.0, 10_000.0) == 10.0


def test_a_mixtures_step_of_one_token_reads_what_is_active_and_a_full_one_nearly_all():
    prior = betas(engine(parameters=32e9, active_parameters=3e9, expert_share=1 / 16))
    assert prior.weight_reads(10.0, 10.0) == pytest.approx(10.0 * 3 / 32)
    assert prior.weight_reads(1.0, 2048.0) == pytest.approx(1.0)
    assert prior.weight_reads(0.0, 0.0) == 0.0


@given(st.floats(0.01, 1e4), st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_more_tokens_read_no_fewer_weights(steps, tokens, more):
    prior = betas(engine("Qwen3-30B-A3B"))
    few, many = prior.weight_reads(steps, tokens), prior.weight_reads(steps, tokens + more)
    assert 0.0 < few <= many <= steps * (1 + 1e-12)
