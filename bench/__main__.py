"""`python -m bench [NAME …]`: print what jouled costs, one JSON object a line.

Without names: everything but `attribution`, which asks how right jouled is and takes much longer.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench import attribution, daemon_cost, engine_pages, otlp, power_sources, replay, sinks
from bench.rows import Row, machine

ATTRIBUTION = "attribution"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    benches = _benches(None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(benches))
    parser.add_argument(
        "--trace", type=Path, help="replay the arrivals of TIMESTAMP,ContextTokens,GeneratedTokens rows"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - benches.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(benches)}")
    benches = _benches(options.trace)
    for name in options.names or [name for name in benches if name != ATTRIBUTION]:
        for found in benches[name]():
            about = {**machine(), "load_average": round(os.getloadavg()[0], 2), "command": f"python -m bench {name}"}
            print(json.dumps({**found, **about}, ensure_ascii=False), flush=True)


def _benches(trace: Path | None) -> dict[str, Callable[[], Iterator[Row]]]:
    return {
        "exposition": partial(_script, "exposition"),
        "scrape": partial(_script, "scrape"),
        "start": daemon_cost.start,
        "replay": partial(replay.rows, trace),
        "daemon": daemon_cost.cpu_and_memory,
        "sinks": sinks.rows,
        "power": power_sources.rows,
        "vllm_plugin": partial(_script, "vllm_plugin"),
        "pages": engine_pages.rows,
        "otlp": otlp.rows,
        ATTRIBUTION: partial(attribution.rows, trace),
    }


def _script(name: str) -> Iterator[Row]:
    """Rows of a benchmark that is a script of its own."""
    script = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        yield json.loads(line)


if __name__ == "__main__":
    main()
