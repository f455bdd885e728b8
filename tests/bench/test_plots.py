"""The figures: well-formed, the same for the same seeds, and each dot where its value is."""

from xml.etree import ElementTree as ET

import pytest
from bench.oracle import cases
from bench.plots import errors, minute, receipts
from bench.plots.svg import Axis, Drawing, short

LARGEST_BYTES = 150_000


def test_an_axis_holds_its_ends_and_what_lies_beyond() -> None:
    axis = Axis(low=1.0, high=100.0, begin=500.0, end=100.0, logarithmic=True)
    assert [axis.at(value) for value in (0.1, 1.0, 10.0, 100.0, 1e6)] == pytest.approx([500, 500, 300, 100, 100])


@pytest.mark.parametrize(("value", "told"), [(1.0, "1"), (10.0, "10"), (2.26, "2.3"), (-0.01, "0"), (-2.0, "-2")])
def test_coordinates_are_short(value: float, told: str) -> None:
    assert short(value) == told


def test_steps_tell_a_level_once() -> None:
    drawing = Drawing(10, 10)
    drawing.steps([0, 1, 2, 3], [5, 5, 7], "#000000")
    assert 'd="M0 5H2V7H3"' in drawing.done()


def test_words_are_escaped() -> None:
    drawing = Drawing(10, 10)
    drawing.text(1, 2, "a < b & c")
    assert ET.fromstring(drawing.done())[1].text == "a < b & c"


def test_the_same_seeds_give_the_same_bytes() -> None:
    figure = receipts.draw(seed=1, requests=200)
    assert figure == receipts.draw(seed=1, requests=200)
    assert figure != receipts.draw(seed=2, requests=200)
    assert len(figure) < LARGEST_BYTES
    ET.fromstring(figure)


def test_a_minute_expects_the_joules_that_were_measured() -> None:
    figure = minute.draw()
    assert len(figure) < LARGEST_BYTES
    ET.fromstring(figure)
    cells = minute._scaled([(100.0, 50.0, 3.0, 1.0), (100.0, 0.0, 0.0, 0.0)], 65.0)
    assert sum(sum(cell) for cell in cells) * minute.CELL_SECONDS == pytest.approx(65.0)
    assert cells[0][2] == pytest.approx(3 * cells[0][3])


def test_every_case_has_its_row() -> None:
    chosen = [case for case in cases.CASES if case.wmape]
    measures = dict.fromkeys(errors.METHODS, 0.03)
    figure = errors._figure(chosen, {case.name: [measures] for case in chosen})
    told = {element.text for element in ET.fromstring(figure)}
    assert {case.name.replace("_", " ") for case in chosen} <= told
