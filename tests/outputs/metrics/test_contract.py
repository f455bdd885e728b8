"""What the core really puts into a snapshot, against the catalogue."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from tests.core.scenario import PARAMETERS, START, Node, request, run

from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceState
from jouled.model.parameters import Price
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading, SourceReport
from jouled.model.requests import Outcome
from jouled.outputs.metrics.catalogue import CATALOGUE
from jouled.outputs.metrics.exposition import Exposition, Format

SECOND = 1_000_000_000


def busy_node():
    requests = tuple(
        request(f"r{i}", 1.0 + i, tenant="red", trace_id=f"{i + 1:032x}", outcome=list(Outcome)[i % 3])
        for i in range(20)
    )
    node = Node(requests, samples=True)
    others = [
        Device(name="server", kind=DeviceKind.NODE),
        SourceReport(source="pdu", state=SourceState.DOWN, t_ns=START, reason="timeout"),
        DeviceStatus(device="gpu0", t_ns=START, power_limit_watts=700.0, throttle_seconds={"thermal": 1.0}),
        *(PowerReading("server", START + k * SECOND, 900.0) for k in range(40)),
        EnergyReading("nowhere", START, 1),
    ]
    price = Price(price_per_kwh=0.3, hardware_price_per_hour=2.0, pue=1.2, grid_grams_per_kwh=400.0)
    parameters = type(PARAMETERS)(slos=PARAMETERS.slos, price=price, by_tenant=True)
    timed = sorted([*others, *node.inputs()], key=lambda item: getattr(item, "last_token_ns", getattr(item, "t_ns", 0)))
    return run(timed, parameters=parameters).snapshot


def test_the_core_fills_the_catalogue_label_for_label():
    snapshot = busy_node()
    told = {**snapshot.counters, **snapshot.gauges, **snapshot.histograms}
    assert told.keys() <= CATALOGUE.keys()
    kinds = {"counter": snapshot.counters, "gauge": snapshot.gauges, "histogram": snapshot.histograms}
    for kind, families in kinds.items():
        for name, values in families.items():
            assert CATALOGUE[name].type == kind, name
            assert {len(labels) for labels in values} <= {len(CATALOGUE[name].labels)}, name
    expected = {"energy_joules_total", "slo_energy_joules_total", "tenant_energy_joules_total", "energy_cost_total"}
    assert expected | {"request_energy_joules", "tokens_per_joule", "books_watermark_timestamp_seconds"} <= told.keys()


def test_the_page_of_the_core_passes_the_strict_parser_and_balances():
    snapshot = busy_node()
    page = Exposition("1.2.3").page(snapshot, Format.OPENMETRICS).body.decode()
    families = {family.name: family for family in parse_openmetrics(page)}

    def total(name):
        return sum(sample.value for sample in families[name].samples)

    booked = total("jouled_energy_joules") + total("jouled_open_energy_joules")
    compute = [s.value for s in families["jouled_boundary_energy_joules"].samples if s.labels["boundary"] == "compute"]
    assert abs(booked - compute[0]) <= 1e-9 * booked
    assert any(sample.exemplar for sample in families["jouled_request_energy_joules"].samples)
