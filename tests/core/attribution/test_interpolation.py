"""A meter's energy at cell edges: what readings say, and what is expected between them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jouled.core.attribution.cells import CELL_NS
from jouled.core.attribution.interpolation import Lags, Shape, edge_values
from jouled.core.ledger.curve import EnergyCurve

SECOND = 10 * CELL_NS


def curve(*knots: tuple[float, int]) -> EnergyCurve:
    """Knots at seconds."""
    found = EnergyCurve()
    for seconds, microjoules in knots:
        found.append(round(seconds * SECOND), microjoules)
    return found


def cells(values: list[int]) -> list[int]:
    return [after - before for before, after in pairwise((0, *values))]


def test_between_two_readings_energy_runs_as_power_is_expected_to():
    shape = Shape(0, [1.0, 1.0, 8.0, 0.0, 0.0], [True] * 5)
    assert cells(edge_values(curve((0.0, 0), (0.5, 1000)), shape, 0, Lags())) == [100, 100, 800, 0, 0]


def test_every_reading_counts_unless_they_are_to_be_apart():
    shape = Shape(0, [1.0] * 10, [True] * 10)
    uneven = curve(*((k / 10, 100 * k + (50 if k % 2 else 0)) for k in range(11)))
    assert cells(edge_values(uneven, shape, 0, Lags())) == [150, 50] * 5
    assert cells(edge_values(uneven, shape, 0, Lags(), apart_ns=SECOND)) == [100] * 10


def test_readings_beside_idle_time_count_all_the_same():
    """Else what a burst used would be lent to the idle cells beside it."""
    shape = Shape(0, [2.0] * 5 + [1.0] * 5, [True] * 5 + [False] * 5)
    told = curve(*((k / 10, 700 * min(k, 5) + 100 * max(k - 5, 0)) for k in range(11)))
    found = cells(edge_values(told, shape, 0, Lags(), apart_ns=SECOND))
    assert sum(found[:5]) == 3500
    assert found[5:] == [100] * 5


def test_where_nothing_is_expected_energy_runs_evenly():
    """Beside a large sum a small expectation does not show, which divided by zero."""
    shape = Shape(0, [1e12, 1e-9, 1e-9, 1e-9], [True] * 4)
    told = curve((0.0, 0), (0.1, 0), (0.15, 0), (0.35, 400), (0.4, 500))
    assert cells(edge_values(told, shape, 0, Lags())) == [0, 100, 200, 200]


def test_a_lag_that_shrinks_leaves_no_cell_without_energy():
    """What a lag of three cells told of the future when the range began is told again nowhere: cells run closer."""
    shape = Shape(0, [1.0] * 30, [True] * 30)
    steady = curve(*((k / 10, 100 * k) for k in range(60)))
    found = [
        after - before for before, after in pairwise((300, *edge_values(steady, shape, 300, Lags(3 * CELL_NS, 0))))
    ]
    assert sum(found) == 2700
    assert all(70 <= microjoules <= 110 for microjoules in found)


@given(
    st.lists(st.tuples(st.integers(1, 5 * CELL_NS), st.integers(0, 10**7)), min_size=2, max_size=60),
    st.lists(st.tuples(st.floats(0.0, 1e9), st.booleans()), min_size=1, max_size=80),
    st.integers(0, 20 * CELL_NS),
    st.integers(-15 * CELL_NS, 15 * CELL_NS),
    st.integers(-15 * CELL_NS, 15 * CELL_NS),
)
def test_whatever_is_expected_the_range_has_what_the_meter_says(steps, expected, apart_ns, begin_lag_ns, end_lag_ns):
    told, t_ns, total = EnergyCurve(), 0, 0
    for after_ns, microjoules in steps:
        told.append(t_ns, total)
        t_ns, total = t_ns + after_ns, total + microjoules
    shape = Shape(0, [power for power, _ in expected], [busy for _, busy in expected])
    values = edge_values(told, shape, 0, Lags(begin_lag_ns, end_lag_ns), apart_ns)
    assert len(values) == len(expected)
    assert values == sorted(values)
    assert values[-1] == max(told.value_at(len(expected) * CELL_NS + end_lag_ns), 0)
