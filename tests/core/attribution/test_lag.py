"""How far a meter runs behind the events."""

import random

import pytest

from jouled.core.attribution.lag import CELLS_MIN, REACH, Lag


def power(seed: int, cells: int = 300) -> list[float]:
    """Watts that change every few cells."""
    dice, found = random.Random(seed), [100.0]
    while len(found) < cells:
        found += [dice.uniform(100.0, 700.0)] * dice.randint(2, 8)
    return found[:cells]


def behind(expected: list[float], cells: float) -> list[float]:
    """The same some cells later, between two of them in proportion."""
    whole, part = int(cells), cells - int(cells)
    padded = [expected[0]] * (whole + 1) + expected
    return [(1 - part) * padded[k + 1] + part * padded[k] for k in range(len(expected))]


@pytest.mark.parametrize("cells", [0.8, 2.0, 5.5, 12.0])
def test_a_lag_is_found(cells):
    lag = Lag()
    for seed in range(4):
        lag.observe(behind(power(seed), cells), power(seed))
    assert lag.corrected_ns == pytest.approx(cells * 1e8, abs=2e7)


def test_a_small_lag_is_left_alone():
    lag = Lag()
    for seed in range(4):
        lag.observe(behind(power(seed), 0.3), power(seed))
    assert lag.corrected_ns == 0


def test_power_of_another_course_tells_of_no_lag():
    lag = Lag()
    for seed in range(4):
        lag.observe(power(seed + 100), power(seed))
    assert lag.corrected_ns == 0


def test_power_that_is_expected_to_change_only_at_a_ranges_begin_tells_of_no_lag():
    expected = [100.0] * (REACH // 2) + [300.0] * CELLS_MIN
    lag = Lag()
    lag.observe(behind(expected, REACH - 2), expected)
    assert lag.corrected_ns == 0
