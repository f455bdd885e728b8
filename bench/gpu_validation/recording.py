"""The load of a run as a recording that `jouled replay` reads (docs/recording.md). Plain JSON: needs no jouled."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu_validation.records import Measured

DEVICE, ENGINE = "gpu0", "engine"
PAGE_SECONDS = 5.0
"""As often as the daemon reads an engine's page."""

Line = dict[str, Any]


def write(path: Path, measured: Measured, idle_watts: float) -> None:
    """Write the lines in the order in which a daemon would have seen them; the end of the file closes everything."""
    with path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines(measured, idle_watts))


def span_ns(measured: Measured) -> tuple[int, int]:
    """Time of the first and last counter reading of the recording: the load and half of the idle time before it."""
    first_ns = (measured.points[-1].end_ns + measured.blocks[0].start_ns) // 2
    inside = [move.t_ns for move in measured.moves if move.t_ns >= first_ns]
    return inside[0], inside[-1]


def lines(measured: Measured, idle_watts: float) -> Iterator[Line]:
    """All lines."""
    start_ns, end_ns = span_ns(measured)
    yield {"type": "header", "version": 1, "node": "gpu-validation", "started_ns": start_ns}
    yield {"type": "clock", "t_ns": start_ns, "boot_ns": start_ns}
    device = {"device": DEVICE, "kind": "gpu", "vendor": "nvidia", "model": measured.about.get("gpu")}
    yield {"type": "device", **device, "idle_watts": idle_watts, "max_watts": measured.limit_watts}
    yield {"type": "engine", "engine": ENGINE, "devices": [DEVICE], **measured.model}
    timed = [*_energy(measured, start_ns), *_pages(measured, start_ns, end_ns), *_requests(measured)]
    yield from (line for _, line in sorted(timed, key=lambda entry: entry[0]))


def _energy(measured: Measured, start_ns: int) -> Iterator[tuple[int, Line]]:
    for t_ns, millijoules in measured.moves:
        if t_ns >= start_ns:
            # A quotient of a whole number by 1000 is written with its three digits up to 10¹² J.
            yield t_ns, {"type": "energy", "device": DEVICE, "t_ns": t_ns, "joules": millijoules / 1000}


def _requests(measured: Measured) -> Iterator[tuple[int, Line]]:
    for request in measured.requests:
        yield (
            request.last_ns,
            {
                "type": "request",
                "engine": ENGINE,
                "id": request.id,
                "arrival_ns": request.arrival_ns,
                "scheduled_ns": request.scheduled_ns,
                "first_token_ns": request.first_ns,
                "last_token_ns": request.last_ns,
                "prompt_tokens": request.prompt_tokens,
                "generation_tokens": request.generation_tokens,
            },
        )


def _pages(measured: Measured, start_ns: int, end_ns: int) -> Iterator[tuple[int, Line]]:
    """The engine's page: prompts count at the first token, generated tokens and steps as they come."""
    steps = iter([*measured.steps, None])
    step = next(steps)
    done = prompt_tokens = generation_tokens = 0
    for t_ns in [*range(start_ns, end_ns, round(PAGE_SECONDS * 1e9)), end_ns]:
        while step is not None and step.end_ns <= t_ns:
            done += 1
            generation_tokens += len(step.decode)
            if step.prefill is not None:
                prompt_tokens += measured.requests[step.prefill].prompt_tokens
                generation_tokens += 1
            step = next(steps)
        running = sum(one.scheduled_ns <= t_ns < one.last_ns for one in measured.requests)
        waiting = sum(one.arrival_ns <= t_ns < one.scheduled_ns for one in measured.requests)
        yield (
            t_ns,
            {
                "type": "engine_counters",
                "engine": ENGINE,
                "t_ns": t_ns,
                "steps": done,
                "prompt_tokens": prompt_tokens,
                "generation_tokens": generation_tokens,
                "requests_running": running,
                "requests_waiting": waiting,
            },
        )
