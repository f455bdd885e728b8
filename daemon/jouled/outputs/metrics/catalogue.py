"""Every metric that jouled publishes: the one place where a name, its labels and its meaning are written down."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from jouled.model.units import MICROJOULES_PER_JOULE

PREFIX = "jouled_"

_NOT_ADDITIVE = {
    "slo": "a request is judged by every SLO",
    "boundary": "boundaries contain one another",
    "meter": "meters contain one another",
    "level": "levels contain one another",
}


class Metric(Struct, frozen=True, kw_only=True):
    """One row of the contract.

    name: without the prefix `jouled_`, and the key in the snapshot's mappings. unit: of the published value, as it
    stands in the name. labels: in the order of the snapshot's label tuples. clock: `live` follows the meters within
    seconds, `book` moves when cells and requests become final, `own` is what jouled says of itself; live and book are
    never divided by each other. parts_per_unit: snapshot parts in a unit (microjoules in a joule).
    """

    name: str
    type: Literal["counter", "gauge", "histogram", "info", "stateset"]
    clock: Literal["live", "book", "own"]
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    parts_per_unit: int = 1

    @property
    def full_name(self) -> str:
        """The name on the page."""
        return PREFIX + self.name

    @property
    def documentation(self) -> str:
        """The HELP line: what it is, and over which labels a sum is wrong."""
        reasons = [f"{label} ({_NOT_ADDITIVE[label]})" for label in self.labels if label in _NOT_ADDITIVE]
        return f"{self.help} Do not sum() over {' or '.join(reasons)}." if reasons else self.help


def _joules(name: str, clock: Literal["live", "book"], labels: tuple[str, ...], text: str) -> Metric:
    return Metric(
        name=name,
        type="counter",
        clock=clock,
        help=text,
        unit="joules",
        labels=labels,
        parts_per_unit=MICROJOULES_PER_JOULE,
    )


def _counter(name: str, clock: Literal["live", "book", "own"], labels: tuple[str, ...], unit: str, text: str) -> Metric:
    return Metric(name=name, type="counter", clock=clock, help=text, unit=unit, labels=labels)


def _gauge(name: str, clock: Literal["live", "book", "own"], labels: tuple[str, ...], unit: str, text: str) -> Metric:
    return Metric(name=name, type="gauge", clock=clock, help=text, unit=unit, labels=labels)


def _info(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name=name, type="info", clock="own", help=text, labels=labels)


DEVICES = (
    _joules(
        "device_energy_joules_total",
        "live",
        ("device", "kind"),
        "Energy used by a device that contains no other (gpu, cpu_package, dram, or a module that replaces its parts).",
    ),
    _gauge("device_power_watts", "live", ("device",), "watts", "Power of the device now."),
    _gauge("device_power_peak_watts", "live", ("device",), "watts", "Highest power of the device in the last 60 s."),
    _gauge("device_power_limit_watts", "live", ("device",), "watts", "Enforced power limit of the device."),
    _counter(
        "device_throttle_seconds_total",
        "live",
        ("device", "reason"),
        "seconds",
        "Time in which the device ran below its clocks, by reason, as its driver counts it.",
    ),
    _info(
        "device_info",
        ("device", "kind", "uuid", "pci_bus_id", "index", "vendor", "product", "method", "quality", "parent"),
        "What a device is and how it is read; join it by device, or by uuid and pci_bus_id to other exporters.",
    ),
)

TRUST = (
    _gauge(
        "device_valid",
        "live",
        ("device", "reason"),
        "",
        "Whether the last five minutes of a device or meter can be trusted (1), else (0) why not: silent, gap (above"
        " 3 s and three of its intervals), coverage (energy of less than 95 % of the time is known), counter_disagrees"
        " (by more than 5 % with the power beside it).",
    ),
    _gauge("device_known_ratio", "live", ("device",), "ratio", "Share of the last five minutes whose energy is known."),
    _gauge("device_largest_gap_seconds", "live", ("device",), "seconds", "Longest time between two readings in them."),
    _gauge(
        "device_energy_check_ratio",
        "live",
        ("device",),
        "ratio",
        "Energy by the device's counter over its integrated power, in the last whole minute.",
    ),
    _gauge(
        "node_meters_expected", "live", ("level",), "meters", "Meters that together measure the whole node, by level."
    ),
    _gauge("node_meters_heard", "live", ("level",), "meters", "Those of them that are heard now."),
    _gauge("node_power_watts", "live", (), "watts", "Power of the node now, by the level that speaks for it."),
    _gauge(
        "node_level_speaks",
        "live",
        ("level",),
        "",
        "Whether the boundary node is booked by this level now: the highest one of which every meter is heard.",
    ),
    _gauge(
        "calibration_offset_watts",
        "live",
        (),
        "watts",
        "Power of the node with its parts at none: the node's meter fitted to the sum of its parts over the last hour.",
    ),
    _gauge(
        "calibration_slope_ratio", "live", (), "ratio", "Watts of the node for each watt of its parts, by the same fit."
    ),
    _gauge(
        "calibration_band_ratio",
        "live",
        (),
        "ratio",
        "Half of the 95 % band of that fit for a minute's mean power, over the mean power.",
    ),
)

METERS = (
    _joules(
        "meter_energy_joules_total",
        "live",
        ("meter", "level"),
        "Energy seen by a meter that contains other devices (module, node, psu, outlet, feed, shelf).",
    ),
    _gauge("meter_power_watts", "live", ("meter", "level"), "watts", "Power seen by the meter now."),
    _joules(
        "boundary_energy_joules_total",
        "live",
        ("boundary",),
        "Measured energy inside a boundary: compute (devices that engines run on and unused accelerators), node,"
        " facility.",
    ),
    _joules(
        "conversion_loss_joules_total",
        "live",
        ("upper", "lower"),
        "Energy that a level of meters tells beyond the level below (outlets beyond power supplies or the node's own"
        " meter): mostly losses of conversion, over settled windows.",
    ),
    _joules(
        "conversion_deficit_joules_total",
        "live",
        ("upper", "lower"),
        "Energy that a level of meters tells beyond the level above it: meters that disagree.",
    ),
    _joules(
        "residual_energy_joules_total",
        "live",
        (),
        "Energy of the node beyond its measured parts (fans, board, conversion losses), over settled windows.",
    ),
    _joules(
        "residual_deficit_joules_total",
        "live",
        (),
        "Energy by which the parts exceeded the node, over settled windows; should stay near zero.",
    ),
)

ENGINES = (
    _counter(
        "engine_tokens_total",
        "live",
        ("engine", "model_name", "kind"),
        "tokens",
        "Tokens by the engine's own counters: prompt_computed, prompt_cached, generation. Of pools that share requests"
        " the prompt is counted with prefill and generation with decode.",
    ),
    _info(
        "engine_info",
        (
            "engine",
            "engine_type",
            "model_name",
            "version",
            "precision",
            "role",
            "parallelism",
            "gpus",
            "driver",
            "url",
            "kv_connector",
            "speculation",
            "token_counters",
        ),
        "What an engine is; joins a change in efficiency to a change in software. token_counters: live, or at_finish"
        " where generated tokens are counted when their request finishes: rates over less than several requests'"
        " length then come in bursts.",
    ),
    _gauge("engine_devices", "own", ("engine",), "devices", "Devices that the engine runs on."),
    _joules(
        "engine_reported_energy_joules_total",
        "live",
        ("engine",),
        "Energy of its accelerators by the engine's own meter, where it has one; for comparison, never for the books.",
    ),
    _counter(
        "engine_forward_seconds_total",
        "live",
        ("engine", "category"),
        "seconds",
        "Time in which the engine's accelerators computed, by kind of step, as the engine itself times it (SGLang with"
        " SGLANG_ENABLE_METRICS_DEVICE_TIMER): of one rank of each replica.",
    ),
    _gauge(
        "engine_energy_check_ratio",
        "live",
        ("engine",),
        "ratio",
        "Energy by the engine's own meter over that of the meters of its devices, in the last whole minute.",
    ),
)

BOOKS = (
    _joules(
        "energy_joules_total",
        "book",
        ("engine", "model_name", "owner", "quality"),
        "Energy by owner: prefill, decode, resident, unreported, idle, unattributed, downtime. With"
        " jouled_open_energy_joules of quality measured it adds up to the compute boundary exactly.",
    ),
    _gauge(
        "open_energy_joules",
        "book",
        ("quality",),
        "joules",
        "Measured energy that has no final owner yet: cells not closed, or held for requests in flight.",
    ),
    _gauge(
        "books_watermark_timestamp_seconds",
        "book",
        ("engine",),
        "seconds",
        "Unix time up to which the engine's books are final.",
    ),
    _counter(
        "requests_total",
        "book",
        ("engine", "model_name", "outcome"),
        "requests",
        "Finished requests by outcome: completed, cancelled, failed. One that pools shared counts with decode.",
    ),
    _counter(
        "request_tokens_total",
        "book",
        ("engine", "model_name", "kind"),
        "tokens",
        "Tokens of finished requests as their events told; over jouled_engine_tokens_total it is the event coverage.",
    ),
    _counter(
        "unreported_tokens_total",
        "book",
        ("engine", "model_name", "kind"),
        "tokens",
        "Tokens that the engine counted and no request event told of (client aborts, dropped or sampled spans), by"
        " kind: prompt (computed and cached), generation. With the tokens of events and those in flight it adds up to"
        " the engine's counters; the energy behind it is that of owner unreported.",
    ),
    _joules(
        "attributed_energy_joules_total",
        "book",
        ("engine", "model_name", "component"),
        "Energy of finished requests by component: compute, host, residual, facility_surplus; the components are"
        " disjoint.",
    ),
    Metric(
        name="request_energy_joules",
        type="histogram",
        clock="book",
        help="Energy of a finished request on its compute devices; exemplars carry its trace_id.",
        unit="joules",
        labels=("model_name",),
    ),
)

SERVICE = (
    _counter(
        "slo_requests_total",
        "book",
        ("slo", "engine", "model_name", "verdict"),
        "requests",
        "Finished requests by verdict: good, late, failed (cancelled ones count as failed).",
    ),
    _counter(
        "slo_tokens_total",
        "book",
        ("slo", "engine", "model_name", "verdict"),
        "tokens",
        "Generated tokens of finished requests by verdict; those of verdict good are the goodput.",
    ),
    _counter(
        "slo_deadline_tokens_total",
        "book",
        ("slo", "engine", "model_name"),
        "tokens",
        "Generated tokens of completed requests that came by their own deadline, arrival + ttft + i * tpot, with decode"
        " taken as even in time; of SLOs that limit both.",
    ),
    _gauge(
        "slo_attainment_lower_bound_ratio",
        "live",
        ("engine", "model_name", "slo"),
        "ratio",
        "Share of the requests of the last 5 minutes that kept the SLO, at the least, by the engine's own histograms;"
        " only of engines without request events, which give the exact figure.",
    ),
    _gauge(
        "slo_attainment_upper_bound_ratio",
        "live",
        ("engine", "model_name", "slo"),
        "ratio",
        "Share of the requests of the last 5 minutes that kept the SLO, at the most; see the lower bound.",
    ),
    _joules(
        "slo_energy_joules_total",
        "book",
        ("slo", "engine", "model_name", "verdict"),
        "Energy of finished requests by verdict; what is not good is waste.",
    ),
    _counter(
        "tier_tokens_total",
        "book",
        ("engine", "model_name", "tier"),
        "tokens",
        "Generated tokens by tier of interactivity (tokens per second and user).",
    ),
    _joules("tier_energy_joules_total", "book", ("engine", "model_name", "tier"), "Energy by tier of interactivity."),
    _joules("tenant_energy_joules_total", "book", ("tenant", "model_name"), "Energy of a tenant's finished requests."),
    _counter(
        "tenant_tokens_total",
        "book",
        ("tenant", "model_name"),
        "tokens",
        "Generated tokens of a tenant's finished requests.",
    ),
)

EFFICIENCY = (
    _gauge(
        "tokens_per_joule",
        "live",
        ("boundary",),
        "tokens_per_joule",
        "Generated tokens per joule over the last 60 s, or over the last 10 min while an engine counts tokens at"
        " finish only (jouled_engine_info, token_counters); the same figure is tokens per second per watt.",
    ),
    _gauge(
        "good_tokens_per_joule",
        "book",
        ("boundary", "slo"),
        "tokens_per_joule",
        "Generated tokens of good requests per joule over the last 60 s of the books; absent while request events tell"
        " of less than 90 % of an engine's tokens.",
    ),
)

COST = (
    _counter(
        "energy_cost_total",
        "book",
        ("currency", "model_name"),
        "units of the currency",
        "Cost of the energy of finished requests.",
    ),
    _counter(
        "energy_credit_total",
        "book",
        ("currency", "model_name"),
        "units of the currency",
        "What energy used at a negative price earned.",
    ),
    _counter(
        "hardware_cost_total",
        "book",
        ("currency", "model_name"),
        "units of the currency",
        "Hardware cost of finished requests by their time on the node.",
    ),
    _counter(
        "co2e_grams_total", "book", ("model_name",), "grams", "Carbon dioxide equivalent of the energy of requests."
    ),
)

OWN = (
    _gauge("source_up", "own", ("source",), "", "Whether the source gives readings (1) or not (0)."),
    Metric(
        name="source_state",
        type="stateset",
        clock="own",
        help="State of the source: ok, stale, down, denied, absent, released, quarantined.",
        labels=("source",),
    ),
    _counter("source_errors_total", "own", ("source", "reason"), "errors", "Failed reads of the source."),
    _counter(
        "source_covered_seconds_total",
        "own",
        ("source",),
        "seconds",
        "Time over which the source's readings are whole.",
    ),
    _counter(
        "source_gap_seconds_total", "own", ("source", "reason"), "seconds", "Time over which readings are missing."
    ),
    Metric(
        name="source_read_duration_seconds",
        type="histogram",
        clock="own",
        help="Time that one read of a power source took, over all sources.",
        unit="seconds",
    ),
    Metric(
        name="sample_lateness_seconds",
        type="histogram",
        clock="own",
        help="Time after its tick at which a read of a power source began, over all sources.",
        unit="seconds",
    ),
    _counter(
        "late_events_total",
        "own",
        ("reason",),
        "events",
        "Request events that came after their time was closed in the books.",
    ),
    _counter(
        "merged_events_total",
        "own",
        ("engine",),
        "events",
        "Request events that told once more of a request, as a gateway and the engine do; it counts once.",
    ),
    _counter("rejected_events_total", "own", ("reason",), "events", "Request events and readings that were refused."),
    _counter(
        "forwarded_bodies_total",
        "own",
        ("result",),
        "bodies",
        "Trace bodies for the collector of [requests.otlp] forward: sent, full (queue), refused, unreachable, looped.",
    ),
    _counter(
        "receipts_dropped_total",
        "own",
        ("reason",),
        "receipts",
        "Final receipts that no commit ever held: store_failing (it could not be written, or a commit hung, for too"
        " long). Their joules are in all other counters.",
    ),
    _counter(
        "receipts_removed_total",
        "own",
        ("reason",),
        "receipts",
        "Receipts that retention removed from the store: age (receipt_days), size (receipt_mebibytes).",
    ),
    _counter(
        "restarts_total",
        "own",
        ("result",),
        "restarts",
        "Starts on the books of an earlier run: resumed (open requests lived on), books_only (their energy became"
        " unattributed; the log says why).",
    ),
    _counter(
        "label_overflow_total",
        "own",
        ("label",),
        "events",
        "Events whose label value went to other because there are too many values of that label.",
    ),
    _counter(
        "http_refused_total",
        "own",
        ("reason",),
        "requests",
        "Requests and connections that the daemon's own ports refused: wrong_credentials, too_many_guesses,"
        " connections, header_too_slow and others, else the name of the HTTP status.",
    ),
    _counter(
        "sink_records_total",
        "own",
        ("sink", "kind", "result"),
        "records",
        "Moments (points) and receipts that a sink has: accepted, or rejected for good by the other side; and repeated,"
        " those sent once more behind an outage.",
    ),
    _counter(
        "sink_failures_total",
        "own",
        ("sink", "reason"),
        "deliveries",
        "Deliveries of which the other side took nothing; what was in them is sent again.",
    ),
    _gauge("sink_up", "own", ("sink",), "", "Whether the last delivery to a sink was taken."),
    _gauge(
        "sink_last_success_timestamp_seconds",
        "own",
        ("sink",),
        "seconds",
        "Unix time of the last delivery that was taken.",
    ),
    _gauge(
        "sink_oldest_pending_timestamp_seconds",
        "own",
        ("sink",),
        "seconds",
        "Unix time of the oldest record that a sink has yet to take; absent while none waits.",
    ),
    _gauge("spool_bytes", "own", ("kind",), "bytes", "Bytes of the points that wait for sinks."),
    _counter(
        "spool_dropped_total",
        "own",
        ("sink", "kind", "reason"),
        "records",
        "Records removed before a sink had them: age, size (limits of [spool]), store_failing (it could not be written"
        " for too long), store_lost (the file was damaged and set aside), damaged (one record was).",
    ),
    _gauge(
        "config_last_reload_successful",
        "own",
        (),
        "",
        "Whether the configuration was good when it was last read; a bad one is refused and the old one stays.",
    ),
    _gauge(
        "config_last_reload_success_timestamp_seconds",
        "own",
        (),
        "seconds",
        "Unix time since which the configuration is in effect.",
    ),
    _gauge(
        "store_failing",
        "own",
        (),
        "",
        "1 while the books cannot be committed: all other series stand still at the last commit.",
    ),
    _gauge("page_series", "own", (), "series", "Series on this page."),
    _gauge(
        "page_series_dropped", "own", (), "series", "Series left out of this page because it reached its limit of 5000."
    ),
    _info("build_info", ("version", "python"), "Version of jouled and of the Python that runs it."),
    _counter(
        "process_cpu_seconds_total",
        "own",
        ("process",),
        "seconds",
        "CPU time, user and system, of the daemon and of its children, finished ones included.",
    ),
    _gauge(
        "process_resident_memory_bytes",
        "own",
        ("process",),
        "bytes",
        "Resident memory of the daemon and of its living children.",
    ),
    _gauge("process_open_fds", "own", ("process",), "", "Open file descriptors of the daemon."),
    _gauge("process_start_time_seconds", "own", ("process",), "seconds", "Unix time at which the daemon started."),
)

GROUPS: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    ("Devices", DEVICES),
    ("How far meters can be trusted", TRUST),
    ("Meters and boundaries", METERS),
    ("Engines", ENGINES),
    ("Books", BOOKS),
    ("Service levels, tiers and tenants", SERVICE),
    ("Efficiency", EFFICIENCY),
    ("Cost", COST),
    ("jouled itself", OWN),
)
"""Groups as the reference shows them; families stand in this order on the page."""

CATALOGUE: dict[str, Metric] = {metric.name: metric for _, metrics in GROUPS for metric in metrics}


def families_off(patterns: Iterable[str]) -> frozenset[str]:
    """The names, without the prefix, of the families that these full names mean; `*` stands at the end only.

    Raises:
        ValueError: one of them means none.
    """
    found: set[str] = set()
    for pattern in patterns:
        meant = {metric.name for metric in CATALOGUE.values() if _means(pattern, metric.full_name)}
        if not meant:
            raise ValueError(f"`{pattern}` is no family of jouled")
        found |= meant
    return frozenset(found)


def _means(pattern: str, full_name: str) -> bool:
    return full_name.startswith(pattern[:-1]) if pattern.endswith("*") else full_name == pattern
