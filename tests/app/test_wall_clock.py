"""Core time and wall time over steps of the wall clock."""

from hypothesis import given
from hypothesis import strategies as st

from jouled.app.runtime.wall_clock import WallClock

SECOND = 1_000_000_000


def test_without_steps_both_are_equal():
    clock = WallClock()
    assert clock.to_core(5) == clock.to_wall(5) == 5
    assert clock.wall_minus_core_ns == 0


def test_a_step_forwards_and_one_back_again():
    clock = WallClock()
    clock.step(100, 50)
    clock.step(200, -10)
    assert [clock.to_wall(core) for core in (99, 100, 199, 200)] == [99, 150, 249, 190]
    assert [clock.to_core(wall) for wall in (99, 150, 189, 190)] == [99, 100, 139, 200]


@given(st.lists(st.integers(0, 3600 * SECOND), max_size=5), st.integers(0, 10**19))
def test_steps_forwards_lose_nothing(steps, core_ns):
    clock = WallClock()
    shift = 0
    for index, step in enumerate(steps):
        shift += step
        clock.step((index + 1) * 10**18, shift)
    assert clock.to_core(clock.to_wall(core_ns)) == core_ns
