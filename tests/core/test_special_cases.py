"""Special cases of a deployment: parallel engines, shared and partitioned devices, pools, drafts, counters alone."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from msgspec.structs import replace as change
from tests.core.scenario import SECOND, START, Node, Result, gpu, owners_uj, request, run, when

from jouled.core.attribution.roles import served
from jouled.core.continuity import checkpoint
from jouled.core.pipeline import Input, Pipeline
from jouled.core.state import thaw
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import EnergyReading
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome, RequestEvent, RequestStart

Energy = Callable[[float], float]
PAIR = (
    request("a", 2.0, prefill=0.5, decode=3.5, prompt=1000, generated=100),
    request("b", 4.0, prefill=0.5, decode=3.5, prompt=200, generated=150),
)


def meter(device: str, joules: Energy, seconds: float) -> list[Input]:
    """A counter that shows so many joules so many seconds after the start."""
    return [
        EnergyReading(device, START + k * SECOND // 10, round(joules(k / 10) * 1e6))
        for k in range(round(seconds * 10) + 1)
    ]


def within(t: float, begin: float, end: float) -> float:
    return max(0.0, min(t, end) - begin)


def engine(name: str, *devices: str, **changes: object) -> Engine:
    return change(Engine(name=name, type="vllm", model="tiny-8B", devices=devices), **changes)


def play(described: Iterable[Input], *timed: Iterable[Input]) -> Result:
    return run([*described, *sorted((item for told in timed for item in told), key=when)])


def uj(receipts: Iterable[Receipt]) -> int:
    return sum(round(receipt.joules * 1e6) for receipt in receipts)


def of_engine(result: Result, name: str) -> dict[str, int]:
    """Microjoules of an engine by owner."""
    counted = result.snapshot.counters["energy_joules_total"]
    return {labels[2]: value for labels, value in counted.items() if labels[0] == name}


# parallel engines


def test_devices_in_tensor_or_pipeline_parallel_count_as_one_with_their_sum():
    alone = Node(PAIR, seconds=20.0)
    many = alone.with_gpus(4)
    described = [gpu(i, idle_watts=25.0, uplift_watts=12.5) for i in range(4)]
    split = run([*described, *many.inputs()[4:]])
    assert split.book.devices == ("gpu0", "gpu1", "gpu2", "gpu3")
    for name, parts in run(alone.inputs()).energies.items():
        assert split.energies[name] == pytest.approx(parts, abs=5e-6)


def test_replicas_of_one_model_have_books_of_their_own():
    replicas = [engine("chat-0", "gpu0"), engine("chat-1", "gpu1")]
    requests = [change(PAIR[0], engine="chat-0"), change(PAIR[1], engine="chat-1")]
    boards = [meter(f"gpu{i}", lambda t, i=i: 100.0 * t + (i + 1) * 100.0 * within(t, 2, 8), 20.0) for i in (0, 1)]
    result = play([gpu(0), gpu(1), *replicas], *boards, requests)
    assert [book.engines for book in result.snapshot.groups] == [("chat-0",), ("chat-1",)]
    for i, (name, receipt) in enumerate(sorted(result.receipts.items())):
        owned = of_engine(result, f"chat-{i}")
        assert receipt.model == "tiny-8B", name
        assert round(receipt.joules * 1e6) == sum(v for o, v in owned.items() if o in ("prefill", "decode", "resident"))
        assert sum(owned.values()) == round((2000 + (i + 1) * 600) * 1e6)
        assert receipt.validity == "ok"


# shared and partitioned devices


def two_on_one(*devices: Device, on: tuple[str, str]) -> Result:
    """Two engines with one request each; b generates three times as much as a in the same time."""
    requests = [
        request("a", 2.0, prefill=0.5, decode=5.5, prompt=100, generated=100, engine="x"),
        request("b", 2.0, prefill=0.5, decode=5.5, prompt=100, generated=300, engine="y"),
    ]
    board = meter("gpu0", lambda t: 100.0 * t + 200.0 * within(t, 2.0, 8.0), 20.0)
    return play([gpu(0), *devices, engine("x", on[0]), engine("y", on[1])], board, requests)


def test_engines_on_one_device_share_idle_by_residency_and_the_rest_by_work():
    result = two_on_one(on=("gpu0", "gpu0"))
    a, b = result.receipts["a"], result.receipts["b"]
    assert a.validity == b.validity == "shared_device"
    assert a.joules_resident == pytest.approx(b.joules_resident, rel=1e-6)
    assert a.joules_resident + b.joules_resident == pytest.approx(150.0 * 6.0, abs=1e-3)
    assert b.joules_decode > 1.5 * a.joules_decode
    assert uj([a, b]) + result.book.idle_uj + result.book.unattributed_uj == 3200 * 10**6
    assert result.book.unattributed_uj < 10
    assert result.book.quality == "measured"


def mig(index: int, fraction: float) -> Device:
    return Device(name=f"gpu0/mig{index}", kind=DeviceKind.PARTITION, parent="gpu0", fraction=fraction)


def test_partitions_share_idle_by_slice_and_the_rest_by_work():
    result = two_on_one(mig(1, 3 / 7), mig(2, 2 / 7), on=("gpu0/mig1", "gpu0/mig2"))
    a, b = result.receipts["a"], result.receipts["b"]
    assert a.validity == b.validity == "partition_estimated"
    assert result.book.devices == ("gpu0",)
    assert result.book.quality == "measured"
    assert a.joules_resident == pytest.approx((100 * 3 / 7 + 25.0) * 6.0, abs=1e-3)
    assert b.joules_resident == pytest.approx((100 * 2 / 7 + 25.0) * 6.0, abs=1e-3)
    unused = of_engine(result, "")["idle"]
    assert unused == pytest.approx(100 * 2 / 7 * 20.0 * 1e6, rel=1e-6), "slices without an engine stay idle"
    assert of_engine(result, "x")["idle"] == pytest.approx(100 * 3 / 7 * 14.0 * 1e6, rel=1e-6)
    assert b.joules_decode > 1.5 * a.joules_decode
    assert owners_uj(result.book) == 3200 * 10**6
    assert a.method["idle_power"] == "configured"
    assert [view.device.name for view in result.snapshot.devices] == ["gpu0"], "a partition has no meter"


def test_a_partition_alone_pays_its_work_and_no_more_than_its_slice_of_idle_power():
    board = meter("gpu0", lambda t: 100.0 * t + 200.0 * within(t, 2.0, 8.0), 20.0)
    result = play([gpu(0), mig(1, 0.25), engine("e", "gpu0/mig1")], board, PAIR)
    assert uj(result.receipts.values()) == pytest.approx(1e6 * 6.0 * (200.0 + 25.0), rel=1e-6)
    assert result.book.idle_uj == pytest.approx(1e6 * (20.0 * 75.0 + 14.0 * 25.0), rel=1e-6)


def test_a_partition_that_is_cut_anew_keeps_every_joule():
    board = meter("gpu0", lambda t: 300.0 * t, 40.0)
    described = [gpu(0), mig(1, 0.25), engine("e", "gpu0/mig1")]
    timed = sorted([*board, *PAIR, request("c", 25.0)], key=when)
    result = run([*described, *timed[:200], mig(1, 0.5), *timed[200:]])
    assert set(result.receipts) == {"a", "b", "c"}
    assert sum(book.measured_uj for book in result.snapshot.groups) == 12_000 * 10**6


# pools


def halves(prefill_node: bool = True, decode_node: bool = True) -> Result:
    """A prefill pool on gpu0 and a decode pool on gpu1 serve the same requests."""
    first = [
        change(r, engine="p", trace_id=f"t-{r.id}", span_id="1", last_token_ns=r.first_token_ns, generation_tokens=1)
        for r in PAIR
    ]
    second = [change(r, engine="d", trace_id=f"t-{r.id}", span_id="1", scheduled_ns=None) for r in PAIR]
    boards = [meter(f"gpu{i}", lambda t: 100.0 * t + 200.0 * within(t, 2.0, 8.0), 20.0) for i in (0, 1)]
    engines = [engine("p", "gpu0", role="prefill"), engine("d", "gpu1", role="decode")]
    result, receipts = Pipeline(Node(()).parameters), []
    told = [*(first if prefill_node else ()), *(second if decode_node else ())]
    for item in [gpu(0), gpu(1), *engines, *sorted([*boards[0], *boards[1], *told], key=when)]:
        assert result.feed(item) == ""
    receipts = result.finish()
    return Result({f"{r.engine}/{r.id}": r for r in receipts}, result.snapshot(START + 20 * SECOND), (), result)


def test_pools_attribute_their_halves_under_one_request_and_trace():
    result = halves()
    assert set(result.receipts) == {"p/a", "p/b", "d/a", "d/b"}
    for name in "ab":
        first, second = result.receipts[f"p/{name}"], result.receipts[f"d/{name}"]
        assert (first.id, first.trace_id) == (second.id, second.trace_id) == (name, f"t-{name}")
        assert first.joules_decode == 0.0
        assert first.joules_prefill > 10.0
        assert second.joules_decode > 100 * second.joules_prefill, "the prompt came as KV cache"
        assert second.service_start_ns == second.first_token_ns - 1_000_000
    for pool in "pd":
        own = uj(r for r in result.receipts.values() if r.engine == pool)
        owned = of_engine(result, pool)
        assert own == sum(owned.get(owner, 0) for owner in ("prefill", "decode", "resident"))
        assert sum(owned.values()) == 3200 * 10**6


def test_a_pool_does_not_wait_for_the_other():
    both = halves()
    assert halves(decode_node=False).receipts["p/a"] == both.receipts["p/a"]
    assert halves(prefill_node=False).receipts["d/b"] == both.receipts["d/b"]


def test_a_prefill_pool_that_is_told_the_whole_request_serves_it_up_to_the_first_token():
    whole = change(PAIR[0], engine="p")
    part = served(whole, "prefill")
    assert (part.last_ns, part.generated) == (whole.first_token_ns, 1)
    assert served(whole, "decode").earliest_ns == whole.scheduled_ns, "the transfer had ended then"
    assert served(whole, "unified").last_ns == whole.last_token_ns


# drafts


def speculating(count_steps: bool) -> Result:
    """A step takes 0.1 s and checks drafts for both: a gets 3 tokens of it, b only 1."""
    requests = [
        request("a", 10.0, prefill=0.1, decode=15.0, prompt=500, generated=451),
        request("b", 10.0, prefill=0.1, decode=15.0, prompt=500, generated=151),
    ]
    looks = []
    for second in range(41):
        decoded = within(second, 10.1, 25.1) / 15.0
        looks.append(
            EngineSample(
                engine="e",
                t_ns=START + second * SECOND,
                steps=round(150 * decoded) if count_steps else None,
                prompt_tokens=1000 if second > 10 else 0,
                generation_tokens=(2 if second > 10 else 0) + round(600 * decoded),
                requests_running=2 if 10 < second <= 25 else 0,
                requests_waiting=0,
            )
        )
    board = meter("gpu0", lambda t: 100.0 * t + 300.0 * within(t, 10.0, 25.1), 40.0)
    return play([gpu(0), engine("e", "gpu0")], board, looks, requests)


def test_members_of_a_step_that_checks_drafts_pay_alike_however_many_are_accepted():
    result = speculating(count_steps=True)
    a, b = result.receipts["a"], result.receipts["b"]
    assert a.validity == b.validity == "ok"
    assert result.book.unreported_uj == 0
    assert a.joules_decode == pytest.approx(b.joules_decode, rel=0.01), "rejected drafts fall on their request"


def test_without_a_step_counter_decode_goes_by_tokens():
    result = speculating(count_steps=False)
    assert result.receipts["a"].joules_decode > 1.02 * result.receipts["b"].joules_decode


# cancelled, failed, cached


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.FAILED])
def test_a_request_that_breaks_off_owns_joules_up_to_its_last_token_and_none_of_it_is_good(outcome):
    broken = change(request("x", 4.0, prefill=0.2, decode=1.0, generated=30), outcome=outcome)
    whole = run(Node((request("y", 2.0), broken), seconds=20.0).inputs())
    same = run(Node((request("y", 2.0), change(broken, outcome=Outcome.COMPLETED)), seconds=20.0).inputs())
    assert whole.energies == same.energies
    assert whole.receipts["x"].outcome is outcome
    assert whole.receipts["x"].good == {"chat": False}
    assert same.receipts["x"].good == {"chat": True}
    tokens = whole.snapshot.counters["slo_tokens_total"]
    assert sum(v for labels, v in tokens.items() if labels[3] == "good") == 100
    assert whole.snapshot.counters["requests_total"]["e", "tiny-8B", outcome.value] == 1


def test_lost_work_beside_known_requests_leaves_idle_time_alone():
    """Every tenth event is dropped; two requests run at any time of the first 41 s, and nobody does afterwards."""
    requests = tuple(request(f"r{k:02d}", 0.5 * k, decode=0.8, generated=100) for k in range(82))
    node = Node(requests, seconds=90.0, samples=True)
    whole = run(node.inputs())
    result = run([i for i in node.inputs() if not (isinstance(i, RequestEvent) and int(i.id[1:]) % 10 == 1)])
    assert result.book.unreported_uj > 0
    assert result.book.idle_uj >= whole.book.idle_uj


def given_up(*phantoms: float) -> Result:
    """A chain of requests, one more that its client gave up, seen by the gauge from 101 to 121 s, and other starts."""
    chain = tuple(request(f"r{k}", 10.0 * k, prefill=0.2, decode=9.0) for k in range(40))
    node = Node(chain, seconds=400.0, samples=True)
    items = []
    for item in node.inputs():
        if isinstance(item, EngineSample) and START + 101 * SECOND < item.t_ns < START + 121 * SECOND:
            item = change(item, requests_running=(item.requests_running or 0) + 1)  # noqa: PLW2901 - one more
        items.append(item)
    for arrival in (101.0, *phantoms):
        arrival_ns = START + round(arrival * SECOND)
        items.append(RequestStart(engine="e", id=f"start-{arrival}", arrival_ns=arrival_ns, seen_ns=arrival_ns))
    return run(sorted(items, key=lambda item: getattr(item, "seen_ns", 0) or when(item)))


def test_starts_whose_end_is_never_told_count_no_further_than_the_gauge():
    alone, among_many = given_up(), given_up(*(2.5 + k for k in range(60)))
    assert alone.book.unreported_uj > 0
    assert among_many.book.unreported_uj == alone.book.unreported_uj
    assert among_many.energies == alone.energies


def test_cached_tokens_pay_no_prefill_but_their_share_of_attention_and_kv_reads():
    def one(**changes: object) -> Receipt:
        other = request("other", 2.0, prefill=1.0, decode=6.0, prompt=2000, generated=100)
        mine = request("x", 2.0, prefill=1.0, decode=6.0, prompt=8000, generated=100, **changes)
        return run(Node((other, mine), seconds=20.0).inputs()).receipts["x"]

    full, cached, short = one(), one(cached_prompt_tokens=7000), one(prompt_tokens=1000)
    assert cached.joules_prefill < 0.6 * full.joules_prefill
    assert cached.joules_prefill > 1.01 * short.joules_prefill, "computed tokens attend the cached ones"
    assert cached.joules_decode > 1.05 * short.joules_decode, "the cached ones are read in every step"
    assert cached.cached_prompt_tokens == 7000


# counters alone


def counted_node(*, steps: bool = True, running: bool = True, seconds: int = 400) -> list[Input]:
    """Two at a time from 20 s to 320 s, told by nobody; 40 prompt tokens and 60 generated ones a second."""
    looks = [
        EngineSample(
            engine="e",
            t_ns=START + second * SECOND,
            steps=round(30 * within(second, 20, 320)) if steps else None,
            prompt_tokens=round(40 * within(second, 20, 320)),
            generation_tokens=round(60 * within(second, 20, 320)),
            requests_running=2 * (20 < second <= 320) if running else None,
            requests_waiting=0 if running else None,
        )
        for second in range(0, seconds + 1, 5)
    ]
    board = meter("gpu0", lambda t: 100.0 * t + 250.0 * within(t, 20.0, 320.0), seconds)
    return [gpu(0), engine("e", "gpu0"), *sorted([*board, *looks], key=when)]


@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_an_engine_that_tells_no_requests_has_joules_by_phase_and_no_receipts(steps, running):
    result = run(counted_node(steps=steps, running=running))
    book = result.book
    assert result.receipts == {}
    assert book.unreported_uj == 0
    assert book.resident_uj == pytest.approx(150.0 * 300.0 * 1e6, rel=0.01)
    assert book.prefill_uj + book.decode_uj == pytest.approx(200.0 * 300.0 * 1e6, rel=0.01)
    assert book.decode_uj > 3 * book.prefill_uj > 0
    assert book.idle_uj == pytest.approx(100.0 * 100.0 * 1e6, rel=0.02)
    assert book.unattributed_uj < 0.01 * book.measured_uj
    assert owners_uj(book) == book.measured_uj == 115_000 * 10**6
    assert of_engine(result, "e")["decode"] == book.decode_uj
    assert "requests_total" not in result.snapshot.counters
    [view] = result.snapshot.engines
    assert view.coverage is None
    assert "good_tokens_per_joule" not in result.snapshot.gauges, "nobody knows how many were good"


def test_from_the_first_event_on_an_engine_goes_by_requests_and_keeps_what_was_counted():
    inputs = counted_node(seconds=700)
    told = [request(f"r{i}", 500.0 + 6 * i, decode=5.0, generated=100) for i in range(30)]
    looks = {item.t_ns: item for item in inputs if isinstance(item, EngineSample)}
    for t_ns in [t for t in looks if t > START + 380 * SECOND]:
        live = Node(tuple(told), samples=True).sample_at(t_ns)
        changes = {
            "steps": None,
            "prompt_tokens": live.prompt_tokens + 12_000,
            "generation_tokens": live.generation_tokens + 18_000,
            "requests_running": live.requests_running,
        }
        looks[t_ns] = change(looks[t_ns], **changes)
    mixed = [looks.get(when(item), item) if isinstance(item, EngineSample) else item for item in inputs]
    mixed = [
        change(i, microjoules=i.microjoules + round(250e6 * sum(_seconds(r, i.t_ns) for r in told)))
        if isinstance(i, EnergyReading)
        else i
        for i in mixed
    ]
    before = run(counted_node(seconds=700)).book
    after = run([*mixed[:2], *sorted([*mixed[2:], *told], key=when)])
    assert set(after.receipts) == {r.id for r in told}
    own = uj(after.receipts.values())
    book = after.book
    phases = sum(getattr(book, f"{owner}_uj") for owner in ("prefill", "decode", "resident"))
    counted = before.prefill_uj + before.decode_uj + before.resident_uj
    assert phases - own == pytest.approx(counted, rel=0.002)
    assert own == pytest.approx(350e6 * sum(_seconds(r, START + 700 * SECOND) for r in told), rel=0.03)
    [view] = after.snapshot.engines
    assert view.coverage == pytest.approx(1.0, abs=0.05)


def _seconds(event: RequestEvent, t_ns: int) -> float:
    return max(0, min(t_ns, event.last_token_ns) - event.arrival_ns) / SECOND


def test_events_that_end_leave_lost_work_for_an_hour_and_counted_work_after():
    told = [request(f"r{i}", 10.0 + 10 * i, decode=5.0, generated=100) for i in range(20)]
    looks = [
        EngineSample(
            engine="e",
            t_ns=START + second * SECOND,
            generation_tokens=10 * second,
            prompt_tokens=2 * second,
            requests_running=1,
            requests_waiting=0,
        )
        for second in range(0, 5000, 20)
    ]
    board = [EnergyReading("gpu0", START + s * SECOND, 300 * s * 10**6) for s in range(5000)]
    pipeline, owners = Pipeline(Node(()).parameters), []
    for item in [gpu(0), engine("e", "gpu0"), *sorted([*told, *looks, *board], key=when)]:
        pipeline.feed(item)
        if when(item) and (when(item) - START) % (500 * SECOND) == 0 and isinstance(item, EnergyReading):
            pipeline.advance(when(item))
            [book] = pipeline.snapshot(when(item)).groups
            owners.append((book.unreported_uj, book.decode_uj))
    grown = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(owners)]
    assert grown[4][0] > 10**9, "an hour has not passed: somebody's requests are not told of"
    assert grown[4][1] == 0
    assert grown[-1][0] == 0
    assert grown[-1][1] > 10**9


def test_a_restart_changes_nothing_of_counted_work():
    inputs = counted_node()
    pipeline = Pipeline(Node(()).parameters)
    for index, item in enumerate(inputs):
        pipeline.feed(item)
        if when(item) and index % 10 == 0:
            pipeline.advance(when(item))
        if index == len(inputs) // 2:
            pipeline = thaw(b"".join(checkpoint(pipeline, "1").chunks()), "1")
    pipeline.finish()
    whole = run(inputs).book
    [book] = pipeline.snapshot(START + 400 * SECOND).groups
    assert (book.prefill_uj, book.decode_uj) == pytest.approx((whole.prefill_uj, whole.decode_uj), rel=1e-6)
