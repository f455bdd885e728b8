"""A row of the benchmark: one JSON object, with the spread of its repetitions and the machine it was measured on."""

import os
import platform
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jouled

Row = dict[str, Any]


def row(name: str, values: Sequence[float], unit: str, **about: object) -> Row:
    """Median, least and greatest of the values, in four digits, and whatever else there is to say."""
    spread = {"value": statistics.median(values), "min": min(values), "max": max(values)}
    rounded = {key: float(f"{value:.4g}") for key, value in spread.items()}
    return {"name": name, **rounded, "unit": unit, "rounds": len(values), **about}


@cache
def machine() -> dict[str, object]:
    """What every row is measured on. The load average tells of neighbours: figures taken beside others are noise."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "machine": f"{os.cpu_count()} × {cpu}, Linux {platform.release()}",
        "python": platform.python_version(),
        "jouled": jouled.__version__,
    }
