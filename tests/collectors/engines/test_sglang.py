"""The SGLang collector on pages that SGLang's own collectors printed (0.5.23, and 0.5.5 without live tokens)."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jouled.api import EngineCollector, EngineFacts, EnginePage, FactsCollector, LatencyCollector
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines.sglang import SglangCollector

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
SGLANG = SglangCollector()
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
LIVE = CounterSemantics(prompt="computed", prompt_at="step", generation="without_first", generation_at="step")
AT_FINISH = CounterSemantics(prompt="total", prompt_at="finish", generation="all", generation_at="finish")


def fixture(name: str) -> bytes:
    return (FIXTURES / f"sglang-{name}.prom").read_bytes()


def test_is_a_collector_of_everything() -> None:
    collector: EngineCollector = SGLANG
    assert (collector.name, collector.page_path, collector.version_path) == ("sglang", "/metrics", "/server_info")
    assert collector.semantics == LIVE
    assert isinstance(SGLANG, LatencyCollector)
    assert isinstance(SGLANG, FactsCollector)


def test_replicas_are_added_up_and_ranks_of_one_replica_are_not() -> None:
    """Replica 0 tells (1200, 240, 70) from four ranks, replica 1 (500, 0, 9) from one."""
    assert replace(SGLANG.page(fixture("0.5.23-ranks")), forward_seconds={}) == EnginePage(
        model=MODEL,
        semantics=LIVE,
        prompt_tokens=1700,
        cached_prompt_tokens=240,
        generation_tokens=79,
        requests_running=4,
        requests_waiting=5,
    )


def test_a_prefill_server_has_prompts_and_a_decode_server_tokens() -> None:
    prefill, decode = SGLANG.page(fixture("0.5.23-prefill")), SGLANG.page(fixture("0.5.23-decode"))
    assert (prefill.facts.role, decode.facts.role) == ("prefill", "decode")
    assert (prefill.prompt_tokens, prefill.generation_tokens) == (760, 0)
    assert (decode.prompt_tokens, decode.generation_tokens) == (0, 40)
    # 1 in the queue, 2 that find each other, 4 whose cache is being sent; and 3 for whom room is made, 2 being sent.
    assert (prefill.requests_waiting, decode.requests_waiting) == (7, 5)


def test_before_the_first_token_the_live_counts_are_zero() -> None:
    assert SGLANG.page(fixture("0.5.23-start")) == EnginePage(
        model=MODEL, semantics=LIVE, prompt_tokens=0, cached_prompt_tokens=0, generation_tokens=0
    )


def test_a_release_without_live_tokens_tells_them_at_the_end_of_requests() -> None:
    assert SGLANG.page(fixture("0.5.5-at-finish")) == EnginePage(
        model=MODEL,
        semantics=AT_FINISH,
        prompt_tokens=1300,
        cached_prompt_tokens=240,
        generation_tokens=42,
        requests_running=3,
        requests_waiting=3,
    )


def test_without_any_tokens_nothing_is_said_of_them() -> None:
    page = SGLANG.page(b'sglang:num_running_reqs{model_name="m"} 2\n')
    assert page == EnginePage(model="m", requests_running=2)


def test_what_has_no_rank_is_one_scheduler() -> None:
    page = b"""sglang:realtime_tokens_total{mode="decode"} 5
sglang:realtime_tokens_total{mode="decode",tp_rank="x",region="b"} 6
sglang:num_queue_reqs 3
sglang:num_prefill_infight_queue_reqs 4
"""
    read = SGLANG.page(page)
    assert (read.generation_tokens, read.requests_waiting) == (11, 7)


def test_priorities_are_parts_of_the_sum() -> None:
    page = b"""sglang:num_running_reqs{priority=""} 5
sglang:num_running_reqs{priority="1"} 2
sglang:num_running_reqs{priority="None"} 3
"""
    assert SGLANG.page(page).requests_running == 5


def test_one_count_that_cannot_be_makes_its_sum_unknown() -> None:
    page = SGLANG.page(b"""sglang:realtime_tokens_total{mode="decode",dp_rank="0"} NaN
