"""The exposition reader against pages, broken and whole, and against prometheus_client's parser."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from jouled_collectors.engines.exposition import MAXIMUM_COUNT, PageReader, Series, total

READER = PageReader("vllm", ("prompt_tokens", "generation_tokens", "steps_total_count", "num_requests_running"))


def values(page: bytes, name: str = "prompt_tokens") -> list[float]:
    return [series.value for series in READER.read(page)[name]]


@pytest.mark.parametrize(
    "line",
    [
        b"vllm:prompt_tokens_total 1234567",
        b"vllm:prompt_tokens 1234567",
        b"vllm_prompt_tokens_total 1234567.0",
        b"vllm_prompt_tokens 1.234567e+06",
        b"  \tvllm:prompt_tokens_total \t 1234567 \t",
        b'vllm:prompt_tokens_total{engine="0"} 1234567',
        b'vllm:prompt_tokens_total{engine="0",} 1234567',
        b'vllm:prompt_tokens_total {engine="0" , model_name = "m"}1234567',
        b"vllm:prompt_tokens_total 1234567 1795423132928",
        b"vllm:prompt_tokens_total 1234567 1795423132.928",
        b'vllm:prompt_tokens_total 1234567 # {trace_id="ab"} 1.0 1795423132.9',
        b'vllm:prompt_tokens_total{a="b"} 1234567 1795423132.928 # {trace_id="a } b"} 1.0',
        b"vllm:prompt_tokens_total 1234567\r",
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\n# EOF\n"])
def test_every_way_to_write_a_counter(line: bytes, end: bytes) -> None:
    assert values(b"# TYPE vllm:prompt_tokens_total counter\n" + line + end) == [1234567.0]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"plain", "plain"),
        (r"a\"b", 'a"b'),
        (r"a,b={c}", "a,b={c}"),
        (r"}", "}"),
        (r"a\\", "a\\"),
        (r"a\nb", "a\nb"),
        (r"a\\nb", r"a\nb"),
        (r"a\xb", r"a\xb"),
        (r",model_name=\"x", ',model_name="x'),
        ("grün", "grün"),
        ("", ""),
    ],
)
def test_label_values_are_unescaped(written: str, meant: str) -> None:
    page = f'vllm:prompt_tokens_total{{first="{written}",second="2"}} 7\n'.encode()
    assert READER.read(page)["prompt_tokens"] == [Series({"first": meant, "second": "2"}, 7.0)]


def test_a_quoted_label_name_is_read() -> None:
    page = b'vllm:prompt_tokens_total{"k8s.pod\\"name"="p"} 7\n'
    assert READER.read(page)["prompt_tokens"][0].labels == {'k8s.pod"name': "p"}


def test_only_wanted_names_are_taken() -> None:
    page = b"""# HELP vllm:prompt_tokens_total 99
vllm:prompt_tokens_created 1.79e+09
vllm:prompt_tokens_total_created 1.79e+09
vllm:prompt_tokens_cached_total 5
xvllm:prompt_tokens_total 6
other_vllm:prompt_tokens_total 6
vllm:steps_total_bucket{le="1.0"} 8
vllm:steps_total_count 137
vllm:steps_total_sum 594
vllm:steps_total 1
"""
    assert READER.read(page) == {"steps_total_count": [Series({}, 137.0)]}


def test_a_counter_wins_over_a_gauge_of_the_same_name() -> None:
    assert values(b"vllm:prompt_tokens 3\nvllm:prompt_tokens_total 9\n") == [9.0]


def test_of_equal_series_the_first_counts() -> None:
    page = b"""vllm:prompt_tokens_total{engine="0",model_name="m"} 5
