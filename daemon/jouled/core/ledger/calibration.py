"""The node's meter as a function of its parts: watts = offset + slope × parts, with a stated band.

offset: fans, boards and what else is not metered; slope: conversion losses in proportion to the load. An ordinary least
squares fit over the settled one-minute windows of the last hour. It says what a node without such a meter would draw,
and how well: `band_ratio` is 1.96 standard deviations of what the fit leaves, of the mean power (95 % if it is normal).
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from jouled.core.ledger.residual import Window
from jouled.model.units import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND

FEWEST_WINDOWS = 10
LEAST_SPREAD = 0.05
"""Standard deviation of the parts' power over its mean: of a steady load nobody can tell an offset from a slope."""
NORMAL_95 = 1.96


class Calibration(NamedTuple):
    """A fit. band_ratio: half of the 95 % band of a window's power over the mean power; windows: how many it is of."""

    offset_watts: float
    slope_ratio: float
    band_ratio: float
    windows: int


def calibrate(windows: Sequence[Window]) -> Calibration | None:
    """Fit the windows; `None` where they are too few or their load too steady."""
    if len(windows) < FEWEST_WINDOWS:
        return None
    parts = [_watts(window, window.parts_uj) for window in windows]
    whole = [_watts(window, window.whole_uj) for window in windows]
    count = len(windows)
    parts_mean, whole_mean = sum(parts) / count, sum(whole) / count
    variance = sum((p - parts_mean) ** 2 for p in parts) / count
    if parts_mean <= 0.0 or whole_mean <= 0.0 or sqrt(variance) < LEAST_SPREAD * parts_mean:
        return None
    covariance = sum((p - parts_mean) * (w - whole_mean) for p, w in zip(parts, whole, strict=True)) / count
    slope = covariance / variance
    offset = whole_mean - slope * parts_mean
    left = sum((w - offset - slope * p) ** 2 for p, w in zip(parts, whole, strict=True)) / (count - 2)
    return Calibration(offset, slope, NORMAL_95 * sqrt(left) / whole_mean, count)


def _watts(window: Window, energy_uj: int) -> float:
    seconds = (window.end_ns - window.begin_ns) / NANOSECONDS_PER_SECOND
    return energy_uj / MICROJOULES_PER_JOULE / seconds
