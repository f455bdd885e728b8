"""`python -m bench.gpu_validation --out DIR`: attribution against the energy of one real GPU, in under 8 minutes.

Needs torch and nvidia-ml-py to measure, and jouled to judge; `--judge DIR` does the latter alone, anywhere. The GPU
should serve nobody else meanwhile. None of its settings is changed.
"""

import argparse
import importlib.util
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu_validation import judge, recording, report
from bench.gpu_validation.load import Engine
from bench.gpu_validation.measure import measure
from bench.gpu_validation.nvml import Card, Clock, Counter, MachineClock, Poller
from bench.gpu_validation.plan import Plan
from bench.gpu_validation.records import Measured
from bench.gpu_validation.sizes import Sizes, choose

VERSION = "1"
"""Of this script: raised when results before and after are not comparable."""
MEASURED = "measured.json.gz"


def main() -> int:
    """Run it; the code is 1 where a judged row fails."""
    options = _options()
    if options.judge:
        return conclude(options.judge, Measured.read(options.judge / MEASURED))
    plan = Plan(options.seconds, options.seed)
    for line in plan.lines():
        _say(line)
    if options.dry_run:
        return 0
    if options.out is None:
        _say("--out DIR is needed: the folder for the recording and the results")
        return 2
    options.out.mkdir(parents=True)
    measured = _on_the_gpu(plan)
    return conclude(options.out, measured)


def conclude(folder: Path, measured: Measured) -> int:
    """Write what was measured, judge it where jouled is installed, write and print the results."""
    if not (folder / MEASURED).exists():
        measured.write(folder / MEASURED)
    table = judge.table_of(measured)
    if not (folder / "recording.jsonl").exists():
        recording.write(folder / "recording.jsonl", measured, table.static_watts)
    rows: list[judge.Row] = []
    if importlib.util.find_spec("jouled") and importlib.util.find_spec("msgspec"):
        rows = judge.judged(folder, measured, table, _say)
    else:
        _say(f"jouled is not installed here: judge elsewhere with `python -m bench.gpu_validation --judge {folder}`")
    _say(report.write(folder, measured, table, rows))
    return int(report.holds(measured, rows) is False)


def describe(measured: Measured, plan: Plan, sizes: Sizes, card: Card, **more: Any) -> None:
    """Say in the record what was measured: the GPU, the model, when, and by which command."""
    measured.limit_watts = card.limit_watts()
    measured.model = {
        "model": sizes.name,
        "parameters": sizes.parameters,
        "layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "kv_bytes_per_token": sizes.kv_bytes_per_token,
    }
    measured.about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": card.name,
        "driver": card.driver,
        "model": f"{sizes.name}, {sizes.slots} slots of {sizes.max_context} tokens",
        "script": VERSION,
        "commit": _commit(),
        "command": shlex.join([Path(sys.executable).name, "-m", "bench.gpu_validation", *sys.argv[1:]]),
        "seconds": plan.seconds,
        "seed": plan.seed,
        "too_short": plan.too_short,
        **more,
    }


def run(plan: Plan, engine: Engine, card: Card, clock: Clock) -> Measured:
    """Costs of the calls, then the run, polled in a thread."""
    costs = card.costs()
    counter = Counter(card.millijoules, clock)
    with Poller(counter):
        measured = measure(plan, engine, counter, clock)
    measured.costs = [*costs, counter.cost_under_load()]
    return measured


def _on_the_gpu(plan: Plan) -> Measured:
    import torch
    from bench.gpu_validation.llama import Llama

    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device: this needs an NVIDIA GPU and a torch built for it")
    sizes = choose(torch.cuda.mem_get_info()[0])
    _say(f"building {sizes.name}: {sizes.parameters / 1e9:.2f} billion random weights")
    model = Llama(sizes, "cuda")
    _say(f"decode attention: {model.attention}")
    card = Card(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    measured = run(plan, model, card, MachineClock())
    describe(measured, plan, sizes, card, torch=torch.__version__, attention=model.attention)
    return measured


def _commit() -> str | None:
    """The commit of this checkout, where it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _say(text: str) -> None:
    print(text, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_validation", description="Attribution against the energy of one real GPU."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for what comes out; must not exist")
    parser.add_argument("--seconds", type=float, default=440.0, help="budget of everything (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="judge the folder of an earlier run again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
