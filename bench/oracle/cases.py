"""Every row of section 8 of attribution.md: what is simulated, what is told of it, and what is asked of the result."""

from collections.abc import Sequence
from pathlib import Path

from bench.oracle import parts, workload
from bench.oracle.meter import Meter
from bench.oracle.parts import H100, NEXT_GENERATION, Accelerator, Model
from bench.oracle.telling import Telling
from bench.oracle.workload import Lengths
from msgspec import Struct
from msgspec.structs import replace


class Bound(Struct, frozen=True):
    """What is asked: `floor` of the worst seed, `goal` of the median one."""

    floor: float
    goal: float


class Case(Struct, frozen=True, kw_only=True):
    """One row. Errors are shares of the truth (0.03 is 3 %), `against_equal_share` is how many times better."""

    name: str
    lengths: Lengths = workload.CHAT
    batch: tuple[float, float] = (8.0, 64.0)
    """Requests in flight that the load aims at, drawn log-uniformly."""

    answer_seconds: tuple[float, float] | None = None
    """Answers take about so long, log-uniformly between, instead of being so many tokens."""

    gap_seconds: float = 0.0
    """Of silence between bursts; 0 is a steady stream."""

    beside: str = ""
    """The case that has the same truth, seed by seed, and is told more of it."""

    trace: Path | None = None
    models: Sequence[Model] = parts.DENSE
    accelerator: Accelerator = H100
    devices: tuple[int, ...] = (1,)
    mismatch: float = 1.0
    cap_share: float = 0.0
    meter: Meter = Meter()
    telling: Telling = Telling()
    lead_seconds: float = 5.0
    untold: float = 0.0
    aborted: float = 0.0
    wmape: Bound | None = None
    against_equal_share: Bound | None = None
    wmape_prefill: Bound | None = None
    wmape_decode: Bound | None = None
    wmape_above_beside: Bound | None = None


_STALE = Meter(interval_seconds=0.02, moves_seconds=0.1)
_BETTER, _OTHERWISE = Bound(3.0, 6.0), Bound(1.5, 3.0)
_STEADY, _BURSTY, _SHORT = Bound(0.03, 0.015), Bound(0.05, 0.03), Bound(0.11, 0.07)
_BURSTS = 20.0

_steady = Case(
    name="steady",
    wmape=_STEADY,
    against_equal_share=_BETTER,
    wmape_prefill=Bound(0.25, 0.12),
    wmape_decode=Bound(0.45, 0.12),
)
_elsewhere = replace(_steady, against_equal_share=_OTHERWISE, wmape_prefill=None, wmape_decode=None)
_bursty = replace(_elsewhere, name="bursty", gap_seconds=_BURSTS, wmape=_BURSTY, against_equal_share=_BETTER)
_short = replace(_elsewhere, name="short_answers", lengths=workload.SHORT_ANSWERS, batch=(1.0, 6.0), wmape=_SHORT)
_long = replace(_elsewhere, name="long_answers", answer_seconds=(140.0, 500.0), wmape=Bound(0.06, 0.03))
_any = replace(_long, name="one_second_to_twenty_minutes", answer_seconds=(1.0, 900.0), batch=(16.0, 40.0))
_told_at_start = {"telling": Telling(starts=True), "wmape": Bound(0.05, 0.02)}
_within_a_point = {"wmape_above_beside": Bound(0.01, 0.01)}
_mixture = replace(
    _elsewhere, name="moe_architecture", models=parts.MIXTURES, batch=(16.0, 96.0), wmape=Bound(0.02, 0.01)
)
_named = Telling(architecture=False)

