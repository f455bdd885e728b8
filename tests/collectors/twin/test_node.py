"""The node: what devices draw, what their meters show, and the books of both engines."""

import pytest

from jouled.model.device import DeviceKind
from jouled_collectors.twin.load import Load
from jouled_collectors.twin.node import DRAM_RANGE_MICROJOULES, Meter, Node, maximum_rate
from jouled_collectors.twin.truth import truth_of

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def lived(seconds, seed=1, **load):
    node = Node(seed, Load(**load), START)
    return node, node.advance(START + round(seconds * SECOND))


def test_what_stands_in_it():
    node, _ = lived(0)
    kinds = [device.kind for device in node.devices.values()]
    assert kinds.count(DeviceKind.GPU) == 8
    assert kinds.count(DeviceKind.CPU_PACKAGE) == kinds.count(DeviceKind.DRAM) == kinds.count(DeviceKind.OUTLET) == 2
    assert node.devices["outlet_a"].parent == node.devices["outlet_b"].parent == "feed"
    assert {name: engine.spec.devices for name, engine in node.engines.items()} == {
        "llama-70b": ("gpu0", "gpu1", "gpu2", "gpu3"),
        "llama-8b": ("gpu4",),
    }
    assert node.unused == ["gpu5", "gpu6", "gpu7"]


def test_books_close_to_the_rounding_of_each_request():
    node, ended = lived(90)
    truth = truth_of(node, ended)
    for view in (*truth["engines"].values(), truth["total"]):
        owned = view["finished_uj"] + view["aborted_uj"] + view["idle_uj"] + view["in_flight_uj"]
        assert abs(owned - view["measured_uj"]) <= 2 * (len(ended) + 10)
    gpus = sum(device["uj"] for device in truth["devices"].values() if device["kind"] == "gpu")
    assert abs(gpus - truth["total"]["measured_uj"]) <= 10
    parts = [
        one["prefill_uj"] + one["decode_uj"] + one["resident_uj"] - one["uj"] for one in truth["requests"].values()
    ]
    assert set(parts) == {0}


def test_about_two_per_cent_are_aborted_and_latencies_are_those_of_such_engines():
    node, ended = lived(300)
    assert 0.01 < sum(truth.aborted for truth in ended) / len(ended) < 0.035
    for name, low, high in (("llama-70b", 0.022, 0.042), ("llama-8b", 0.010, 0.022)):
        tallies = node.engines[name].tallies
        assert low < tallies.inter_token_latency.sum / tallies.inter_token_latency.count < high
        assert tallies.time_to_first_token.sum / tallies.time_to_first_token.count < 1.0


def test_sixty_per_cent_of_the_maximum_rate_is_carried_and_more_than_all_is_not():
    node, ended = lived(120)
    for name, engine in node.engines.items():
        asked = 0.6 * maximum_rate(engine.spec, node.load)
        carried = sum(truth.engine == name for truth in ended) / 120
        assert carried == pytest.approx(asked, rel=0.25)
        assert engine.waiting == 0
    crowded, _ = lived(120, share=1.3)
    assert all(engine.waiting > 20 for engine in crowded.engines.values())


def test_the_same_seed_is_the_same_node_and_another_start_has_other_ids():
    node, ended = lived(20)
    again, ended_again = lived(20)
    assert ended == ended_again
    assert [node.shown(name, node.now_ns) for name in node.devices] == [
        again.shown(name, again.now_ns) for name in again.devices
    ]
    _, ended_other = lived(20, seed=2)
    assert [truth.request.arrival.prompt_tokens for truth in ended_other[:9]] != [
        truth.request.arrival.prompt_tokens for truth in ended[:9]
    ]
    later = Node(1, Load(), START + SECOND)
    ended_later = later.advance(START + 21 * SECOND)
    assert not {t.request.arrival.id for t in ended} & {t.request.arrival.id for t in ended_later}
    assert [t.microjoules for t in ended_later] == pytest.approx([t.microjoules for t in ended], rel=1e-6)


def test_a_gpu_counter_moves_every_100_ms_at_its_own_phase_in_millijoules():
    node, _ = lived(3)
    moves = {}
    for name in [f"gpu{index}" for index in range(8)]:
        shown = {node.shown(name, START + 2 * SECOND + ms * 1_000_000).moved_ns for ms in range(1000)}
        assert len(shown) in {10, 11}
        assert {move % 100_000_000 for move in shown} == {min(shown) % 100_000_000}
        assert node.shown(name, node.now_ns).microjoules % 1000 == 0
        moves[name] = min(shown) % 100_000_000
    assert len(set(moves.values())) == 8


def test_counters_show_the_true_energy_to_their_resolution():
    node, _ = lived(4)
    first, last = START + 2 * SECOND, START + 4 * SECOND
    for name in ("gpu0", "gpu5", "cpu0", "dram1"):
        shown = [node.shown(name, t_ns) for t_ns in (first, last)]
        truth = node.joules(name, shown[1].moved_ns) - node.joules(name, shown[0].moved_ns)
        assert (shown[1].microjoules - shown[0].microjoules) / 1e6 == pytest.approx(truth, abs=2e-3)


def test_an_unused_gpu_draws_idle_power_whatever_the_others_do():
    node, _ = lived(30)
    assert node.joules("gpu6", node.now_ns) == pytest.approx(30 * node.devices["gpu6"].part.idle_watts)


def test_a_package_counter_wraps_at_its_range():
    meter = Meter(
        period_ns=1, phase_ns=0, unit_microjoules=15.3, base_microjoules=0, range_microjoules=DRAM_RANGE_MICROJOULES
    )
    joules = DRAM_RANGE_MICROJOULES / 1e6
    assert meter.show(joules - 1) == pytest.approx((joules - 1) * 1e6, abs=16)
    assert meter.show(joules + 2) == pytest.approx(2e6, abs=32)


def test_outlets_split_what_the_whole_node_draws_and_show_the_watts_of_their_last_second():
    node, _ = lived(20)
    outlets = [node.joules(name, node.now_ns) for name in ("outlet_a", "outlet_b")]
    inside = sum(
        node.joules(name, node.now_ns) for name, device in node.devices.items() if device.kind is not DeviceKind.OUTLET
    )
    assert 1.2 * inside < sum(outlets) < 2 * inside
    assert outlets[0] == pytest.approx(outlets[1], rel=0.05)
    shown = node.shown("outlet_a", node.now_ns)
    truth = node.joules("outlet_a", shown.moved_ns) - node.joules("outlet_a", shown.moved_ns - SECOND)
    assert shown.watts == pytest.approx(truth, abs=0.1)
    assert shown.microjoules % 360_000_000 == 0


def test_a_description_tells_idle_power_within_five_per_cent_or_not_at_all():
    node, _ = lived(0)
    told = node.describe("gpu2", tell_idle=True)
    part = node.devices["gpu2"].part
    assert 0 < abs(told.idle_watts / part.idle_watts - 1) <= 0.051
    assert 0 < abs(told.uplift_watts / part.uplift_watts - 1) <= 0.051
    silent = node.describe("gpu2", tell_idle=False)
    assert (silent.idle_watts, silent.uplift_watts, silent.max_watts) == (None, None, 700.0)
    assert node.describe("cpu0", tell_idle=True).wrap_microjoules == 262_143_328_850
