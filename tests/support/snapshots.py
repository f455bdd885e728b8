"""A hand-made snapshot of a realistic node: 8 GPUs, 4 engines, 3 SLOs, 8 sources."""

from typing import Any

from msgspec.structs import replace

from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import Engine
from jouled.model.errors import SourceState
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome
from jouled.model.snapshot import DeviceView, EngineView, GroupBook, Histogram, Owner, Snapshot, SourceView

NOW_NS = 1_795_000_000_000_000_000
JOULE = 1_000_000
MODELS = ("llama-3.3-70b", "qwen3-32b", "mistral-small-24b", "gemma-3-27b")
ENGINES = tuple(f"vllm-{8000 + i}" for i in range(4))
SLOS = ("chat", "batch", "agent")
_PAIRS = tuple(zip(ENGINES, MODELS, strict=True))
QUALITY = Quality.MEASURED.value
BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
OWNER_MICROJOULES = {
    Owner.PREFILL: 210_000_001,
    Owner.DECODE: 640_000_002,
    Owner.RESIDENT: 90_000_003,
    Owner.UNREPORTED: 15_000_004,
    Owner.IDLE: 30_000_005,
    Owner.UNATTRIBUTED: 4_000_006,
    Owner.DOWNTIME: 0,
}
OPEN_MICROJOULES = 11_000_007


def receipt(number: int = 0, **changes: Any) -> Receipt:
    """A final receipt; the higher its number, the newer."""
    arrival_ns = NOW_NS - 60_000_000_000 + number * 1_000_000_000
    made = Receipt(
        id=f"chatcmpl-{number:032x}",
        engine=ENGINES[number % 4],
        model=MODELS[number % 4],
        outcome=Outcome.COMPLETED if number % 7 else Outcome.CANCELLED,
        arrival_ns=arrival_ns,
        first_token_ns=arrival_ns + 180_000_000,
        last_token_ns=arrival_ns + 6_000_000_000,
        prompt_tokens=900 + number,
        cached_prompt_tokens=128,
        generation_tokens=240,
        joules=321.5,
        joules_prefill=80.25,
        joules_decode=220.25,
        joules_resident=21.0,
        joules_host=30.0,
        sigma_joules=9.5,
        ttft_seconds=0.18,
        tpot_seconds=0.0244,
        e2e_seconds=6.0,
        good={"chat": True, "batch": True, "agent": False},
        tier="goldilocks",
        quality=Quality.MEASURED,
        provisional=False,
        validity="ok",
        cost=0.00003,
        currency="EUR",
        co2e_grams=0.03,
        trace_id=f"{number:032x}",
    )
    return replace(made, **changes)


