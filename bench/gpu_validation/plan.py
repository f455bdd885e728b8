"""What a run does and how long each part takes, from one budget in seconds."""

from dataclasses import dataclass

IDLE_SHARE, GRID_SHARE, LOAD_SHARE = 0.04, 0.30, 0.42
"""Of the budget; the rest is for building the model, for requests that end after their block, and for judging."""
SETTLE_SHARE = 0.16
"""Of a grid point or of the idle phase, before its measurement: clocks and power come to rest."""
GAP_SHARE = 0.25
"""Of a block: nobody arrives any more, what is in flight ends, the GPU idles."""
POINT_SECONDS_MIN = 6.0
"""Below this the grain of the counter (0.1 s) and of power shows in a point."""
CONCURRENCY = (0.08, 0.3, 0.15, 0.5)
"""Requests in service that each block aims at, as a share of the engine's slots."""


@dataclass(frozen=True)
class Spec:
    """A point of the grid: so many members that decode at this context, beside a prompt of so many tokens."""

    batch: int
    context: int
    prompt_tokens: int

    @property
    def label(self) -> str:
        """For the table of results."""
        decode = f"decode batch {self.batch} context {self.context}" if self.batch else ""
        prefill = f"prefill {self.prompt_tokens}" if self.prompt_tokens else ""
        return " + ".join(filter(None, (decode, prefill)))


def grid(slots: int, max_context: int) -> list[Spec]:
    """Decode at four batches and two contexts, prefill at three lengths, and one mixed step."""
    batches = sorted({1, max(slots // 8, 1), max(slots // 2, 1), slots})
    decode = [Spec(batch, context, 0) for batch in batches for context in (max_context // 16, max_context // 2)]
    prefill = [Spec(0, 0, max_context // part) for part in (32, 8, 2)]
    return [*decode, *prefill, Spec(max(slots // 4, 1), max_context // 8, max_context // 8)]


POINTS = len(grid(64, 4096))


@dataclass(frozen=True)
class Plan:
    """The budget, and what follows from it."""

    seconds: float
    seed: int = 1

    @property
    def idle_seconds(self) -> float:
        """Model loaded, nothing done."""
        return self.seconds * IDLE_SHARE * (1 - SETTLE_SHARE)

    @property
    def idle_settle_seconds(self) -> float:
        """Before that."""
        return self.seconds * IDLE_SHARE * SETTLE_SHARE

    @property
    def point_seconds(self) -> float:
        """Each point of the grid, measured."""
        return self.seconds * GRID_SHARE / POINTS * (1 - SETTLE_SHARE)

    @property
    def settle_seconds(self) -> float:
        """Before each point of the grid, the same step unmeasured."""
        return self.seconds * GRID_SHARE / POINTS * SETTLE_SHARE

    @property
    def block_seconds(self) -> float:
        """Arrivals of one block of load."""
        return self.seconds * LOAD_SHARE / len(CONCURRENCY) * (1 - GAP_SHARE)

    @property
    def gap_seconds(self) -> float:
        """After each block."""
        return self.seconds * LOAD_SHARE / len(CONCURRENCY) * GAP_SHARE

    @property
    def too_short(self) -> bool:
        """The points are shorter than the method asks for: a trial, not a validation."""
        return self.point_seconds < POINT_SECONDS_MIN

    def lines(self) -> list[str]:
        """The plan in words."""
        rest = self.seconds * (1 - IDLE_SHARE - GRID_SHARE - LOAD_SHARE)
        return [
            f"budget {self.seconds:.0f} s, seed {self.seed}"
            + (" (too short for a validation)" if self.too_short else ""),
            f"idle power, model loaded: {self.idle_settle_seconds:.1f} s to settle, {self.idle_seconds:.1f} s measured",
            f"grid: {POINTS} points; each settles {self.settle_seconds:.1f} s, then counts {self.point_seconds:.1f} s",
            f"load: {len(CONCURRENCY)} blocks of {self.block_seconds:.1f} s at "
            + ", ".join(f"{share:.0%}" for share in CONCURRENCY)
            + f" of the slots, each followed by {self.gap_seconds:.1f} s to end and idle",
            f"left for building the model, costs of NVML calls, late requests and judging: {rest:.0f} s",
        ]
