"""A flood of label values from outside: series at their limit, memory flat, sums right."""

from msgspec.structs import replace
from tests.core.scenario import PARAMETERS, Node, request, run

from jouled.core.accounting.counters import OTHER, BoundedLabel, CounterTable
from jouled.model.parameters import Limits

LIMITS = Limits(models=16, tenants=50, label_length=32)


def test_a_million_values_take_the_place_of_fifty():
    counters = CounterTable()
    label = BoundedLabel("tenant", LIMITS.tenants, LIMITS, counters)
    kept = {label.bound(f"tenant-{number}" + "x" * 100) for number in range(1_000_000)}
    assert len(kept) == LIMITS.tenants + 1
    assert all(len(value) <= LIMITS.label_length for value in kept)
    assert len(label._known) == LIMITS.tenants
    assert counters.get("label_overflow_total", ("tenant",)) == 1_000_000 - LIMITS.tenants


def test_sums_over_a_flood_of_tenants_are_right():
    requests = [request(f"r{n}", 1.0 + 0.05 * n, decode=0.5, generated=7, tenant=f"tenant-{n}") for n in range(300)]
    result = run(Node(tuple(requests)).inputs(), parameters=replace(PARAMETERS, by_tenant=True, limits=LIMITS))
    tokens = result.snapshot.counters["tenant_tokens_total"]
    energy = result.snapshot.counters["tenant_energy_joules_total"]
    assert len(tokens) == len(energy) == LIMITS.tenants + 1
    assert sum(tokens.values()) == 300 * 7
    assert tokens[OTHER, next(iter(tokens))[1]] == 250 * 7
    finals = result.snapshot.counters["attributed_energy_joules_total"]
    assert sum(energy.values()) == sum(v for labels, v in finals.items() if labels[2] == "compute")