CASES: Sequence[Case] = (
    _steady,
    replace(_elsewhere, name="tensor_parallel", models=parts.LARGE, devices=(2, 4)),
    replace(_elsewhere, name="arrivals_only", telling=Telling(scheduled=False)),
    replace(_elsewhere, name="shuffled_duplicates", telling=Telling(delay_seconds=10.0, duplicates=0.1)),
    _bursty,
    replace(_bursty, name="bursty_meter_1s", meter=Meter(interval_seconds=1.0)),
    _mixture,
    replace(_mixture, name="moe_name", models=(), telling=_named, wmape=Bound(0.03, 0.02)),
    replace(
        _steady,
        name="power_cap",
        cap_share=0.6,
        meter=Meter(noise=0.03, lag_seconds=0.05),
        wmape=Bound(0.04, 0.02),
        wmape_prefill=None,
        wmape_decode=None,
    ),
    replace(
        _elsewhere, name="long_prompts", lengths=workload.LONG_PROMPTS, batch=(2.0, 16.0), wmape=Bound(0.04, 0.025)
    ),
    _short,
    replace(_elsewhere, name="unreported", untold=0.05, wmape=Bound(0.08, 0.05)),
    replace(_elsewhere, name="sparse_aborts", aborted=0.005, wmape=Bound(0.08, 0.05)),
    replace(_elsewhere, name="idle_unknown", telling=Telling(idle=False), lead_seconds=0.0, wmape=Bound(0.04, 0.025)),
    replace(_elsewhere, name="other_generation", accelerator=NEXT_GENERATION, wmape=Bound(0.06, 0.025)),
    replace(_elsewhere, name="mismatch_steady", mismatch=2.0, wmape=Bound(0.06, 0.015)),
    replace(_short, name="mismatch_short_answers", mismatch=2.0, wmape=Bound(0.15, 0.08)),
    replace(_elsewhere, name="stale_steady", meter=_STALE),
    replace(_bursty, name="stale_bursty", meter=_STALE, against_equal_share=_OTHERWISE),
    replace(_short, name="stale_short_answers", meter=_STALE, wmape=Bound(0.11, 0.08)),
    replace(_long, name="long_answers_starts", **_told_at_start),
    replace(_long, beside="long_answers_starts", **_within_a_point),
    replace(_any, name="one_second_to_twenty_minutes_starts", **_told_at_start),
    replace(_any, beside="one_second_to_twenty_minutes_starts", **_within_a_point),
    replace(_elsewhere, name="uplift_told", telling=Telling(uplift=True), wmape=None, against_equal_share=None),
    replace(_elsewhere, name="power_gauge", telling=Telling(power_gauge=True), wmape=None, against_equal_share=None),
)
"""The last two are in no row of the table: nothing is asked of them, but they tell where an error comes from."""


def of_trace(path: Path) -> Case:
    """The arrivals and lengths of a trace file (TIMESTAMP,ContextTokens,GeneratedTokens); nothing is asked of it."""
    return Case(name=f"trace_{path.stem}", trace=path)


KEPT_SEEDS: dict[str, tuple[int, ...]] = {
    "tensor_parallel": (1,),
    "moe_architecture": (20,),
    "moe_name": (9, 17),
    "power_cap": (12, 18),
    "unreported": (17, 18),
    "idle_unknown": (17, 20),
    "stale_steady": (2,),
    "long_answers_starts": (3,),
    "long_answers": (20,),
    "one_second_to_twenty_minutes_starts": (15,),
    "one_second_to_twenty_minutes": (7, 11),
}
"""Seeds that failed once: they run in addition to the range that is asked for."""


def asked(case: Case) -> dict[str, Bound]:
    """Name of a measure -> what is asked of it in this case. Coverage and conservation are asked of every case."""
    bounds = {
        "wmape": case.wmape,
        "wmape_prefill": case.wmape_prefill,
        "wmape_decode": case.wmape_decode,
        "wmape_above_beside": case.wmape_above_beside,
        "against_equal_share": case.against_equal_share,
        "coverage": Bound(0.85, 0.90),
        "conserved": Bound(1.0, 1.0),
    }
    return {name: bound for name, bound in bounds.items() if bound is not None}


HIGHER_IS_BETTER = ("against_", "coverage", "conserved", "finished_requests_per_cpu_second")
"""Beginnings of the names of measures whose worst seed is the lowest one."""

RMS_GOAL = (0.3, 1.2)
"""rms(error/sigma) of the median seed: a wide band is no good band."""
