"""What is learned of an engine whose events come late: windows that were not told of say little, then and later."""

from jouled.core.attribution.learning import Learning

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
