"""Grading against the truth, on figures that can be checked by hand."""

import pytest
from msgspec.structs import replace
from tests.app.runtime.test_publisher import receipt

from jouled.app.runtime.grading import WARM_UP_NS, Grader, TrueRequest, TrueTotal, Truth
from jouled.model.device import Device, DeviceKind
from jouled.model.snapshot import DeviceView, GroupBook, Snapshot

LATER_NS = WARM_UP_NS + 1


def truth(t_ns: int, measured_uj: int, aborted_uj: int = 0, **requests: TrueRequest) -> Truth:
    return Truth(t_ns=t_ns, total=TrueTotal(measured_uj, aborted_uj), requests=requests, next_since_ns=t_ns)


def books(t_ns: int, *, sequence: int, last_reading_ns: int | None = 1, **microjoules: int) -> Snapshot:
    device = DeviceView(device=Device(name="gpu0", kind=DeviceKind.GPU), energy_uj=0, last_reading_ns=last_reading_ns)
    return Snapshot(t_ns=t_ns, sequence=sequence, total=GroupBook(**microjoules), devices=(device,))


def test_requests_are_matched_in_any_order() -> None:
    grader = Grader(0)
    requests = {
        "a": TrueRequest(10_000_000, "completed", LATER_NS),
        "b": TrueRequest(30_000_000, "completed", LATER_NS),
        "early": TrueRequest(1_000_000, "completed", WARM_UP_NS),
        "left": TrueRequest(1_000_000, "aborted", LATER_NS),
    }
    grader.take_receipts([replace(receipt("a"), joules=9.0), replace(receipt("early"), joules=5.0)])
    grader.take_truth(truth(5, 100, **requests), Snapshot())
    grader.take_receipts([replace(receipt("b"), joules=33.0), replace(receipt("left"), joules=5.0)])
    assert grader.figures() == {
        "graded_requests": 2,
        "grading_begins_in_seconds": 59,
        "wmape_percent": pytest.approx(100 * 4 / 40),
    }


def test_provisional_receipts_do_not_count() -> None:
    grader = Grader(0)
    grader.take_truth(truth(5, 100, a=TrueRequest(10, "completed", LATER_NS)), Snapshot())
    grader.take_receipts([replace(receipt("a"), provisional=True)])
    assert grader.figures()["graded_requests"] == 0


def test_books_as_a_whole_since_the_start() -> None:
    grader = Grader(0)
    grader.take_truth(truth(500, 4_999_500, 0), books(500, sequence=1, measured_uj=700))
    grader.take_truth(truth(1_000, 5_000_000, 0), books(1_000, sequence=2, measured_uj=1_000))
    grader.take_truth(
        truth(11_000, 5_010_000, 300),
        books(11_000, sequence=3, measured_uj=11_000, open_uj=2_000, unreported_uj=200),
    )
    figures = grader.figures()
    assert figures["measured_to_true_ratio"] == pytest.approx(1.0)
    assert figures["truly_aborted_percent"] == pytest.approx(3.0)
    assert figures["unreported_percent"] == pytest.approx(100 * 200 / 8_000)


def test_energy_of_the_time_before_this_run_is_not_compared() -> None:
    """Restored books grow by the whole downtime once the devices are read; no truth of this run does."""
    grader = Grader(0)
    grader.take_truth(truth(1_000, 5_000_000), books(1_000, sequence=7, last_reading_ns=None, measured_uj=1_000))
    grader.take_truth(truth(2_000, 5_001_000), books(2_000, sequence=8, measured_uj=1_000))
    grader.take_truth(truth(2_500, 5_001_500), books(2_000, sequence=8, measured_uj=1_000))
    assert "measured_to_true_ratio" not in grader.figures()
    grader.take_truth(truth(3_000, 5_002_000), books(3_000, sequence=9, measured_uj=901_000))
    grader.take_truth(truth(13_000, 5_012_000), books(13_000, sequence=10, measured_uj=911_000))
    assert grader.figures()["measured_to_true_ratio"] == pytest.approx(1.0)


def test_says_when_grading_begins() -> None:
    grader = Grader(LATER_NS)
    grader.take_truth(truth(LATER_NS + 10_000_000_000, 100), Snapshot())
    assert grader.figures() == {"graded_requests": 0, "grading_begins_in_seconds": 50}
    grader.take_truth(truth(2 * LATER_NS, 100), Snapshot())
    assert grader.figures() == {"graded_requests": 0}
