"""Bands of a receipt's parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.core.attribution.uncertainty import Bands, Doubt

JOULES = st.floats(0.0, 1e6)


def bands(*, guessed: bool) -> Bands:
    doubt = Doubt(shares=(1.0,) * 6, architecture=not guessed, steps_counted=True, coverage=None, means=None)
    return Bands(doubt, idle_guessed=False)


@given(JOULES, JOULES, JOULES, JOULES, st.booleans())
def test_a_part_that_is_nothing_has_no_band_of_its_own(sigma, prefill, decode, resident, guessed):
    found = bands(guessed=guessed)
    assert found.sigma_prefill_joules(sigma, 0.0, decode, resident) == 0.0
    assert found.sigma_decode_joules(sigma, 0.0, resident) == sigma
    assert found.sigma_prefill_joules(sigma, prefill, decode, resident) >= 0.0


@given(JOULES, JOULES, JOULES, JOULES)
def test_guesses_make_bands_wider(sigma, prefill, decode, resident):
    known, guessed = bands(guessed=False), bands(guessed=True)
    parts = sigma, prefill, decode, resident
    assert known.sigma_prefill_joules(*parts) <= guessed.sigma_prefill_joules(*parts)
    assert known.sigma_decode_joules(sigma, decode, resident) <= guessed.sigma_decode_joules(sigma, decode, resident)


def test_a_guess_at_idle_power_counts_as_one_at_the_architecture():
    doubt = Doubt(shares=(1.0,) * 6, architecture=True, steps_counted=True, coverage=None, means=None)
    guessed = Bands(doubt, idle_guessed=True).sigma_decode_joules(2.0, 100.0, 50.0)
    assert guessed == bands(guessed=True).sigma_decode_joules(2.0, 100.0, 50.0)


def test_decode_is_known_no_better_than_the_request():
    found = bands(guessed=False).sigma_decode_joules(2.0, 100.0, 50.0)
    assert found == pytest.approx((2.0**2 + 10.0**2 + 9.0**2) ** 0.5)
