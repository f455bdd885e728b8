"""Prefill and decode pools: halves add up, and every token and request is counted once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from msgspec.structs import replace as change
from tests.core.scenario import SECOND, START, assert_balanced, gpu, receipts_uj, request, request_sets, when

from jouled.core.attribution.engine import EngineBook
from jouled.core.pipeline import Input, Pipeline
from jouled.model.engine import Engine, EngineSample
from jouled.model.errors import SourceState
from jouled.model.parameters import Parameters, Slo, Tier
from jouled.model.readings import EnergyReading, SourceReport
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.snapshot import Snapshot

SECONDS = 40
PARAMETERS = Parameters(slos=(Slo("chat", ttft=500.0, tpot=50.0),), tiers=(Tier("any", 0.0),), by_tenant=True)
ENGINES = {
    "p": Engine(name="p", type="vllm", model="m", devices=("gpu0",), role="prefill"),
    "d": Engine(name="d", type="vllm", model="m", devices=("gpu1",), role="decode"),
}


class Books(NamedTuple):
    receipts: list[Receipt]
    snapshot: Snapshot
    books: Mapping[str, EngineBook]

    def total(self, counter: str, *wanted: str) -> float:
        series = self.snapshot.counters.get(counter, {})
        return sum(value for labels, value in series.items() if set(wanted) <= set(labels))

    def of(self, engine: str) -> list[Receipt]:
        return [receipt for receipt in self.receipts if receipt.engine == engine]


def whole_in_both(event: RequestEvent) -> list[RequestEvent]:
    """As Dynamo's spans tell: each pool learns of the whole request."""
    told = change(event, trace_id=f"trace-{event.id}", cached_prompt_tokens=None)
    return [change(told, engine="p"), change(told, engine="d")]


def own_half_in_each(event: RequestEvent) -> list[RequestEvent]:
    """As vLLM behind a proxy tells: the prefill server ends with its one token, the decode server begins after it."""
    first = min(event.generation_tokens, 1)
    told = change(event, trace_id=f"trace-{event.id}")
    begun_ns = event.first_token_ns
    return [
        change(told, engine="p", last_token_ns=event.first_token_ns, generation_tokens=first),
        change(told, engine="d", arrival_ns=begun_ns, scheduled_ns=begun_ns, cached_prompt_tokens=event.prompt_tokens),
    ]


