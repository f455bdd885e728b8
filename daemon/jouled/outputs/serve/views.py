"""The snapshot as the API and the page see it: times in Unix nanoseconds, energy in whole microjoules."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from jouled.model.device import Quality
from jouled.model.snapshot import DeviceView, EngineView, GroupBook, Owner, Snapshot
from jouled.model.units import NANOSECONDS_PER_SECOND
from jouled.outputs.metrics.values import without_credentials

_VERDICT_COUNTERS = {
    "slo_requests_total": "requests",
    "slo_tokens_total": "tokens",
    "slo_energy_joules_total": "uj",
}


def snapshot_view(snapshot: Snapshot, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `GET /api/v1/snapshot`; `balance_uj` is what the books are out by, which must be 0."""
    wall_ns = snapshot.wall_minus_core_ns
    return {
        "sequence": snapshot.sequence,
        "time_ns": snapshot.t_ns + wall_ns,
        "node": snapshot.node,
        "groups": snapshot.groups,
        "total": snapshot.total,
        "balance_uj": _balance(snapshot.total),
        "boundaries_uj": snapshot.boundaries_uj,
        "owners": _owners(snapshot),
        "devices": [_device(view, wall_ns) for view in snapshot.devices],
        "meters": [_device(view, wall_ns) for view in snapshot.meters],
        "node_power": _node_power(snapshot),
        "engines": [_engine(view, wall_ns) for view in snapshot.engines],
        "sources": snapshot.sources,
        "sinks": _sinks(snapshot),
        "degraded": snapshot.degraded,
        "tokens_per_joule": {labels[0]: value for labels, value in _gauge(snapshot, "tokens_per_joule").items()},
        "slos": _slos(snapshot),
        "requests": _requests(snapshot),
        "recent": snapshot.recent,
        "extra": dict(extra),
    }


def _node_power(snapshot: Snapshot) -> dict[str, Any]:
    """Which meters speak for the node and what they tell; `incomplete`: levels with meters that are not heard.

    beyond_parts_watts: what the node draws more than its devices, `None` where one of them is silent.
    """
    watts = _gauge(snapshot, "node_power_watts").get(())
    parts = [view.watts for view in snapshot.devices if view.device.quality is not Quality.ESTIMATED]
    told = [value for value in parts if value is not None]
    heard = _gauge(snapshot, "node_meters_heard")
    return {
        "watts": watts,
        "level": next((level for (level,), speaks in _gauge(snapshot, "node_level_speaks").items() if speaks), None),
        "beyond_parts_watts": watts - sum(told) if watts is not None and told and len(told) == len(parts) else None,
        "incomplete": [
            {"level": level, "heard": int(heard[level,]), "expected": int(expected)}
            for (level,), expected in _gauge(snapshot, "node_meters_expected").items()
            if heard[level,] < expected
        ],
    }


def _sinks(snapshot: Snapshot) -> list[dict[str, Any]]:
    """One object for each push sink; behind_seconds is the age of the oldest record that it has yet to take."""
    now_seconds = (snapshot.t_ns + snapshot.wall_minus_core_ns) / NANOSECONDS_PER_SECOND
    oldest = _gauge(snapshot, "sink_oldest_pending_timestamp_seconds")
    return [
        {
            "sink": name,
            "up": bool(up),
            "behind_seconds": max(now_seconds - oldest[name,], 0.0) if (name,) in oldest else 0.0,
        }
        for (name,), up in _gauge(snapshot, "sink_up").items()
    ]


def _balance(book: GroupBook) -> int:
    owned: int = sum(getattr(book, f"{owner}_uj") for owner in Owner)
    return book.measured_uj - owned - book.open_uj


def _gauge(snapshot: Snapshot, name: str) -> Mapping[tuple[str, ...], float]:
    return snapshot.gauges.get(name, {})


def _owners(snapshot: Snapshot) -> list[dict[str, Any]]:
    """One object for each engine, model and quality; engine and model are empty for devices of no engine."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (engine, model, owner, quality), amount in snapshot.counters.get("energy_joules_total", {}).items():
        row = rows.setdefault((engine, model, quality), {"engine": engine, "model": model, "quality": quality})
        row[f"{owner}_uj"] = int(amount)
    return list(rows.values())


def _slos(snapshot: Snapshot) -> list[dict[str, Any]]:
    """By SLO, over all engines: requests, tokens and energy by verdict, and good tokens per joule by boundary."""
    rows: dict[str, dict[str, Any]] = {}
    for counter, suffix in _VERDICT_COUNTERS.items():
        for (slo, _, _, verdict), value in snapshot.counters.get(counter, {}).items():
            row = rows.setdefault(slo, {"slo": slo, "good_tokens_per_joule": {}})
            key = f"{verdict}_{suffix}"
            row[key] = row.get(key, 0) + int(value)
    for (boundary, slo), value in _gauge(snapshot, "good_tokens_per_joule").items():
        rows.setdefault(slo, {"slo": slo, "good_tokens_per_joule": {}})["good_tokens_per_joule"][boundary] = value
    return list(rows.values())


def _requests(snapshot: Snapshot) -> dict[str, int]:
    outcomes: dict[str, int] = {}
    for (_, _, outcome), number in snapshot.counters.get("requests_total", {}).items():
        outcomes[outcome] = outcomes.get(outcome, 0) + int(number)
    return outcomes


def _device(view: DeviceView, wall_ns: int) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(view).items() if name not in {"device", "last_reading_ns"}}
    return {**msgspec.to_builtins(view.device), **shown, "last_reading_ns": _unix(view.last_reading_ns, wall_ns)}


def _engine(view: EngineView, wall_ns: int) -> dict[str, Any]:
    engine = replace(view.engine, url=without_credentials(view.engine.url))
    shown = {name: value for name, value in asdict(view).items() if name != "engine"}
    shown["watermark_ns"] = _unix(view.watermark_ns, wall_ns)
    shown["last_sample_ns"] = _unix(view.last_sample_ns, wall_ns)
    return {**asdict(engine), **shown}


def _unix(core_ns: int | None, wall_ns: int) -> int | None:
    return None if core_ns is None else core_ns + wall_ns
