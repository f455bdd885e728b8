"""Receipts held against the truth."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from math import sqrt

from bench.oracle.baselines import SPLITS, Stay, measured
from bench.oracle.engine import Served
from bench.oracle.scenario import Scenario
from bench.oracle.telling import name_of

from jouled.model.receipt import Receipt
from jouled.model.snapshot import GroupBook, Owner, Snapshot

Measures = dict[str, float]
"""Name of a measure -> its value for one seed."""

Pair = tuple[float, float]
"""(estimated, true) joules. Truths are as a perfect split of what the meter says: its gain is not the split's fault."""


def judge(scenario: Scenario, receipts: Mapping[str, Receipt], snapshot: Snapshot) -> Measures:
    """All measures of one run. A request that was told and has no receipt counts as one of 0 J."""
    gain = scenario.meters.gain
    numbers = [number for number, job in enumerate(scenario.jobs) if job.told]
    truths = [scenario.run.served[number] for number in numbers]
    found = [receipts.get(name_of(number)) for number in numbers]
    scored = [(receipt, truth) for receipt, truth in zip(found, truths, strict=True) if receipt is not None]
    measures = {
        "requests": float(len(numbers)),
        "missing": float(len(numbers) - len(scored)),
        "foreign": float(len(receipts) - len(scored)),
        **_errors("", ((r.joules if r else 0.0, t.joules * gain) for r, t in zip(found, truths, strict=True))),
        **_parts(scored, gain),
        **_confidence(scored, gain),
        **_totals(scenario, snapshot.total, gain),
        "conserved": float(conserved(scenario, snapshot)),
    }
    return measures | _against_baselines(scenario, numbers, measures["wmape"])


def conserved(scenario: Scenario, snapshot: Snapshot) -> bool:
    """Whole microjoules: each group's owners and what is open are what its meters moved by, and so is the sum."""
    for book in (*snapshot.groups, snapshot.total):
        owners = [getattr(book, f"{owner.value}_uj") for owner in Owner]
        if sum(owners) + book.open_uj != book.measured_uj or min(owners) < 0 or book.open_uj < 0:
            return False
    if scenario.case.telling.power_gauge:
        return True
    moved = sum(reads[-1][1] - reads[0][1] for reads in scenario.meters.reads)
    return snapshot.total.measured_uj == moved


def wmape(pairs: Iterable[Pair]) -> float:
    """Weighted mean absolute percentage error, as a share: the sum of errors over the sum of truths."""
    error = truth = 0.0
    for estimated, true in pairs:
        error += abs(estimated - true)
        truth += true
    return error / truth if truth else 0.0


def _errors(suffix: str, pairs: Iterable[Pair]) -> Measures:
    listed = list(pairs)
    relative = sorted(abs(estimated - true) / true for estimated, true in listed if true > 0)
    p95 = relative[min(int(0.95 * len(relative)), len(relative) - 1)] if relative else 0.0
    bias = sum(estimated for estimated, _ in listed) / (sum(true for _, true in listed) or 1.0) - 1.0
    return {f"wmape{suffix}": wmape(listed), f"p95{suffix}": p95, f"bias{suffix}": bias}


def _parts(scored: Sequence[tuple[Receipt, Served]], gain: float) -> Measures:
    return {
        **_errors("_prefill", ((r.joules_prefill, t.prefill * gain) for r, t in scored)),
        **_errors("_decode", ((r.joules_decode, t.decode * gain) for r, t in scored)),
        **_errors("_resident", ((r.joules_resident, t.resident * gain) for r, t in scored)),
        **_errors(
            "_prefill_and_resident",
            ((r.joules_prefill + r.joules_resident, (t.prefill + t.resident) * gain) for r, t in scored),
        ),
        **_errors(
            "_decode_and_resident",
            ((r.joules_decode + r.joules_resident, (t.decode + t.resident) * gain) for r, t in scored),
        ),
    }


def _confidence(scored: Sequence[tuple[Receipt, Served]], gain: float) -> Measures:
    total = [(r.joules - t.joules * gain, r.sigma_joules) for r, t in scored]
    prefill = [(r.joules_prefill - t.prefill * gain, r.sigma_prefill_joules) for r, t in scored]
    decode = [(r.joules_decode - t.decode * gain, r.sigma_decode_joules) for r, t in scored]
    return {
        **_coverage("", total),
        **_coverage("_prefill", prefill),
        **_coverage("_decode", decode),
        "sigma_share": sum(r.sigma_joules or 0.0 for r, _ in scored) / (sum(r.joules for r, _ in scored) or 1.0),
    }


def _coverage(suffix: str, errors: Sequence[tuple[float, float | None]]) -> Measures:
    """Share of errors within two sigma (one without a sigma is outside), and the root mean square of error/sigma."""
    within = sum(sigma is not None and abs(error) <= 2 * sigma + 1e-6 for error, sigma in errors)
    squares = [(error / sigma) ** 2 for error, sigma in errors if sigma]
    return {
        f"coverage{suffix}": within / (len(errors) or 1),
        f"rms{suffix}": sqrt(sum(squares) / len(squares)) if squares else 0.0,
    }


def _totals(scenario: Scenario, book: GroupBook, gain: float) -> Measures:
    """Idle and unreported against their truths, as shares of everything measured."""
    everything = book.measured_uj / 1e6 or 1.0
    idle = scenario.run.idle_joules * gain
    pairs = zip(scenario.jobs, scenario.run.served, strict=True)
    unreported = sum(served.joules for job, served in pairs if not job.told) * gain
    return {
        "idle_error": (book.idle_uj / 1e6 - idle) / everything,
        "idle_truth": idle / everything,
        "unreported_error": (book.unreported_uj / 1e6 - unreported) / everything,
        "unreported_truth": unreported / everything,
        "unattributed": book.unattributed_uj / 1e6 / everything,
    }


def _against_baselines(scenario: Scenario, numbers: Sequence[int], own: float) -> Measures:
    """The errors of the simple splits on the same events and readings, and how many times ours goes into them."""
    gain, served = scenario.meters.gain, scenario.run.served
    stays = list(starmap(_stay, ((scenario, number) for number in numbers)))
    energy = measured(scenario.meters.reads)
    measures: Measures = {}
    for name, split in SPLITS.items():
        error = wmape(
            (estimated, served[number].joules * gain)
            for number, estimated in zip(numbers, split(stays, energy), strict=True)
        )
        measures[f"wmape_{name}"] = error
        measures[f"against_{name}"] = error / own if own else float("inf")
    return measures


def _stay(scenario: Scenario, number: int) -> Stay:
    job, served = scenario.jobs[number], scenario.run.served[number]
    arrival = job.seconds + scenario.case.lead_seconds
    begin = served.start if scenario.case.telling.scheduled else arrival
    return Stay(begin, max(served.last, begin), job.prompt_tokens, job.generation_tokens)