def snapshot(sequence: int = 7) -> Snapshot:
    """The node, with books that balance to the microjoule."""
    group = _group(("gpu0", "gpu1", "gpu2", "gpu3", "gpu4", "gpu5", "gpu6", "gpu7"), ENGINES)
    return Snapshot(
        sequence=sequence,
        t_ns=NOW_NS,
        node="node17",
        groups=(group,),
        total=group,
        boundaries_uj={"compute": group.measured_uj, "node": group.measured_uj * 3 // 2},
        counters=_counters(group),
        gauges=_gauges(),
        histograms={"request_energy_joules": {(model,): _histogram() for model in MODELS}},
        devices=_devices(),
        meters=_meters(),
        engines=tuple(_engine(i) for i in range(4)),
        sources=_sources(),
        recent=tuple(receipt(number) for number in range(20, 0, -1)),
    )


def _group(devices: tuple[str, ...], engines: tuple[str, ...]) -> GroupBook:
    owners: dict[str, Any] = {f"{owner.value}_uj": 4 * amount for owner, amount in OWNER_MICROJOULES.items()}
    measured = sum(owners.values()) + OPEN_MICROJOULES
    return GroupBook(devices=devices, engines=engines, measured_uj=measured, open_uj=OPEN_MICROJOULES, **owners)


def _devices() -> tuple[DeviceView, ...]:
    gpus = tuple(
        DeviceView(
            device=Device(
                name=f"gpu{i}",
                kind=DeviceKind.GPU,
                parent="node",
                vendor="nvidia",
                product="H200 SXM",
                uuid=f"GPU-{i:08d}",
                pci_bus_id=f"00000000:{i + 16:02x}:00.0",
                index=i,
                source="nvml",
                method="total_energy",
            ),
            energy_uj=900_000 * JOULE + i,
            watts=310.0 + 45.5 * i if i != 7 else None,
            peak_watts=655.0,
            power_limit_watts=700.0,
            last_reading_ns=NOW_NS,
        )
        for i in range(8)
    )
    return gpus + tuple(
        DeviceView(
            device=Device(name=f"{kind.value}{i}", kind=kind, parent="node", source="rapl", max_watts=limit),
            energy_uj=70_000 * JOULE,
            watts=watts,
            peak_watts=watts + 20,
            last_reading_ns=NOW_NS,
        )
        for i in range(2)
        for kind, watts, limit in ((DeviceKind.CPU_PACKAGE, 143.0, 350.0), (DeviceKind.DRAM, 31.0, None))
    )


def _meters() -> tuple[DeviceView, ...]:
    rows = (("feed", DeviceKind.FEED), ("outlet-a", DeviceKind.OUTLET), ("outlet-b", DeviceKind.OUTLET))
    return tuple(
        DeviceView(device=Device(name=name, kind=kind), energy_uj=2_000_000 * JOULE, watts=4300.0 / (1 + bool(i)))
        for i, (name, kind) in enumerate(rows)
    )


def _engine(i: int) -> EngineView:
    return EngineView(
        engine=Engine(
            name=ENGINES[i],
            type="vllm",
            model=MODELS[i],
            devices=(f"gpu{2 * i}", f"gpu{2 * i + 1}"),
            version="0.33.0",
            precision="bfloat16",
            parallelism="tp2",
            driver="575.57",
            url=f"http://user:secret@127.0.0.1:{8000 + i}/metrics?key=1",
        ),
        watermark_ns=NOW_NS - 20_000_000_000,
        requests_running=12 + i,
        requests_waiting=i,
        coverage=0.998 if i else 0.62,
        generation_tokens_per_second=740.0 + i,
        last_sample_ns=NOW_NS - 2_000_000_000,
    )


def _sources() -> tuple[SourceView, ...]:
    ok = tuple(SourceView(source=name, state=SourceState.OK) for name in ("nvml", "estimate", *ENGINES, "pdu"))
    return (
        *ok,
        SourceView(
            source="rapl",
            state=SourceState.DENIED,
            reason="permission",
            message="energy_uj of package-0 may be read by root only",
            mend="sudo setfacl -m u:jouled:r /sys/class/powercap/intel-rapl:0/energy_uj",
        ),
    )


def _histogram() -> Histogram:
    counts = tuple(range(5, 5 + 10 * (len(BOUNDS) + 1), 10))
    exemplars = tuple((bound * 0.9, f"{i + 1:032x}", NOW_NS / 1e9) for i, bound in enumerate(BOUNDS))
    return Histogram(bounds=BOUNDS, counts=counts, sum=12345.5, exemplars=(*exemplars, None))


def _counters(group: GroupBook) -> dict[str, dict[tuple[str, ...], float]]:
    pairs = _PAIRS
    verdicts = ("good", "late", "failed")
    slo = [(s, e, m, v) for s in SLOS for e, m in pairs for v in verdicts]
    tiers = [(e, m, tier) for e, m in pairs for tier in ("bulk", "goldilocks", "low_latency")]
    leaves = [(view.device.name, view.device.kind.value) for view in _devices()]
    sources = [view.source for view in _sources()]
    return {
        "device_energy_joules_total": dict.fromkeys(leaves, 900000 * JOULE + 1),
        "device_throttle_seconds_total": {(f"gpu{i}", r): 1.5 for i in range(8) for r in ("power", "thermal")},
        "meter_energy_joules_total": {(v.device.name, v.device.kind.value): v.energy_uj for v in _meters()},
        "boundary_energy_joules_total": {("compute",): group.measured_uj, ("node",): group.measured_uj * 3 // 2},
        "residual_energy_joules_total": {(): 300_000 * JOULE},
        "residual_deficit_joules_total": {(): 0},
        "conversion_loss_joules_total": {("outlet", "node"): 100_000 * JOULE},
        "conversion_deficit_joules_total": {("outlet", "node"): 0},
        "engine_tokens_total": {
            (e, m, kind): 1_000_000 for e, m in pairs for kind in ("prompt_computed", "prompt_cached", "generation")
        },
        "energy_joules_total": {
            (e, m, owner.value, QUALITY): amount for e, m in pairs for owner, amount in OWNER_MICROJOULES.items()
        },
        "requests_total": {(e, m, o.value): 4000 for e, m in pairs for o in Outcome},
        "request_tokens_total": {
            (e, m, kind): 990_000 for e, m in pairs for kind in ("prompt_computed", "prompt_cached", "generation")
        },
        "attributed_energy_joules_total": {
            (e, m, c): 900 * JOULE for e, m in pairs for c in ("compute", "host", "residual", "facility_surplus")
        },
        "slo_requests_total": {key: {"good": 900, "late": 80, "failed": 20}[key[3]] for key in slo},
        "slo_tokens_total": {key: {"good": 216_000, "late": 19_000, "failed": 500}[key[3]] for key in slo},
        "slo_energy_joules_total": dict.fromkeys(slo, 90 * JOULE),
        "slo_deadline_tokens_total": {(s, e, m): 221_000 for s in SLOS for e, m in pairs},
        "tier_tokens_total": dict.fromkeys(tiers, 50_000),
        "tier_energy_joules_total": dict.fromkeys(tiers, 300 * JOULE),
        "energy_cost_total": {("EUR", m): 1.25 for m in MODELS},
        "hardware_cost_total": {("EUR", m): 20.5 for m in MODELS},
        "co2e_grams_total": {(m,): 812.5 for m in MODELS},
        "source_errors_total": {(s, "timeout"): 2 for s in sources},
        "source_covered_seconds_total": {(s,): 3600.0 for s in sources},
        "source_gap_seconds_total": {(s, "silent"): 1.0 for s in sources},
        "late_events_total": {("closed",): 3},
        "rejected_events_total": {("unknown_engine",): 4, ("duplicate",): 1},
        "label_overflow_total": {("model_name",): 0},
    }


def _gauges() -> dict[str, dict[tuple[str, ...], float]]:
    devices = _devices()
    return {
        "device_power_watts": {(v.device.name,): v.watts for v in devices if v.watts is not None},
        "device_power_peak_watts": {(v.device.name,): v.peak_watts for v in devices if v.peak_watts is not None},
        "device_power_limit_watts": {(f"gpu{i}",): 700.0 for i in range(8)},
        "meter_power_watts": {(v.device.name, v.device.kind.value): v.watts or 0.0 for v in _meters()},
        "device_valid": {
            (v.device.name, "ok" if v.watts is not None else "silent"): float(v.watts is not None) for v in devices
        },
        "device_known_ratio": {(v.device.name,): 1.0 for v in devices},
        "device_largest_gap_seconds": {(v.device.name,): 0.1 for v in devices},
        "device_energy_check_ratio": {(f"gpu{i}",): 0.99 for i in range(8)},
        "node_meters_expected": {("feed",): 1.0, ("outlet",): 2.0, ("node",): 1.0},
        "node_meters_heard": {("feed",): 1.0, ("outlet",): 1.0, ("node",): 1.0},
        "node_level_speaks": {("feed",): 1.0, ("outlet",): 0.0, ("node",): 0.0},
        "node_power_watts": {(): 4300.0},
        "calibration_offset_watts": {(): 250.0},
        "calibration_slope_ratio": {(): 1.06},
        "calibration_band_ratio": {(): 0.02},
        "open_energy_joules": {(QUALITY,): OPEN_MICROJOULES / JOULE},
        "books_watermark_timestamp_seconds": {(e,): NOW_NS / 1e9 - 20 for e in ENGINES},
        "tokens_per_joule": {("compute",): 0.94, ("node",): 0.69},
        "good_tokens_per_joule": {("compute", slo): 0.88 for slo in SLOS},
        "slo_attainment_lower_bound_ratio": {(e, m, s): 0.7 for e, m in _PAIRS for s in SLOS},
        "slo_attainment_upper_bound_ratio": {(e, m, s): 0.8 for e, m in _PAIRS for s in SLOS},
    }
