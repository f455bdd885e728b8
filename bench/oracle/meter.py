"""How a meter shows a curve: irregular reads, a counter that moves at its own phase, resolution, noise, gain, lag."""

import random
from collections.abc import Iterator
from itertools import pairwise

from bench.oracle.engine import Curve
from msgspec import Struct

Reading = tuple[float, int]
"""Seconds at which it was read, cumulative microjoules."""


class Meter(Struct, frozen=True, kw_only=True):
    """A counter of energy. `moves_seconds`: it moves only so often (0: always current), at a phase of its own.

    `noise`: standard deviation of what it adds between two moves, relative. `lag_seconds`: it tells of a moment so long
    ago. `jitter`: reads come late by up to this share of the interval.
    """

    interval_seconds: float = 0.1
    jitter: float = 0.1
    moves_seconds: float = 0.0
    noise: float = 0.0
    lag_seconds: float = 0.0
    resolution_uj: int = 1_000


def readings(curve: Curve, meter: Meter, scale: float, dice: random.Random) -> list[Reading]:
    """All reads of the counter from the curve's start to its end. `scale`: gain times the device's part of the sum."""
    phase = dice.random() * meter.moves_seconds
    shown = _Shown(curve, meter, scale, dice)
    found: list[Reading] = []
    point = 0
    end = curve.seconds[-1]
    while (seconds := (point + meter.jitter * dice.random()) * meter.interval_seconds) <= end:
        told = seconds
        if meter.moves_seconds:
            told = (seconds - phase) // meter.moves_seconds * meter.moves_seconds + phase
        found.append((seconds, shown.microjoules(told - meter.lag_seconds)))
        point += 1
    return found


def watts(found: list[Reading]) -> Iterator[tuple[float, float]]:
    """The same meter as a power gauge: mean watts between two reads, at the middle of the time."""
    for (before, least), (after, most) in pairwise(found):
        yield (before + after) / 2, (most - least) / (after - before) / 1e6


class _Shown:
    """The counter's value at moments that do not go back."""

    def __init__(self, curve: Curve, meter: Meter, scale: float, dice: random.Random) -> None:
        self._at = Walk(curve)
        self._meter = meter
        self._scale = scale
        self._dice = dice
        self._moment = float("-inf")
        self._truth = self._joules = 0.0

    def microjoules(self, moment: float) -> int:
        if moment > self._moment:
            self._moment = moment
            truth = self._at.joules(moment)
            noise = self._dice.gauss(0.0, self._meter.noise) if self._meter.noise else 0.0
            self._joules += (truth - self._truth) * max(1.0 + noise, 0.0)
            self._truth = truth
        exact = self._joules * self._scale * 1e6
        return int(exact / self._meter.resolution_uj) * self._meter.resolution_uj


class Walk:
    """Joules of a curve at moments that do not go back."""

    def __init__(self, curve: Curve) -> None:
        self._seconds, self._joules = curve.seconds, curve.joules
        self._point = 0

    def joules(self, moment: float) -> float:
        """Linear between the points; before the first and beyond the last it stands still."""
        seconds, last = self._seconds, len(self._seconds) - 1
        if moment <= seconds[0]:
            return self._joules[0]
        while self._point < last and seconds[self._point + 1] < moment:
            self._point += 1
        if self._point == last:
            return self._joules[last]
        begin, end = seconds[self._point], seconds[self._point + 1]
        least, most = self._joules[self._point], self._joules[self._point + 1]
        return least + (most - least) * (moment - begin) / (end - begin)
