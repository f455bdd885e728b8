"""What an engine meters itself is compared with its devices' meters over whole minutes, and never booked."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace
from tests.core.scenario import SECOND, START, Node, run, when

from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import DeviceStatus, EnergyReading

ENGINE = Engine(name="e", type="trtllm", model="tiny-8B", devices=("gpu0",))


def reported(node: Node, joules_at, *, every: float = 30.0) -> list[EngineSample]:
    times = [k * every for k in range(int(node.seconds / every) + 1)]
    return [
        replace(node.sample_at(START + round(t * SECOND)), reported_energy_joules=joules)
        for t, joules in ((t, joules_at(t)) for t in times)
        if joules is not None
    ]


def outcome(samples: Iterable[EngineSample], node: Node, *more):
    inputs = [*node.devices(), node.engine, *more, *sorted([*node.readings(), *samples], key=when)]
    result = run(inputs)
    counters = result.snapshot.counters.get("engine_reported_energy_joules_total", {})
    return result.snapshot.engines[0].energy_check_ratio, counters.get(("e",)), result


def node(seconds: float = 200.0) -> Node:
    return Node((), seconds=seconds, interval=1.0, engine=ENGINE)


def test_equal_meters_agree():
    ratio, counted, result = outcome(reported(node(), lambda t: 5000.0 + 100.0 * t), node())
    assert ratio == pytest.approx(1.0, abs=1e-6)
    assert counted == 18_000_000_000
    assert result.snapshot.gauges["engine_energy_check_ratio"] == {("e",): ratio}
    assert result.snapshot.total.measured_uj == 20_000_000_000, "it is in no book"


def test_a_meter_of_half_the_devices_is_off():
    ratio, _, _ = outcome(reported(node(), lambda t: 50.0 * t), node())
    assert ratio == pytest.approx(0.5, abs=1e-6)


def test_a_restart_of_the_engine_makes_no_jump():
    def joules_at(t: float) -> float:
        return 1e6 + 100.0 * t if t < 80.0 else 100.0 * (t - 75.0)

    ratio, counted, _ = outcome(reported(node(), joules_at), node())
    assert ratio == pytest.approx(1.0, abs=1e-6)
    assert counted == round((6000 + 1500 + 9000) * 1e6), "from its zero on it counts again"
    short = node(130.0)
    assert outcome(reported(short, joules_at), short)[0] is None, "no window lies across the restart"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_cannot_be_is_ignored(value):
    samples = reported(node(), lambda t: value if t == 60.0 else 100.0 * t)
    ratio, counted, _ = outcome(samples, node())
    assert ratio == pytest.approx(1.0, abs=1e-6)
    assert counted == 18_000_000_000


def test_less_than_a_minute_says_nothing():
    assert outcome(reported(node(50.0), lambda t: 50.0 * t), node(50.0))[0] is None


def test_nothing_is_said_where_the_engine_has_no_meter():
    ratio, counted, result = outcome(node().engine_samples(), node())
    assert (ratio, counted) == (None, None)
    assert "engine_energy_check_ratio" not in result.snapshot.gauges


def test_the_driver_is_that_of_its_devices():
    status = DeviceStatus(device="gpu0", t_ns=START, driver="570.133.20")
    assert outcome((), node(5.0), status)[2].snapshot.engines[0].engine.driver == "570.133.20"


def test_tokens_that_are_counted_at_finish_have_a_longer_window():
    """600 tokens in one burst a minute ago: over 60 s they are gone from the rate, over 10 min they are not."""

    def per_joule(semantics):
        engine = replace(ENGINE, counter_semantics=replace(ENGINE.counter_semantics, generation_at=semantics))
        samples = [
            EngineSample(engine="e", t_ns=START + t * SECOND, generation_tokens=600 if t >= 60 else 0)
            for t in range(0, 200, 5)
        ]
        readings = [EnergyReading("gpu0", START + t * SECOND, 100_000_000 * t) for t in range(200)]
        made = Node((), engine=engine)
        result = run([*made.devices(), engine, *sorted([*samples, *readings], key=when)])
        view = result.snapshot.engines[0]
        return result.snapshot.gauges["tokens_per_joule"]["compute",], view.generation_tokens_per_second

    assert per_joule("step") == (0.0, 0.0)
    per_joule_at_finish, per_second = per_joule("finish")
    assert per_joule_at_finish == pytest.approx(600 / 19_900, rel=0.02)
    assert per_second == pytest.approx(600 / 195, rel=0.01)


def test_an_engines_own_timer_is_counted_by_kind_of_step_and_over_its_restart():
    told = [{"extend": 5.0}, {"extend": 6.5, "decode": 2.0}, {}, {"extend": 6.5, "decode": 2.5}, {"extend": 0.25}]
    samples = [replace(node().sample_at(START + k * SECOND), forward_seconds=t) for k, t in enumerate(told)]
    _, _, result = outcome(samples, node())
    counted = result.snapshot.counters["engine_forward_seconds_total"]
    assert counted == {("e", "extend"): 1.75, ("e", "decode"): 2.5}


def test_an_engine_that_invents_kinds_of_steps_makes_few_series():
    samples = [
        replace(node().sample_at(START + k * SECOND), forward_seconds={f"mode{k}": 1.0, "extend": float(k)})
        for k in range(1, 100)
    ]
    _, _, result = outcome(samples, node())
    assert len(result.snapshot.counters["engine_forward_seconds_total"]) == 16
