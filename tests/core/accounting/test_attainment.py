"""What histograms alone say of an SLO: bounds that hold, and nothing where events say it exactly."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, gpu, request, run

from jouled.core.accounting.attainment import EVENTS_SILENT_NS, Attainment, off_bounds
from jouled.core.pipeline import Pipeline
from jouled.model.engine import Engine, EngineSample, LatencyHistogram
from jouled.model.parameters import Slo

CHAT = Slo("chat", ttft=500.0, tpot=50.0)
TTFT_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5)
TPOT_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1)


def histogram(bounds: tuple[float, ...], values: list[float]) -> LatencyHistogram:
    return LatencyHistogram(bounds, (*(sum(value <= bound for value in values) for bound in bounds), len(values)))


def sample(seconds: float, **latencies: LatencyHistogram) -> EngineSample:
    return EngineSample(engine="e", t_ns=START + round(seconds * SECOND), latencies=latencies)


def look(seconds: float, ttft: list[float], tpot: list[float]) -> EngineSample:
    return sample(seconds, ttft=histogram(TTFT_BOUNDS, ttft), tpot=histogram(TPOT_BOUNDS, tpot))


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def taken(*looks: EngineSample, slos: tuple[Slo, ...] = (CHAT,)) -> Attainment:
    attainment = Attainment(slos)
    for each in looks:
        attainment.take(each)
    return attainment


LATENCIES = st.floats(0.0, 4.0)
REQUESTS = st.lists(st.tuples(LATENCIES, LATENCIES, LATENCIES), max_size=30)
BOUNDS = st.lists(st.floats(0.01, 3.0), max_size=8, unique=True).map(sorted).map(tuple)
LIMITS = st.none() | st.integers(1, 4_000).map(float)


@given(REQUESTS, REQUESTS, st.tuples(BOUNDS, BOUNDS, BOUNDS), st.tuples(LIMITS, LIMITS, LIMITS))
def test_the_true_share_lies_between_the_bounds(before, then, bounds, limits):
    def look_at(seconds: float, requests: list) -> EngineSample:
        columns = [[request[i] for request in requests] for i in range(3)]
        names = ("ttft", "tpot", "e2el")
        made = {name: histogram(b, values) for name, b, values in zip(names, bounds, columns, strict=True)}
        return sample(seconds, **made)

    slo = Slo("s", *limits)
    found = taken(look_at(0, before), look_at(60, before + then), slos=(slo,)).bounds(at(60))
    told = [i for i in range(3) if limits[i] is not None]
    if not then or not told:
        assert found == {}
        return
    true = sum(all(one[i] <= limits[i] / 1000.0 for i in told) for one in then) / len(then)
    lower, upper = found["s"]
    assert 0.0 <= lower <= true + 1e-12
    assert true - 1e-12 <= upper <= 1.0
    if len(told) == 1 and limits[told[0]] / 1000.0 in bounds[told[0]]:
        assert lower == upper == pytest.approx(true)


def test_by_hand():
    # Of ten requests eight kept the ttft and nine the tpot: between 7 and 8 kept both, whatever goes with what.
    found = taken(look(0, [], []), look(60, [0.2] * 8 + [2.0] * 2, [0.02] * 9 + [0.09])).bounds(at(60))
    assert found["chat"] == (pytest.approx(0.7), 0.8)


def test_a_limit_on_a_bound_is_exact():
    looks = (look(0, [], []), look(60, [0.2] * 6 + [0.4] * 3 + [0.9], []))
    assert taken(*looks, slos=(Slo("s", ttft=500.0),)).bounds(at(60)) == {"s": (0.9, 0.9)}


def test_a_limit_between_bounds_takes_the_shares_at_both():
    # 300 ms lies between 250 and 500: six surely kept it, three more may have.
    slo = Slo("s", ttft=300.0)
    looks = (look(0, [], []), look(60, [0.2] * 6 + [0.4] * 3 + [0.9], [0.02]))
    assert taken(*looks, slos=(slo,)).bounds(at(60)) == {"s": (0.6, 0.9)}


@pytest.mark.parametrize(("limit", "bounds"), [(50.0, (0.0, 0.5)), (60_000.0, (0.75, 1.0))])
def test_a_limit_beyond_all_bounds_leaves_one_side_open(limit, bounds):
    looks = (look(0, [], []), look(60, [0.05, 0.05, 0.3, 9.0], []))
    assert taken(*looks, slos=(Slo("s", ttft=limit),)).bounds(at(60)) == {"s": bounds}


def test_what_an_engine_did_before_the_first_look_does_not_count():
    assert taken(look(0, [0.2] * 50, [0.02] * 50)).bounds(at(0)) == {}


def test_what_is_older_than_five_minutes_is_forgotten():
    late = [2.0] * 10
    looks = [look(0, [], [0.02]), look(5, late, [0.02] * 11)]
    looks += [look(5 + 5 * k, [*late, *[0.2] * k], [0.02] * (11 + k)) for k in range(1, 61)]
    attainment = taken(*looks[:-1])
    assert attainment.bounds(at(300))["chat"][1] == pytest.approx(59 / 69)
    attainment.take(looks[-1])
    assert attainment.bounds(at(305))["chat"] == (1.0, 1.0)
    assert attainment.bounds(at(700)) == {}, "the engine is silent"


def test_a_restart_of_the_engine_takes_nothing_back():
    looks = (look(0, [2.0] * 90, [0.02] * 90), look(5, [2.0] * 92, [0.02] * 92), look(10, [0.2] * 8, [0.02] * 8))
    assert taken(*looks).bounds(at(10))["chat"] == (pytest.approx(0.8), 0.8)


def test_an_engine_with_other_bounds_is_a_new_one():
    after = sample(10, ttft=histogram((0.4, 0.6), [0.1] * 5), tpot=histogram(TPOT_BOUNDS, [0.02] * 5))
    found = taken(look(0, [], []), look(5, [2.0] * 5, [0.02] * 5), after).bounds(at(10))
    assert found["chat"] == (0.5, 0.5)


def test_an_slo_without_its_histogram_has_no_bounds():
    slos = (CHAT, Slo("batch", e2el=1000.0))
    assert taken(look(0, [], []), look(60, [0.2], [0.02]), slos=slos).bounds(at(60)).keys() == {"chat"}


def test_an_unsound_histogram_is_not_taken():
    broken = LatencyHistogram((0.5,), (3, 2))
    assert not broken.is_sound
    assert taken(sample(0, ttft=broken), sample(5, ttft=broken), slos=(Slo("s", ttft=1.0),)).bounds(at(5)) == {}


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [((1.0,), (1,)), ((2.0, 1.0), (1, 2, 3)), ((1.0, 1.0), (1, 1, 1)), ((1.0,), (-1, 2)), ((), ())],
)
def test_what_is_no_histogram(bounds, counts):
    assert not LatencyHistogram(bounds, counts).is_sound


def test_events_silence_the_bounds():
    attainment = taken(look(0, [], []), look(60, [0.2], [0.02]))
    attainment.told_ns = at(30)
    assert attainment.bounds(at(60)) == {}
    attainment.told_ns = at(60) - EVENTS_SILENT_NS
    assert attainment.bounds(at(60)) == {"chat": (1.0, 1.0)}


def test_limits_off_the_engines_bounds_are_named_with_the_nearest_two():
    latencies = {"ttft": histogram(TTFT_BOUNDS, []), "tpot": histogram(TPOT_BOUNDS, [])}
    slos = (CHAT, Slo("agent", ttft=300.0, tpot=40.0, e2el=7.0), Slo("slow", ttft=9_000.0))
    chat_is_on_bounds, *sentences = ["", *off_bounds(slos, latencies)]
    assert chat_is_on_bounds == ""
    assert [sentence[: sentence.index(";")] for sentence in sentences] == [
        "SLO agent: ttft = 300 ms is none of the engine's bucket bounds (nearest: 250 and 500)",
        "SLO agent: tpot = 40 ms is none of the engine's bucket bounds (nearest: 25 and 50)",
        "SLO slow: ttft = 9000 ms is none of the engine's bucket bounds (nearest: 2500)",
    ]


@given(st.integers(1, 100_000), st.lists(st.integers(1, 100_000), max_size=6))
def test_a_limit_on_a_bound_is_never_named(limit, others):
    bounds = tuple(bound / 1000.0 for bound in sorted({limit, *others}))
    assert (
        off_bounds((Slo("s", ttft=float(limit)),), {"ttft": LatencyHistogram(bounds, (0,) * (len(bounds) + 1))}) == []
    )
    assert bounds[bisect_left(bounds, limit / 1000.0)] == limit / 1000.0


BOUND_GAUGES = ("slo_attainment_lower_bound_ratio", "slo_attainment_upper_bound_ratio")


def node_with_histograms(*requests) -> Node:
    engine = Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",))
    return Node(requests, seconds=60.0, engine=engine)


def looks_of(node: Node) -> list:
    others = [gpu(0), node.engine, *node.readings()]
    return [*others, *(look(5.0 * k, [0.2] * k, [0.09] * k) for k in range(13))]


def test_the_snapshot_has_bounds_only_of_engines_without_events():
    node = node_with_histograms()
    gauges = run(looks_of(node)).snapshot.gauges
    assert [gauges[name] for name in BOUND_GAUGES] == [{("e", "tiny-8B", "chat"): 0.0}] * 2
    told = run([*looks_of(node), request("told", 2.0)]).snapshot
    assert not told.gauges.keys() & set(BOUND_GAUGES)


def test_after_a_restart_an_engine_with_events_is_known_as_one():
    first = run([*looks_of(node_with_histograms()), request("told", 2.0)])
    again = Pipeline(PARAMETERS, first.pipeline.books())
    for item in [gpu(0), Engine(name="e", model="tiny-8B", devices=("gpu0",))]:
        again.feed(item)
    for k in range(3):
        again.feed(change(look(61.0 + k, [0.2] * k, [0.09] * k)))
    assert not again.snapshot(at(64)).gauges.keys() & set(BOUND_GAUGES)
