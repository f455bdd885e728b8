"""A GPU that exists in virtual time, its energy counter shown to the real NVML binding by the stub library.

Run as a program it does a whole run and leaves its folder: `python -m tests.bench.gpu_world CONTROLS OUT SECONDS`.
A process of its own, since the binding keeps the library that it loaded first.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_validation.__main__ import conclude, describe
from bench.gpu_validation.measure import measure
from bench.gpu_validation.nvml import Card, Counter
from bench.gpu_validation.plan import Plan
from bench.gpu_validation.records import Work, step_work
from bench.gpu_validation.sizes import MODELS
from tests.support.nvml_stub import Controls

START_NS = 1_795_000_000_000_000_000
IDLE_WATTS = 118.0
UNITS = Work(1.9, 0.0075, 9e-6, 0.0072, 4e-7)
"""An 8B dense model on a recent part, in round figures."""
SECONDS = Work(6e-3, 3e-5, 3e-8, 1.8e-5, 1e-9)
TICK_NS, MOVE_NS = 20_000_000, 100_000_000


class World:
    """Clock, engine and counter in one; everything moves when time passes, and time passes here only."""

    slots, max_context = 64, 4096

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._now_ns = START_NS
        self._millijoules = 0.0
        self._shown_at_ns = START_NS
        self.counter: Counter | None = None
        controls.set("gpu0.millijoules", 0)

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        self._pass(round(seconds * 1e9), IDLE_WATTS)

    def step(self, decode: Sequence[tuple[int, int]], prompt: tuple[int, int] | None) -> None:
        work = step_work([context for _, context in decode], prompt[1] if prompt else 0)
        seconds = sum(unit * amount for unit, amount in zip(SECONDS, work, strict=True))
        joules = sum(unit * amount for unit, amount in zip(UNITS, work, strict=True))
        self._pass(round(seconds * 1e9), IDLE_WATTS + joules / seconds)

    def _pass(self, nanoseconds: int, watts: float) -> None:
        end_ns = self._now_ns + nanoseconds
        while self._now_ns < end_ns:
            tick_ns = min(end_ns, self._now_ns // TICK_NS * TICK_NS + TICK_NS)
            self._millijoules += watts * (tick_ns - self._now_ns) / 1e6
            self._now_ns = tick_ns
            if tick_ns - self._shown_at_ns >= MOVE_NS:
                self._shown_at_ns = tick_ns
                self._controls.set("gpu0.millijoules", int(self._millijoules))
            if self.counter and tick_ns % TICK_NS == 0:
                self.counter.poll()


def main() -> int:
    controls, out, seconds = Controls(Path(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3])
    out.mkdir()
    world = World(controls)
    card = Card("GPU-00000000-stub-0000-0000-000000000000")
    costs = card.costs()
    world.counter = Counter(card.millijoules, world)
    plan = Plan(seconds)
    measured = measure(plan, world, world.counter, world)
    measured.costs = [*costs, world.counter.cost_under_load()]
    describe(measured, plan, MODELS[0], card, torch=None, attention="none: virtual")
    return conclude(out, measured)


if __name__ == "__main__":
    sys.exit(main())
