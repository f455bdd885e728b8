"""Bands of a receipt's parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.core.attribution.uncertainty import sigma_decode_joules, sigma_prefill_joules

JOULES = st.floats(0.0, 1e6)


@given(JOULES, JOULES, JOULES, JOULES, st.booleans())
def test_a_part_that_is_nothing_has_no_band_of_its_own(sigma, prefill, decode, resident, guessed):
    assert sigma_prefill_joules(sigma, 0.0, decode, resident, guessed=guessed) == 0.0
    assert sigma_decode_joules(sigma, 0.0, resident, guessed=guessed) == sigma
    assert sigma_prefill_joules(sigma, prefill, decode, resident, guessed=guessed) >= 0.0


@given(JOULES, JOULES, JOULES, JOULES)
def test_guesses_make_bands_wider(sigma, prefill, decode, resident):
    for band, parts in ((sigma_prefill_joules, (prefill, decode, resident)), (sigma_decode_joules, (decode, resident))):
        assert band(sigma, *parts, guessed=False) <= band(sigma, *parts, guessed=True)


def test_decode_is_known_no_better_than_the_request():
    found = sigma_decode_joules(2.0, 100.0, 50.0, guessed=False)
    assert found == pytest.approx((2.0**2 + 10.0**2 + 9.0**2) ** 0.5)
