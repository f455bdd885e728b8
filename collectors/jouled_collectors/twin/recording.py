"""A stretch of the twin's life as a recording, in virtual time, and its truth: to grade an attribution offline."""

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from jouled.model.device import Device, DeviceKind
from jouled_collectors.twin.load import Load
from jouled_collectors.twin.node import Node, priors
from jouled_collectors.twin.physics import seeded
from jouled_collectors.twin.scheduler import Truth
from jouled_collectors.twin.truth import truth_of

START_NS = 1_800_000_000_000_000_000
_LEAD_IN_NS = 5_000_000_000
_SLICE_NS = 100_000_000
_OUTLET_POLL_NS = 1_000_000_000
_POLL_JITTER_NS = 2_000_000
_TAIL_SLICES = 20


class RecordingOptions(Struct, frozen=True, kw_only=True):
    """What to record. seconds: of arrivals; the recording goes on until the last request has ended.

    poll_seconds: between two reads of the accelerators. page_seconds: between two looks at the engines' pages.
    tell_idle: give idle and uplift watts with the devices. tell_starts: add `request_start` lines.
    """

    seconds: float = 600.0
    seed: int = 1
    load: Load = Load()
    poll_seconds: float = 0.02
    page_seconds: float = 5.0
    tell_idle: bool = True
    tell_starts: bool = False


def write_recording(options: RecordingOptions, recording: Path, truth: Path) -> int:
    """Write a recording and its truth (one JSON object, see `truth.py`); the number of requests that ended in it."""
    node = Node(options.seed, options.load, START_NS, arrivals_from_ns=START_NS + _LEAD_IN_NS)
    lines: list[tuple[int, bytes]] = []
    ended = _live(node, options, lines)
    noise = seeded(options.seed, "seen")
    for one in ended:
        if not one.aborted:
            lines += _request_lines(one, noise.uniform(0.02, 1.0), tell_start=options.tell_starts)
    lines.sort(key=itemgetter(0))
    with recording.open("wb") as out:
        for line in _opening(node, options):
            out.write(msgspec.json.encode(line) + b"\n")
        out.writelines(line + b"\n" for _, line in lines)
    truth.write_bytes(msgspec.json.encode(truth_of(node, ended)))
    return len(ended)


def _live(node: Node, options: RecordingOptions, lines: list[tuple[int, bytes]]) -> list[Truth]:
    """Run the node to the end of its last request, reading meters and pages on the way; all requests that ended."""
    ended: list[Truth] = []
    jitter = seeded(options.seed, "polls")
    stop_ns = node.start_ns + _LEAD_IN_NS + round(options.seconds * 1e9)
    tail = _TAIL_SLICES
    while tail > 0:
        slice_ns = node.now_ns
        if slice_ns >= stop_ns:
            for engine in node.engines.values():
                engine.stop_arrivals()
        ended += node.advance(slice_ns + _SLICE_NS)
        lines += _polls(node, options, slice_ns, jitter)
        if (node.now_ns - node.start_ns) % round(options.page_seconds * 1e9) == 0:
            lines += _pages(node)
        if slice_ns >= stop_ns and not any(engine.running or engine.waiting for engine in node.engines.values()):
            tail -= 1
    return ended


def _polls(node: Node, options: RecordingOptions, slice_ns: int, jitter: Random) -> Iterator[tuple[int, bytes]]:
    """What a sampler reads in the slice that has just gone by: accelerators often, the rest at the slice's start."""
    polls = max(round(_SLICE_NS * 1e-9 / options.poll_seconds), 1)
    for poll in range(polls):
        t_ns = slice_ns + poll * _SLICE_NS // polls + round(jitter.random() * _POLL_JITTER_NS)
        for name, device in node.devices.items():
            if device.kind is DeviceKind.GPU or (poll == 0 and device.kind is not DeviceKind.OUTLET):
                joules = node.shown(name, t_ns).microjoules / 1e6
                yield t_ns, msgspec.json.encode({"type": "energy", "device": name, "t_ns": t_ns, "joules": joules})
    if (slice_ns - node.start_ns) % _OUTLET_POLL_NS == 0:
        yield from _outlet_polls(node, slice_ns)


def _outlet_polls(node: Node, t_ns: int) -> Iterator[tuple[int, bytes]]:
    """The outlets' gauges, stamped at the middle of the second that they averaged, as far as a reader can know it."""
    for name, device in node.devices.items():
        if device.kind is DeviceKind.OUTLET:
            watts = node.shown(name, t_ns).watts
            if watts is not None:
                middle_ns = t_ns - _OUTLET_POLL_NS // 2
                line = {"type": "power", "device": name, "t_ns": middle_ns, "watts": watts}
                yield t_ns, msgspec.json.encode(line)


def _pages(node: Node) -> Iterator[tuple[int, bytes]]:
    for engine in node.engines.values():
        line = {
            "type": "engine_counters",
            "engine": engine.spec.name,
            "t_ns": node.now_ns,
            "steps": engine.steps,
            "prompt_tokens": engine.tallies.prompt_tokens,
            "cached_prompt_tokens": 0,
            "generation_tokens": engine.tallies.generation_tokens,
            "requests_running": engine.running,
            "requests_waiting": engine.waiting,
        }
        yield node.now_ns, msgspec.json.encode(line)


def _request_lines(truth: Truth, delay_seconds: float, *, tell_start: bool) -> Iterator[tuple[int, bytes]]:
    request, arrival = truth.request, truth.request.arrival
    identity = {"engine": truth.engine, "id": arrival.id, "arrival_ns": arrival.arrival_ns}
    if tell_start:
        yield arrival.arrival_ns, msgspec.json.encode({"type": "request_start", **identity})
    seen_ns = request.last_token_ns + round(delay_seconds * 1e9)
    line = {
        "type": "request",
        **identity,
        "scheduled_ns": request.scheduled_ns,
        "first_token_ns": request.first_token_ns,
        "last_token_ns": request.last_token_ns,
        "prompt_tokens": arrival.prompt_tokens,
        "generation_tokens": request.generated,
        "trace_id": arrival.trace_id.hex(),
        "span_id": arrival.span_id.hex(),
        "seen_ns": seen_ns,
    }
    yield seen_ns, msgspec.json.encode(line)


def _opening(node: Node, options: RecordingOptions) -> Iterator[dict[str, Any]]:
    yield {"type": "header", "version": 1, "node": "twin", "started_ns": node.start_ns}
    for name in node.devices:
        yield _device_line(node.describe(name, tell_idle=options.tell_idle))
    for engine in node.engines.values():
        yield {"type": "engine", "engine": engine.spec.name, "devices": engine.spec.devices, **priors(engine.spec)}


def _device_line(device: Device) -> dict[str, Any]:
    told = {
        "parent": device.parent or None,
        "model": device.product or None,
        "max_watts": device.max_watts,
        "idle_watts": device.idle_watts,
        "uplift_watts": device.uplift_watts,
        "wrap_joules": device.wrap_microjoules and device.wrap_microjoules / 1e6,
    }
    known = {key: value for key, value in told.items() if value is not None}
    return {"type": "device", "device": device.name, "kind": device.kind.value, "vendor": device.vendor, **known}