vllm:prompt_tokens_total{engine="1",model_name="m"} 7
vllm:prompt_tokens_total{model_name="m",engine="0"} 50
"""
    assert values(page) == [5.0, 7.0]


def test_a_page_of_the_engine_may_lack_every_wanted_family() -> None:
    assert READER.read(b"# HELP vllm:kv_cache_usage_perc Use\nvllm:kv_cache_usage_perc 0\n") == {}
    assert READER.read(b"# TYPE vllm:lora_requests_info gauge\n") == {}


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"", "the page is empty"),
        (b" \r\n\n", "the page is empty"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"[]", "a JSON document"),
        (b"python_info 1\n", "no metric that begins with vllm:"),
        (b"\x00\xff\xfe", "no metric that begins with vllm:"),
        (b"# one\nvllm:prompt_tokens_total\t\n", r"line 2 of the page \(prompt_tokens\): not of the form"),
        (b"vllm:prompt_tokens_total one\n", r"line 1 .*: the value is no number"),
        (b"vllm:prompt_tokens_total 1_000\n", "not of the form"),
        (b"vllm:prompt_tokens_total 1 2 3\n", "not of the form"),
        (b'vllm:prompt_tokens_total{engine="0\n', "not of the form"),
        (b'vllm:prompt_tokens_total{engine="0"\n', "not of the form"),
        (b"vllm:prompt_tokens_total{engine=0} 1\n", "the labels cannot be read"),
        (b'vllm:prompt_tokens_total{engine="0";a="b"} 1\n', "the labels cannot be read"),
        (b'vllm:prompt_tokens_total{engine="\xff"} 1\n', "a label is not UTF-8"),
    ],
)
def test_what_is_no_page_is_refused_with_the_reason(page: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        READER.read(page)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, MAXIMUM_COUNT * 2.0])
def test_one_impossible_value_makes_the_sum_unknown(value: float) -> None:
    assert total([Series({}, value)]) is None
    assert total([Series({"engine": "0"}, 5.0), Series({"engine": "1"}, value)]) is None


def test_sums() -> None:
    assert total(None) is None
    assert total([]) is None
    assert total([Series({}, 0.0)]) == 0
    assert total([Series({"engine": "0"}, 1e6), Series({"engine": "1"}, 2.0)]) == 1_000_002


def test_nan_and_infinity_are_read_as_such() -> None:
    page = b'vllm:prompt_tokens_total{e="0"} NaN\nvllm:prompt_tokens_total{e="1"} +Inf\n'
    nan, infinite = values(page)
    assert math.isnan(nan)
    assert infinite == math.inf


PIECES = st.sampled_from(
    [
        b"vllm:",
        b"vllm_",
        b"prompt_tokens",
        b"_total",
        b"{",
        b"}",
        b'"',
        b"\\",
        b",",
        b"=",
        b"#",
        b" ",
        b"\n",
        b"\r",
        b"1",
        b"NaN",
    ]
)


@given(st.one_of(st.binary(max_size=200), st.lists(PIECES | st.binary(max_size=3), max_size=40).map(b"".join)))
def test_any_bytes_give_a_page_or_a_value_error(body: bytes) -> None:
    try:
        families = READER.read(body)
    except ValueError:
        return
    for series in families.values():
        count = total(series)
        assert count is None or 0 <= count <= MAXIMUM_COUNT


@pytest.mark.parametrize(
    "hostile", [b"{" * 200_000, b'{a="' + b"\\" * 200_001, b"{" + b'a="b",' * 50_000, b" " * 200_000]
)
def test_hostile_lines_take_no_more_than_one_pass(hostile: bytes) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        READER.read(b"vllm:prompt_tokens_total" + hostile + b"\n")


NAMES = st.sampled_from(["prompt_tokens_total", "generation_tokens_total", "steps_total_count", "num_requests_running"])
OTHER_NAMES = st.sampled_from(
    ["vllm:prompt_tokens_created", "vllm:prompt", "python_info", "vllm:num_requests_running_max"]
)
LABEL_NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=3)
LABELS = st.dictionaries(
    LABEL_NAMES, st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n"), max_size=8), max_size=3
)
VALUES = st.one_of(st.integers(0, 10**12), st.floats(allow_nan=False))
LINES = st.lists(
    st.tuples(NAMES.map("vllm:".__add__) | OTHER_NAMES, LABELS, VALUES, st.none() | st.integers(0, 10**13)), max_size=12
)


def written(name: str, labels: dict[str, str], value: float, time_stamp: int | None) -> str:
    escaped = {key: text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for key, text in labels.items()}
    block = ",".join(f'{key}="{text}"' for key, text in escaped.items())
    return f"{name}{{{block}}} {value!r}{'' if time_stamp is None else f' {time_stamp}'}\n"


@given(LINES)
def test_agrees_with_prometheus_client(lines: list[tuple[str, dict[str, str], float, int | None]]) -> None:
    unique = {
        (name, frozenset(labels.items())): (name, labels, value, at) for name, labels, value, at in reversed(lines)
    }
    page = "vllm:seen 1\n" + "".join(written(*line) for line in unique.values())
    theirs: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            theirs.setdefault(sample.name, []).append((sample.labels, sample.value))
    ours = READER.read(page.encode())
    for name in ("prompt_tokens_total", "generation_tokens_total", "steps_total_count", "num_requests_running"):
        mine = [(series.labels, series.value) for series in ours.get(name.removesuffix("_total"), [])]
        assert mine == theirs.get(f"vllm:{name}", [])
