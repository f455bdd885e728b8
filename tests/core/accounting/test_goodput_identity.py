"""The identity of goodput and energy over a whole node, from the metrics that it publishes."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from tests.core.scenario import SECOND, START, Node, Result, request, run, when

from jouled.model.device import Device, DeviceKind
from jouled.model.parameters import Parameters, Price, Slo
from jouled.model.readings import PowerReading
from jouled.model.requests import Outcome
from jouled.outputs.metrics.exposition import Exposition, Format

PUE = 1.3
NODE_WATTS = 900
SECONDS = 120
PARAMETERS = Parameters(slos=(Slo("chat", ttft=500.0, tpot=50.0),), price=Price(pue=PUE))


def node_with_an_outlet() -> Result:
    """30 requests on a GPU in a node of 900 W: ten good, ten with a late first token, ten cancelled."""
    kinds = ({}, {"prefill": 0.9}, {"outcome": Outcome.CANCELLED})
    requests = tuple(request(f"r{i}", 2.0 + 3.0 * i, generated=50 + i, **kinds[i % 3]) for i in range(30))
    node = Node(requests, seconds=float(SECONDS), samples=True)
    outlet = Device(name="outlet", kind=DeviceKind.NODE, source="pdu", max_watts=5000.0)
    watts = [PowerReading("outlet", START + k * SECOND, NODE_WATTS) for k in range(SECONDS + 1)]
    timed = sorted([*node.inputs()[2:], *watts], key=when)
    return run([outlet, *node.devices(), node.engine, *timed], parameters=PARAMETERS)


@pytest.fixture(scope="module")
def page() -> dict[str, list]:
    """The samples of the node's metrics page, by name."""
    text = Exposition("1.2.3").page(node_with_an_outlet().snapshot, Format.OPENMETRICS).body.decode()
    found: dict[str, list] = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix("jouled_"), []).append(sample)
    return found


def total(page: dict[str, list], name: str, **labels: str) -> float:
    """`sum(name{labels})`."""
    values = [s.value for s in page[name] if all(s.labels[key] == value for key, value in labels.items())]
    assert values, (name, labels)
    return sum(values)


def test_good_tokens_per_facility_joule_is_the_product_of_its_factors(page):
    tokens = total(page, "request_tokens_total", kind="generation")
    good_tokens = total(page, "slo_tokens_total", slo="chat", verdict="good")
    requests_joules = total(page, "attributed_energy_joules_total", component="compute")
    compute, node, facility = (
        total(page, "boundary_energy_joules_total", boundary=name) for name in ("compute", "node", "facility")
    )
    product = (
        tokens / requests_joules * (good_tokens / tokens) * (requests_joules / compute) * (compute / node) * (1 / PUE)
    )
    assert good_tokens / facility == pytest.approx(product, rel=1e-8)


def test_each_factor_is_what_the_node_was_made_to_be(page):
    """The identity alone would hold for any figures."""
    assert total(page, "request_tokens_total", kind="generation") == sum(50 + i for i in range(30))
    verdicts = {v: total(page, "slo_tokens_total", slo="chat", verdict=v) for v in ("good", "late", "failed")}
    assert verdicts == {v: sum(50 + i for i in range(k, 30, 3)) for k, v in enumerate(("good", "late", "failed"))}
    assert total(page, "boundary_energy_joules_total", boundary="node") == NODE_WATTS * SECONDS
    assert total(page, "boundary_energy_joules_total", boundary="facility") == pytest.approx(
        NODE_WATTS * SECONDS * PUE, rel=1e-9
    )
    busy_seconds = 20 * 2.2 + 10 * 2.9
    compute = 100.0 * SECONDS + 80.0 * busy_seconds
    assert total(page, "boundary_energy_joules_total", boundary="compute") == pytest.approx(compute, rel=1e-6)


def test_joules_of_requests_are_the_same_in_every_book(page):
    of_requests = total(page, "attributed_energy_joules_total", component="compute")
    owners = sum(total(page, "energy_joules_total", owner=name) for name in ("prefill", "decode", "resident"))
    assert owners == pytest.approx(of_requests, abs=1e-9)
    assert total(page, "slo_energy_joules_total", slo="chat") == pytest.approx(of_requests, abs=1e-9)
    assert total(page, "tier_energy_joules_total") == pytest.approx(of_requests, abs=1e-9)
    assert total(page, "request_energy_joules_sum") == pytest.approx(of_requests, abs=1e-6)
    everything = total(page, "energy_joules_total") + total(page, "open_energy_joules")
    assert everything == pytest.approx(total(page, "boundary_energy_joules_total", boundary="compute"), abs=1e-9)


def test_tokens_in_time_are_at_least_the_good_ones_and_less_than_the_late_ones_more(page):
    in_time = total(page, "slo_deadline_tokens_total", slo="chat")
    good, late = (total(page, "slo_tokens_total", slo="chat", verdict=v) for v in ("good", "late"))
    assert good < in_time < good + late


def test_an_slo_without_both_limits_has_no_deadlines():
    parameters = Parameters(slos=(Slo("first", ttft=500.0), Slo("whole", e2el=9000.0)))
    counters = run(Node((request("a", 2.0),)).inputs(), parameters=parameters).snapshot.counters
    assert "slo_deadline_tokens_total" not in counters
    assert {labels[0] for labels in counters["slo_tokens_total"]} == {"first", "whole"}


def good_ratios(told: int) -> set[str]:
    """Boundaries with a ratio of goodput when so many of every ten requests have an event."""
    requests = tuple(request(f"r{i}", 2.0 + 2.5 * i) for i in range(44))
    node = Node(requests, seconds=120.0, samples=True)
    silent = {f"r{i}" for i in range(44) if i % 10 >= told}
    snapshot = run([item for item in node.inputs() if getattr(item, "id", "") not in silent]).snapshot
    return {boundary for boundary, _ in snapshot.gauges.get("good_tokens_per_joule", {})}


def test_a_sample_of_the_requests_makes_no_ratio_of_goodput():
    assert good_ratios(10) == {"compute"}
    assert good_ratios(5) == set()
    assert good_ratios(0) == set()
