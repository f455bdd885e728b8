"""The results as JSON and as Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.gpu_validation.judge import Row
from bench.gpu_validation.records import CallCost, Curve, Measured
from bench.gpu_validation.step_table import StepTable

UNITS = ("step", "decoded token", "KV token read", "prompt token", "causal pair of a prompt")


def write(folder: Path, measured: Measured, table: StepTable, rows: Sequence[Row]) -> str:
    """Write `results.json` and `results.md` to the folder and return the latter."""
    result = {
        "about": measured.about,
        "model": measured.model,
        "limit_watts": measured.limit_watts,
        "static_watts": table.static_watts,
        "joules_per": dict(zip(UNITS, table.unit_joules, strict=True)),
        "points": list(_points(measured, table)),
        "rows": [row._asdict() for row in rows],
        "nvml_calls": [cost._asdict() for cost in measured.costs],
        "counter_move_milliseconds": move_milliseconds(measured),
        "requests": len(measured.requests),
        "steps": len(measured.steps),
        "holds": holds(measured, rows),
    }
    (folder / "results.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = "\n".join(_markdown(result, rows, measured.costs)) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    return text


def holds(measured: Measured, rows: Sequence[Row]) -> bool | None:
    """Whether every judged row holds; `None` where nothing was judged or the run was too short to be judged by."""
    verdicts = [row.holds for row in rows if row.holds is not None]
    return all(verdicts) if verdicts and not measured.about.get("too_short") else None


def move_milliseconds(measured: Measured) -> float:
    """Median time between two moves of the counter, as seen at 20 ms."""
    times = [move.t_ns for move in measured.moves]
    between = sorted(after - before for before, after in pairwise(times))
    return between[len(between) // 2] / 1e6


def _points(measured: Measured, table: StepTable) -> Iterator[dict[str, Any]]:
    curve = Curve(measured.moves)
    for label, start_ns, end_ns, work in measured.points:
        seconds, joules = (end_ns - start_ns) / 1e9, curve.joules(start_ns, end_ns)
        yield {
            "point": label,
            "seconds": seconds,
            "steps": work.steps,
            "step_milliseconds": 1e3 * seconds / work.steps,
            "watts": joules / seconds,
            "joules_per_step": joules / work.steps,
            "table_error": table.joules(seconds, work) / joules - 1,
        }


def _markdown(result: Mapping[str, Any], rows: Sequence[Row], costs: Sequence[CallCost]) -> Iterator[str]:
    about = result["about"]
    yield "| what | value |\n|---|---|"
    yield from (f"| {key} | {'unknown' if value is None else value} |" for key, value in about.items())
    yield f"| requests, steps | {result['requests']}, {result['steps']} |"
    yield "\n| judged | value | floor | |\n|---|---|---|---|"
    for row in rows:
        verdict = {True: "holds", False: "**fails**", None: ""}[row.holds]
        yield f"| {row.name} | {_figure(row)} | {row.limit} | {verdict} |"
    if about.get("too_short"):
        yield "\nThe points of the grid were shorter than 6 s: a trial of the script, no validation."
    yield "\n| point | ms per step | W | J per step | step table |\n|---|---|---|---|---|"
    for point in result["points"]:
        figures = (f"{point[key]:.4g}" for key in ("step_milliseconds", "watts", "joules_per_step"))
        yield f"| {point['point']} | {' | '.join(figures)} | {point['table_error']:+.1%} |"
    yield "\n| step table | J |\n|---|---|"
    yield from (f"| per {unit} | {joules:.4g} |" for unit, joules in result["joules_per"].items())
    yield "\n| NVML call | median µs | p99 µs | calls |\n|---|---|---|---|"
    for cost in costs:
        if cost.median_microseconds is None:
            yield f"| {cost.call} | {cost.error or 'not called'} | | {cost.calls} |"
        else:
            yield f"| {cost.call} | {cost.median_microseconds:.1f} | {cost.p99_microseconds:.1f} | {cost.calls} |"
    yield f"\nThe counter moved every {result['counter_move_milliseconds']:.0f} ms (median, polled every 20 ms)."


def _figure(row: Row) -> str:
    return f"{row.value:+.2%}" if row.unit == "ratio" else f"{row.value:.4g} {row.unit}".strip()
