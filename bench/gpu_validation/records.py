"""What a run on a GPU leaves behind: pure data, written and read as gzipped JSON. Times are Unix nanoseconds."""

import gzip
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Work(NamedTuple):
    """What engine steps do: their number, decoded tokens, KV tokens read by these, prompt tokens, causal pairs."""

    steps: float
    decode_tokens: float
    context_tokens: float
    prompt_tokens: float
    prompt_pairs: float

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        return Work(*(mine + others for mine, others in zip(self, other, strict=True)))


NO_WORK = Work(0, 0, 0, 0, 0)


def step_work(contexts: Sequence[int], prompt_tokens: int) -> Work:
    """The work of one step: members that decode, by the tokens they attend to, and at most one prompt."""
    return Work(1, len(contexts), sum(contexts), prompt_tokens, prompt_tokens * prompt_tokens / 2)


class Request(NamedTuple):
    """One request as the scheduler saw it; `kind` is `short` or `long`."""

    id: str
    kind: str
    arrival_ns: int
    scheduled_ns: int
    first_ns: int
    last_ns: int
    prompt_tokens: int
    generation_tokens: int


class Step(NamedTuple):
    """One engine step: which requests (by index) decoded a token in it, and whose prompt it computed."""

    start_ns: int
    end_ns: int
    decode: tuple[int, ...]
    prefill: int | None


class Point(NamedTuple):
    """One point of the grid: the same step over and over."""

    label: str
    start_ns: int
    end_ns: int
    work: Work


class Block(NamedTuple):
    """One stretch of load, from its first moment until its last request has ended."""

    name: str
    start_ns: int
    end_ns: int


class Move(NamedTuple):
    """The counter was seen with a new value."""

    t_ns: int
    millijoules: int


class Curve:
    """The counter over time: linear between its moves, constant outside."""

    def __init__(self, moves: Sequence[Move]) -> None:
        if len(moves) < 2:
            raise ValueError(f"the energy counter moved {len(moves)} times: nothing can be measured with it")
        self._moves = moves
        self._times = [move.t_ns for move in moves]

    def joules(self, start_ns: int, end_ns: int) -> float:
        """Energy used between two moments."""
        return (self._millijoules(end_ns) - self._millijoules(start_ns)) / 1000

    def _millijoules(self, t_ns: int) -> float:
        right = bisect_right(self._times, t_ns)
        if right in {0, len(self._times)}:
            return self._moves[min(right, len(self._times) - 1)].millijoules
        before, after = self._moves[right - 1], self._moves[right]
        share = (t_ns - before.t_ns) / (after.t_ns - before.t_ns)
        return before.millijoules + share * (after.millijoules - before.millijoules)


class CallCost(NamedTuple):
    """What one NVML call costs here, in microseconds; `error` where the driver refuses it."""

    call: str
    calls: int
    median_microseconds: float | None
    p99_microseconds: float | None
    error: str | None = None


@dataclass
class Measured:
    """A whole run. `about` says on what, with what and when; `model` holds the sizes of the model."""

    about: dict[str, Any]
    model: dict[str, Any]
    limit_watts: float | None
    idle_ns: tuple[int, int]
    points: list[Point]
    blocks: list[Block]
    requests: list[Request]
    steps: list[Step]
    moves: list[Move]
    costs: list[CallCost] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it whole."""
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """The inverse of `write`."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            raw = json.load(file)
        return cls(
            about=raw["about"],
            model=raw["model"],
            limit_watts=raw["limit_watts"],
            idle_ns=(raw["idle_ns"][0], raw["idle_ns"][1]),
            points=[Point(label, start, end, Work(*work)) for label, start, end, work in raw["points"]],
            blocks=[Block(*block) for block in raw["blocks"]],
            requests=[Request(*request) for request in raw["requests"]],
            steps=[Step(start, end, tuple(decode), prefill) for start, end, decode, prefill in raw["steps"]],
            moves=[Move(*move) for move in raw["moves"]],
            costs=[CallCost(*cost) for cost in raw["costs"]],
        )