sglang:realtime_tokens_total{mode="decode",dp_rank="1"} 6
sglang:realtime_tokens_total{mode="prefill_compute"} 7
sglang:num_queue_reqs 3
sglang:num_decode_transfer_queue_reqs -1
""")
    assert (page.generation_tokens, page.prompt_tokens, page.requests_waiting) == (None, 7, None)


def test_its_timer_tells_seconds_by_kind_of_step_of_one_rank_of_each_replica() -> None:
    body = fixture("0.5.23-ranks")
    told = {
        (dp, tp, category): float(value)
        for category, dp, tp, value in re.findall(
            rb'\nsglang:forward_execution_seconds_total\{category="(\w+)",dp_rank="(\d)".*?tp_rank="(\d)"\} (\S+)', body
        )
    }
    lowest = {dp: min(tp for of, tp, _ in told if of == dp) for dp in (b"0", b"1")}
    first = {name: sum(told[dp, tp, name] for dp, tp in lowest.items()) for name in (b"extend", b"decode")}
    assert SGLANG.page(body).forward_seconds == {name.decode(): seconds for name, seconds in first.items()}
    assert len(told) > 4
    broken = re.sub(rb'(\nsglang:forward_execution_seconds_total\{category="decode".*?) \S+', rb"\1 NaN", body)
    assert set(SGLANG.page(broken).forward_seconds) == {"extend"}
    assert SGLANG.page(fixture("0.5.5-at-finish")).forward_seconds == {}


@pytest.mark.parametrize("told", ["dynamic", "unified", "DECODE", ""])
def test_other_types_of_engine_are_no_role(told: str) -> None:
    """Releases up to 0.5.5 call every server `unified`."""
    page = f'sglang:num_running_reqs{{engine_type="{told}"}} 1\n'.encode()
    assert SGLANG.page(page).facts.role == ""


def test_a_page_with_two_roles_has_none() -> None:
    page = b'sglang:num_running_reqs{engine_type="prefill"} 1\nsglang:num_queue_reqs{engine_type="decode"} 1\n'
    assert SGLANG.page(page).facts.role == ""


def test_latencies_of_streams_and_others_are_added_up() -> None:
    read = SGLANG.latencies(fixture("0.5.23-ranks"), {"ttft", "tpot", "e2el"})
    assert {name: histogram.counts[-1] for name, histogram in read.items()} == {"ttft": 2, "tpot": 1, "e2el": 2}
    assert read["ttft"].bounds_seconds[0] == 0.1
    assert SGLANG.latencies(fixture("0.5.5-at-finish"), {"tpot", "e2el"}).keys() == {"e2el"}


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric that begins with sglang:"):
        SGLANG.page(b"vllm:prompt_tokens_total 1\n")
    with pytest.raises(ValueError, match="a JSON document"):
        SGLANG.page(b'{"detail":"Not Found"}')


def test_version() -> None:
    assert SGLANG.version(b'{"model_path": "m", "internal_states": [{}], "version": "0.5.23"}') == "0.5.23"
    with pytest.raises(ValueError, match="missing required field"):
        SGLANG.version(b'{"detail": "Not Found"}')


@pytest.mark.parametrize(
    "argv",
    [
        ["python3", "-m", "sglang.launch_server", "--model-path", "m"],
        ["/opt/venv/bin/python", "/opt/venv/lib/python3.12/site-packages/sglang/launch_server.py", "--model-path", "m"],
        ["/opt/venv/bin/python3", "/opt/venv/bin/sglang", "serve", "m"],
        ["sglang", "serve", "--model-path", "m", "--node-rank", "0"],
    ],
)
def test_servers_are_recognised(argv: list[str]) -> None:
    assert SGLANG.recognises(argv, "python3")
    assert not SGLANG.recognises(argv, "sglang::schedul")
    assert not SGLANG.recognises([*argv, "--node-rank", "1"], "python3")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["sglang::scheduler_DP0_TP1"],
        ["sglang"],
        ["sglang", "generate", "serve"],
        ["python3", "-m", "sglang_router.launch_router"],
        ["python3", "-m", "sglang.bench_serving"],
        ["python3", "-c", "from multiprocessing.spawn import spawn_main"],
        ["python3", "-m", "sglang"],
    ],
)
def test_other_processes_are_not(argv: list[str]) -> None:
    assert not SGLANG.recognises(argv, "python3")


def test_port() -> None:
    assert SGLANG.port(["sglang", "serve", "m"]) == 30000
    assert SGLANG.port(["sglang", "serve", "m", "--port", "8080"]) == 8080


def test_facts_of_a_plain_server() -> None:
    assert SGLANG.facts(["sglang", "serve", "m"], {}) == EngineFacts(model="m", role="unified")
    assert SGLANG.facts([], {}) == EngineFacts(role="unified")


def test_facts_of_a_server_with_everything() -> None:
    argv = [
        *("python3", "-m", "sglang.launch_server", "--model-path", "/models/m", "--served-model-name", "m"),
        *("--dtype", "half", "--quantization", "fp8", "--tp", "8", "--dp-size", "4", "--pipeline-parallel-size=2"),
        *("--ep", "8", "--attn-cp-size", "2", "--disaggregation-mode", "decode"),
        *("--disaggregation-transfer-backend", "mori", "--speculative-algorithm", "EAGLE3"),
    ]
    assert SGLANG.facts(argv, {"HIP_VISIBLE_DEVICES": "0,1"}) == EngineFacts(
        model="m",
        role="decode",
        precision="fp8",
        parallelism="dp4 ep8 pp2 cp2 tp8",
        kv_connector="mori",
        speculation="eagle3",
    )


def test_mooncake_carries_the_cache_where_nothing_is_chosen() -> None:
    argv = ["sglang", "serve", "m", "--disaggregation-mode", "prefill"]
    assert (SGLANG.facts(argv, {}).role, SGLANG.facts(argv, {}).kv_connector) == ("prefill", "mooncake")


PIECES = st.sampled_from(
    [
        b"\nsglang:realtime_tokens_total",
        b"\nsglang_num_queue_reqs",
        b"\nsglang:prompt_tokens_total",
        b'{mode="decode"}',
        b'{dp_rank="1",tp_rank="0",mode="prefill_cache"}',
        b'{priority="1"}',
        b" 5",
        b" NaN",
        b" 1e15",
        b"{",
        b'"',
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=30).map(b"".join))
def test_any_bytes_give_a_page_or_a_value_error(body: bytes) -> None:
    try:
        page = SGLANG.page(body)
    except ValueError:
        return
    for count in (page.prompt_tokens, page.cached_prompt_tokens, page.generation_tokens, page.requests_waiting):
        assert count is None or count >= 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 3), st.integers(0, 10**9)),
        min_size=1,
        max_size=20,
        unique_by=lambda rank: rank[:3],
    )
)
def test_a_replica_counts_once_however_many_ranks_tell(ranks: list[tuple[int, int, int, int]]) -> None:
    lines = [
        f'sglang:realtime_tokens_total{{mode="decode",dp_rank="{dp}",tp_rank="{tp}",pp_rank="{pp}"}} {tokens}\n'
        for dp, tp, pp, tokens in ranks
    ]
    first = {dp: min((pp, tp, tokens) for d, tp, pp, tokens in ranks if d == dp)[2] for dp, *_ in ranks}
    assert SGLANG.page("".join(lines).encode()).generation_tokens == sum(first.values())


@given(st.lists(st.sampled_from(["python", "-m", "sglang.launch_server", "sglang", "serve", "--tp", "="]) | st.text()))
def test_any_command_line_has_an_answer(argv: list[str]) -> None:
    assert SGLANG.recognises(argv, "") in {True, False}
    assert isinstance(SGLANG.facts(argv, {}), EngineFacts)
