"""The simple splits that the method is held against, on the same measured energy.

Each splits the energy measured while somebody was resident, and leaves the rest to nobody: more than most of them do.
"""

from collections.abc import Sequence
from itertools import pairwise

from bench.oracle.engine import Curve
from bench.oracle.meter import Reading, Walk
from msgspec import Struct


class Stay(Struct, frozen=True, gc=False):
    """What a split may know of a request."""

    begin: float
    end: float
    prompt_tokens: int
    generation_tokens: int


def measured(reads: Sequence[list[Reading]]) -> Curve:
    """The sum of what several meters say, linear between all their reads."""
    if len(reads) == 1:
        return _moves(reads[0])
    moments = sorted({seconds for device in reads for seconds, _ in device})
    walks = [Walk(_moves(device)) for device in reads]
    return Curve(moments, [sum(walk.joules(moment) for walk in walks) for moment in moments])


def equal_share(stays: Sequence[Stay], energy: Curve) -> list[float]:
    """1/B(t): at each instant the residents share what the meter says equally."""
    edges = sorted({moment for stay in stays for moment in (stay.begin, stay.end)})
    change = dict.fromkeys(edges, 0)
    for stay in stays:
        change[stay.begin] += 1
        change[stay.end] -= 1
    walk, share, residents, before = Walk(energy), 0.0, 0, 0.0
    shares = {}
    for edge in edges:
        joules = walk.joules(edge)
        share += (joules - before) / residents if residents else 0.0
        shares[edge], before = share, joules
        residents += change[edge]
    return [shares[stay.end] - shares[stay.begin] for stay in stays]


def by_output_tokens(stays: Sequence[Stay], energy: Curve) -> list[float]:
    """Generated tokens times joules per generated token."""
    return _pro_rata([stay.generation_tokens for stay in stays], stays, energy)


def by_total_tokens(stays: Sequence[Stay], energy: Curve) -> list[float]:
    """All tokens times joules per token."""
    return _pro_rata([stay.prompt_tokens + stay.generation_tokens for stay in stays], stays, energy)


def by_time(stays: Sequence[Stay], energy: Curve) -> list[float]:
    """Resident time times joules per request-second."""
    return _pro_rata([stay.end - stay.begin for stay in stays], stays, energy)


SPLITS = {
    "equal_share": equal_share,
    "output_tokens": by_output_tokens,
    "total_tokens": by_total_tokens,
    "time": by_time,
}


def _pro_rata(weights: Sequence[float], stays: Sequence[Stay], energy: Curve) -> list[float]:
    busy, total = sum(equal_share(stays, energy)), sum(weights)
    return [busy * weight / total for weight in weights]


def _moves(reads: list[Reading]) -> Curve:
    """A reading that has not moved is no reading."""
    kept = [reads[0]]
    kept += [after for before, after in pairwise(reads) if after[1] > before[1]]
    return Curve([seconds for seconds, _ in kept], [microjoules / 1e6 for _, microjoules in kept])
