"""Options, device masks and words for what an engine was started with."""

import pytest

from jouled_collectors.engines import command_line, facts


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--size", "4"], "4"),
        (["--size=4"], "4"),
        (["--other", "1", "--size", "4", "--size=8"], "8"),
        (["-s", "4"], "4"),
        (["-s=4"], "4"),
        (["--si_ze", "4"], ""),
        (["--size"], ""),
        (["--size", "--other"], ""),
        (["--sizes", "4"], ""),
        ([], ""),
    ],
)
def test_an_option(argv: list[str], value: str) -> None:
    assert command_line.option(argv, "--size", "-s") == value


def test_underscores_are_dashes_in_long_names_alone() -> None:
    assert command_line.option(["--tensor_parallel_size", "4"], "--tensor-parallel-size") == "4"
    assert command_line.option(["--served-model-name", "a_b"], "--served-model-name") == "a_b"
    assert command_line.has_flag(["--enable_expert_parallel"], "--enable-expert-parallel")
    assert not command_line.has_flag(["enable_expert_parallel"], "enable-expert-parallel")


@pytest.mark.parametrize("text", ["", "0x4", "-1", "²", "1000000", "four"])
def test_what_is_no_size_is_one(text: str) -> None:
    assert command_line.size(["--tp", text], "--tp") == 1


def test_parallelism_names_what_is_above_one() -> None:
    assert facts.parallelism(dp=2, tp=4) == "dp2 tp4"
    assert facts.parallelism(dp=1, ep=8, pp=2, cp=2, tp=1) == "ep8 pp2 cp2"
    assert facts.parallelism() == ""


@pytest.mark.parametrize(
    ("dtype", "quantization", "precision"),
    [
        ("auto", "", ""),
        ("half", "", "float16"),
        ("torch.bfloat16", "none", "bfloat16"),
        ("bf16", "None", "bfloat16"),
        ("auto", "NVFP4", "nvfp4"),
        ("half", "awq", "awq"),
    ],
)
def test_precision(dtype: str, quantization: str, precision: str) -> None:
    assert facts.precision(dtype, quantization) == precision


@pytest.mark.parametrize(
    ("told", "connector"),
    [
        ("moriio", "mori"),
        ("MoRIIOConnector", "mori"),
        ("NIXL", "nixl"),
        ("mooncake", "mooncake"),
        ("HF3FSKVConnector", "hf3fskv"),
        ("null", ""),
        ("x" * 200, "x" * 100),
    ],
)
def test_connectors(told: str, connector: str) -> None:
    assert facts.kv_connector(told) == connector
