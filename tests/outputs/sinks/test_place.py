"""A place in a stream: what is sent again behind an outage, and what is not."""

from hypothesis import given
from hypothesis import strategies as st

from jouled.outputs.sinks.place import MOST_REPEATS, Place

SECOND_NS = 1_000_000_000


def advanced(place: Place, *steps: tuple[int, float]) -> Place:
    for number, seconds in steps:
        place.advance(number, round(seconds * SECOND_NS))
    return place


def test_what_was_taken_in_the_last_seconds_before_the_last_delivery_comes_again():
    place = advanced(Place(0, 0, 60.0), (10, 0.0), (20, 30.0), (30, 65.0))
    place.go_back()
    assert (place.at, place.certain, place.taken) == (10, 10, 30)


def test_it_begins_where_the_life_before_was_certain():
    assert Place(100, 40, 60.0).at == 40
    assert Place(100, 40, 0.0).at == 100, "nothing is to be sent again"
    assert Place(100, 140, 60.0).at == 100


def test_without_resending_every_delivery_is_certain_at_once():
    place = advanced(Place(0, 0, 0.0), (10, 0.5), (25, 0.7))
    assert place.certain == place.at == 25
    place.go_back()
    assert place.at == 25


def test_a_receiver_that_dies_while_it_is_told_again_is_told_a_third_time():
    place = advanced(Place(0, 0, 60.0), (10, 0.0), (20, 1.0))
    place.go_back()
    advanced(place, (15, 2.0))
    place.go_back()
    assert (place.at, place.taken) == (0, 20)


def test_connections_that_keep_breaking_do_not_hold_it_up_for_ever():
    place = Place(0, 0, 60.0)
    reached = []
    for second in range(4 * MOST_REPEATS):
        advanced(place, (place.at + 10, second))
        place.go_back()
        reached.append(place.at)
    assert reached[MOST_REPEATS] == 10
    assert reached[-1] == 30


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 5), st.floats(0.0, 40.0)),
            st.none(),
        ),
        max_size=40,
    )
)
def test_nothing_that_may_be_forgotten_is_left_out(steps):
    """Each record is, at each death, either delivered again or was delivered 60 s before the last delivery."""
    place, second = Place(0, 0, 60.0), 0.0
    delivered: dict[int, float] = {}
    deaths = 0
    for step in steps:
        if step is None:
            deaths = deaths + 1 if place.at > place.certain else deaths
            last = max(delivered.values(), default=0.0)
            place.go_back()
            if deaths <= MOST_REPEATS:
                assert all(last - delivered[number] >= 59.0 for number in range(1, place.at + 1))
            continue
        more, wait = step
        second += wait
        for number in range(place.at + 1, place.at + more + 1):
            delivered[number] = second
        before = place.certain
        place.advance(place.at + more, round(second * SECOND_NS))
        if place.certain > before:
            deaths = 0
        assert place.certain <= place.at <= place.taken