def boards() -> list[EnergyReading]:
    """Two meters, read twice a second: 200 W and 300 W."""
    return [
        EnergyReading(f"gpu{index}", START + half * SECOND // 2, half * (100_000_000 + 50_000_000 * index))
        for half in range(SECONDS * 2 + 1)
        for index in (0, 1)
    ]


def generated_by(t_ns: int, event: RequestEvent) -> int:
    span_ns = max(event.last_token_ns - event.first_token_ns, 1)
    after_first = max(event.generation_tokens - 1, 0) * min(t_ns - event.first_token_ns, span_ns) // span_ns
    return min(event.generation_tokens, 1) + after_first


def vllm_pages(requests: Sequence[RequestEvent]) -> Iterable[EngineSample]:
    """The counters of two vLLM 0.33 servers: the decode server counts the prompt again, as transferred."""
    for t_ns in range(START - 5 * SECOND, START + (SECONDS + 1) * SECOND, 5 * SECOND):
        begun = [r for r in requests if r.first_token_ns <= t_ns]
        prompt, first = sum(r.prompt_tokens for r in begun), sum(min(r.generation_tokens, 1) for r in begun)
        made = sum(generated_by(t_ns, r) for r in begun)
        page = EngineSample(
            engine="p", t_ns=t_ns, prompt_tokens=prompt, cached_prompt_tokens=0, generation_tokens=first
        )
        yield page
        yield change(page, engine="d", cached_prompt_tokens=prompt, generation_tokens=made)


def run(told: Iterable[Input]) -> Books:
    pipeline = Pipeline(PARAMETERS)
    for item in (gpu(0), gpu(1), *ENGINES.values()):
        assert pipeline.feed(item) == ""
    receipts, advanced_ns = [], 0
    for item in sorted([*boards(), *told], key=when):
        assert pipeline.feed(item) == ""
        if when(item) >= advanced_ns + SECOND:
            advanced_ns = when(item)
            receipts += pipeline.advance(advanced_ns)
    receipts += pipeline.finish()
    snapshot = pipeline.snapshot(START + SECONDS * SECOND)
    assert_balanced(snapshot)
    return Books(receipts, snapshot, dict(pipeline._groups.books))


@pytest.mark.parametrize("halves", [whole_in_both, own_half_in_each])
@settings(max_examples=20, deadline=None)
@given(request_sets(most=8))
def test_halves_add_up_and_tokens_and_requests_count_once(halves, requests):
    books = run(half for event in requests for half in halves(event))
    prompt = sum(event.prompt_tokens for event in requests)
    generated = sum(event.generation_tokens for event in requests)
    assert books.total("request_tokens_total", "prompt_computed") == prompt
    assert books.total("request_tokens_total", "prompt_cached") == 0
    assert books.total("request_tokens_total", "generation") == generated
    assert books.total("requests_total") == len(requests)
    assert books.total("slo_requests_total") == len(requests)
    assert books.total("slo_tokens_total") == books.total("tenant_tokens_total") == generated
    assert {(r.engine, r.role) for r in books.receipts} <= {("p", "prefill"), ("d", "decode")}
    assert {r.trace_id for r in books.of("p")} == {r.trace_id for r in books.of("d")}
    assert len(books.of("p")) == len(books.of("d")) == len(requests)
    spent = sum(books.total("energy_joules_total", owner) for owner in ("prefill", "decode", "resident"))
    assert receipts_uj(books.receipts) == spent == books.total("slo_energy_joules_total")
    assert spent == books.total("tenant_energy_joules_total")
    assert (
        sum(book.measured_uj for book in books.snapshot.groups) == boards()[-1].microjoules + boards()[-2].microjoules
    )


@settings(max_examples=20, deadline=None)
@given(request_sets(most=8))
def test_engine_counters_of_both_pools_add_up_to_the_work_done(requests):
    books = run([*vllm_pages(requests), *(half for event in requests for half in whole_in_both(event))])
    assert books.total("engine_tokens_total", "prompt_computed") == sum(event.prompt_tokens for event in requests)
    assert books.total("engine_tokens_total", "generation") == sum(event.generation_tokens for event in requests)
    assert books.total("engine_tokens_total", "prompt_cached") == 0


def test_a_prefill_pool_that_is_told_whole_requests_expects_one_token_of_each():
    """More would not be on its page: its books would seem to disagree with its counters."""
    requests = [request(f"r{n}", 1.0 + 0.05 * n, decode=3.0, generated=200) for n in range(600)]
    books = run([*vllm_pages(requests), *(half for event in requests for half in whole_in_both(event))])
    assert {name: book.lost.mismatch < 0.1 for name, book in books.books.items()} == {"p": True, "d": True}
    assert books.total("energy_joules_total", "unreported") == 0


def test_a_request_that_ended_in_the_prefill_pool_is_counted_there():
    left = change(request("r", 1.0, decode=0.0, generated=0), engine="p", outcome=Outcome.CANCELLED)
    books = run([left])
    assert books.total("requests_total", "p", "cancelled") == 1
    assert books.total("slo_requests_total", "failed") == 1


def test_a_frontend_beside_its_workers_counts_nothing_and_takes_no_device():
    pipeline = Pipeline(PARAMETERS)
    frontend = Engine(name="f", type="dynamo_frontend", role="frontend")
    worker = Engine(name="w", type="dynamo_vllm")
    for item in (gpu(0), frontend, worker, *boards()[:2]):
        pipeline.feed(item)
    for name in "fw":
        for seconds in (0, 5):
            tokens = 100 * seconds
            told = EngineSample(
                engine=name, t_ns=START + seconds * SECOND, prompt_tokens=tokens, generation_tokens=tokens
            )
            assert pipeline.feed(told) == ""
    snapshot = pipeline.snapshot(START + 5 * SECOND)
    assert {labels[0] for labels in snapshot.counters["engine_tokens_total"]} == {"w"}
    assert [book.engines for book in snapshot.groups] == [("w",)], "the only engine that computes has the GPUs"


def test_an_engine_that_moved_to_another_port_is_the_only_one_with_the_devices():
    """Found engines are named after their ports: where no driver tells who computes, the new one gets the devices."""
    pipeline = Pipeline(PARAMETERS)
    for item in (gpu(0), Engine(name="e-8000", type="vllm"), *boards()[:2]):
        pipeline.feed(item)
    pipeline.advance(START + 2 * SECOND)
    left = {"source": "e-8000", "state": SourceState.ABSENT, "reason": "gone", "t_ns": START + 2 * SECOND}
    pipeline.feed(SourceReport(**left))
    pipeline.feed(Engine(name="e-8001", type="vllm"))
    assert with_devices(pipeline) == {"e-8001"}
    pipeline.feed(SourceReport(source="e-8000", state=SourceState.OK, t_ns=START + 3 * SECOND))
    assert with_devices(pipeline) == set(), "both are there, and neither says where"
    pipeline.feed(SourceReport(**left | {"source": "e-8001"}))
    assert with_devices(pipeline) == {"e-8000"}
    pipeline.feed(SourceReport(**left))
    assert with_devices(pipeline) == set(), "both are gone"


def with_devices(pipeline: Pipeline) -> set[str]:
    pipeline.advance(START + 3 * SECOND)
    views = pipeline.snapshot(START + 3 * SECOND).engines
    return {view.engine.name for view in views if view.engine.devices}
