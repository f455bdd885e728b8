"""What holds of every collector and every page that an engine printed: cut, mixed up, enormous."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import EngineCollector, EnginePage, LatencyCollector
from jouled_collectors.engines.dynamo import DynamoCollector
from jouled_collectors.engines.dynamo_frontend import DynamoFrontendCollector
from jouled_collectors.engines.llama_cpp import LlamaCppCollector
from jouled_collectors.engines.lmdeploy import LmdeployCollector
from jouled_collectors.engines.nim import NimCollector
from jouled_collectors.engines.sglang import SglangCollector
from jouled_collectors.engines.tensorrt_llm import TensorRtLlmCollector
from jouled_collectors.engines.tgi import TgiCollector
from jouled_collectors.engines.triton import TritonCollector
from jouled_collectors.engines.vllm import VllmCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
COLLECTORS: dict[str, EngineCollector] = {
    "vllm": VllmCollector(),
    "sglang": SglangCollector(),
    "tensorrt": TensorRtLlmCollector(),
    "nim": NimCollector(),
    "triton": TritonCollector(),
    "lmdeploy": LmdeployCollector(),
    "tgi": TgiCollector(),
    "llama-server": LlamaCppCollector(),
    "dynamo-1.6.1-frontend": DynamoFrontendCollector(),
    "dynamo-1.6.1-prefill": DynamoCollector(),
    "dynamo-1.6.1-decode": DynamoCollector(),
}
PAGES = [
    (collector, path.read_bytes()) for name, collector in COLLECTORS.items() for path in FIXTURES.glob(f"{name}*.prom")
]
COUNTS = ("prompt_tokens", "cached_prompt_tokens", "generation_tokens", "requests_running", "requests_waiting")
pages = st.sampled_from(PAGES)


def counts(page: EnginePage) -> dict[str, int | None]:
    return {name: getattr(page, name) for name in COUNTS}


@given(pages, st.data())
def test_a_page_that_breaks_off_tells_less_or_nothing(page: tuple[EngineCollector, bytes], data: st.DataObject) -> None:
    """Parts of a sum may be missing then: that the whole answer came is for HTTP to say."""
    collector, body = page
    try:
        read = collector.page(body[: data.draw(st.integers(0, len(body)))])
    except ValueError:
        return
    whole = counts(collector.page(body))
    if read.semantics == collector.page(body).semantics:
        for name, count in counts(read).items():
            assert count is None or whole[name] is None or count <= whole[name]


@given(pages, st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(page: tuple[EngineCollector, bytes], random: Random) -> None:
    collector, body = page
    lines = [line for line in body.splitlines() if not line.startswith(b"#")]
    random.shuffle(lines)
    assert counts(collector.page(b"\n".join(lines) + b"\n")) == counts(collector.page(body))


@given(pages, st.data())
def test_a_broken_byte_is_a_page_or_a_value_error(page: tuple[EngineCollector, bytes], data: st.DataObject) -> None:
    collector, body = page
    broken = bytearray(body)
    broken[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = collector.page(bytes(broken))
        if isinstance(collector, LatencyCollector):
            collector.latencies(bytes(broken), {"ttft", "tpot", "e2el"})
    except ValueError:
        return
    for count in counts(read).values():
        assert count is None or count >= 0


@pytest.mark.parametrize("filler", [b'vllm:other{a="b"} 1\n', b'\n# HELP x y\nother_total{le="+Inf"} 2', b"{", b'"'])
@pytest.mark.parametrize("name", list(COLLECTORS))
def test_five_megabytes_of_something_else_change_nothing(name: str, filler: bytes) -> None:
    collector, body = next((collector, body) for collector, body in PAGES if collector is COLLECTORS[name])
    padded = body + filler * (5_000_000 // len(filler)) + b"\n"
    if name == "nim" and filler.startswith(b"vllm:"):
        assert counts(collector.page(padded)) == dict.fromkeys(COUNTS)  # that is vLLM's page then
        return
    assert counts(collector.page(padded)) == counts(collector.page(body))
