"""What is learned of an engine whose events come late: windows that were not told of say little, then and later."""

import random

import pytest

from jouled.core.attribution.learning import Fitted, Learning

CELLS = 100
IDLE_UJ = 10e6
TRUE_UPLIFT = 0.5
"""Of idle power, and priors that are right: whatever else is fitted comes of what was not told."""


def windows(learning: Learning, count: int, *, told: float) -> None:
    """Ten seconds each under light and heavy load in turn, with only a share `told` of the work known."""
    for index in range(count):
        static, read = 2e6, (4e6 if index % 2 else 16e6)
        above_uj = [TRUE_UPLIFT * IDLE_UJ + static + read] * CELLS
        expected = [[static, told * read, 0.0, 0.0, 0.0]] * CELLS
        learning.observe([1.0] * CELLS, expected, above_uj, IDLE_UJ, 0.0, (), told=told)


def fitted_after(untold_windows: int, told_windows: int) -> float:
    learning = Learning()
    windows(learning, untold_windows, told=0.3)
    windows(learning, told_windows, told=1.0)
    return learning.fitted.uplift


def test_windows_that_were_told_of_find_the_uplift():
    assert abs(fitted_after(0, 60) - TRUE_UPLIFT) < 0.02


def test_windows_that_were_not_told_of_leave_the_prior():
    assert abs(fitted_after(60, 0) - TRUE_UPLIFT) < 0.02


def test_what_was_not_told_at_first_does_not_bend_what_is_learned_later():
    assert all(abs(fitted_after(60, later) - TRUE_UPLIFT) < 0.05 for later in (1, 2, 5, 20))


def fitted_to(uplift: float, factors: tuple[float, ...], *, idle_guessed: bool = False) -> Fitted:
    """After twenty minutes of windows with the channels in ever other proportions."""
    dice, learning = random.Random(1), Learning(idle_guessed=idle_guessed)
    for _ in range(120):
        expected = [dice.uniform(1e6, 9e6) for _ in factors]
        above_uj = uplift * IDLE_UJ + sum(e * f for e, f in zip(expected, factors, strict=True))
        learning.observe([1.0] * CELLS, [expected] * CELLS, [above_uj] * CELLS, IDLE_UJ, 0.0, ())
    return learning.fitted


def test_what_costs_energy_per_byte_and_per_flop_is_told_apart():
    read, computed = 1.6, 0.8
    found = fitted_to(0.4, (read, computed, computed, computed, read))
    assert found.uplift == pytest.approx(0.4, abs=0.05)
    assert found.factors[0] / found.factors[1] == pytest.approx(read / computed, rel=0.05)
    assert found.factors[4] / found.factors[3] == pytest.approx(read / computed, rel=0.05)


def test_a_guess_at_idle_power_may_have_been_too_high():
    right = (1.0,) * 5
    assert fitted_to(-0.3, right).uplift == 0.0
    assert fitted_to(-0.3, right, idle_guessed=True).uplift == pytest.approx(-0.3, abs=0.1)
