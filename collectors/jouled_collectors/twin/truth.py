"""The truth about every joule, in whole microjoules, as `/truth` and a recording's truth file show it. Pure.

Per engine and in total: energy of the accelerators = finished + aborted + idle + in_flight, to the rounding of each
request. Accelerators of no engine are idle.
"""

from collections.abc import Iterable
from typing import Any

from jouled_collectors.twin.node import Node
from jouled_collectors.twin.scheduler import EngineSimulation, Truth

_SUMMED = ("measured_uj", "finished_uj", "aborted_uj", "idle_uj", "in_flight_uj", "requests", "aborted")


class Sums:
    """Running sums over the requests of one engine that have ended."""

    def __init__(self) -> None:
        self.requests = 0
        self.aborted = 0
        self.finished_uj = 0
        self.aborted_uj = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0

    def add(self, truth: Truth) -> None:
        """Count one more."""
        if truth.aborted:
            self.aborted += 1
            self.aborted_uj += truth.microjoules
            return
        self.requests += 1
        self.finished_uj += truth.microjoules
        self.prompt_tokens += truth.request.arrival.prompt_tokens
        self.generation_tokens += truth.request.generated


def request_view(truth: Truth) -> dict[str, Any]:
    """One request as the truth shows it. Times are those of the twin's clock, nanoseconds."""
    request, arrival = truth.request, truth.request.arrival
    return {
        "engine": truth.engine,
        "outcome": "aborted" if truth.aborted else "completed",
        "uj": truth.microjoules,
        "prefill_uj": truth.prefill_uj,
        "decode_uj": truth.decode_uj,
        "resident_uj": truth.resident_uj,
        "prompt_tokens": arrival.prompt_tokens,
        "generation_tokens": request.generated,
        "arrival_ns": arrival.arrival_ns,
        "scheduled_ns": request.scheduled_ns,
        "first_token_ns": request.first_token_ns,
        "finished_ns": request.last_token_ns,
    }


def engine_view(node: Node, engine: EngineSimulation, sums: Sums) -> dict[str, Any]:
    """Where the energy of one engine's accelerators went, up to now."""
    now_ns = node.now_ns
    return {
        "devices": engine.spec.devices,
        "measured_uj": round(sum(node.joules(device, now_ns) for device in engine.spec.devices) * 1e6),
        "finished_uj": sums.finished_uj,
        "aborted_uj": sums.aborted_uj,
        "idle_uj": round(node.engine_idle_joules(engine, now_ns) * 1e6),
        "in_flight_uj": round(engine.in_flight_joules(now_ns) * 1e6),
        "requests": sums.requests,
        "aborted": sums.aborted,
        "prompt_tokens": sums.prompt_tokens,
        "generation_tokens": sums.generation_tokens,
        "running": engine.running,
        "waiting": engine.waiting,
    }


def books(node: Node, sums: dict[str, Sums]) -> dict[str, Any]:
    """Devices and engines up to now; all energies since the twin's start."""
    engines = {name: engine_view(node, engine, sums[name]) for name, engine in node.engines.items()}
    devices: dict[str, dict[str, Any]] = {
        name: {"kind": device.kind.value, "uj": round(node.joules(name, node.now_ns) * 1e6)}
        for name, device in node.devices.items()
    }
    total = {key: sum(view[key] for view in engines.values()) for key in _SUMMED}
    unused_uj = sum(devices[name]["uj"] for name in node.unused)
    total["measured_uj"] += unused_uj
    total["idle_uj"] += unused_uj
    return {"t_ns": node.now_ns, "started_ns": node.start_ns, "devices": devices, "engines": engines, "total": total}


def truth_of(node: Node, ended: Iterable[Truth]) -> dict[str, Any]:
    """The whole truth about a stretch of which all ended requests are at hand."""
    sums = {name: Sums() for name in node.engines}
    requests = {}
    for truth in ended:
        sums[truth.engine].add(truth)
        requests[truth.request.arrival.id] = request_view(truth)
    return {**books(node, sums), "requests": requests}
