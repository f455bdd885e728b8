"""A scenario through the daemon's own path: what `jouled replay` does, without the file."""

from collections.abc import Sequence

from bench.oracle.cases import Case
from bench.oracle.scenario import Scenario, build
from bench.oracle.score import Measures, judge

from jouled.app.runtime.recording.recording import Entry
from jouled.app.runtime.recording.replay import drive
from jouled.core.pipeline import Pipeline
from jouled.model.parameters import Parameters
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot


def measure(case: Case, seed: int, requests: int) -> Measures:
    """One seed of one case."""
    scenario = build(case, seed, requests)
    return judge(scenario, *estimate(scenario))


def estimate(scenario: Scenario) -> tuple[dict[str, Receipt], Snapshot]:
    """Final receipts by id, and the picture at the end.

    Raises `RuntimeError` where an item is refused for another reason than being a duplicate, or a request gets two
    final receipts.
    """
    receipts: dict[str, Receipt] = {}

    def take(finals: Sequence[Receipt]) -> None:
        for receipt in finals:
            if receipt.id in receipts:
                raise RuntimeError(f"two final receipts of {receipt.id}")
            receipts[receipt.id] = receipt

    def refused(number: int, reason: str) -> None:
        if not (scenario.case.telling.duplicates and reason == "duplicate"):
            raise RuntimeError(f"item {number} was refused: {reason}")

    pipeline = Pipeline(Parameters())
    now_ns = drive((Entry(n, item) for n, item in enumerate(scenario.items)), pipeline, take, refused)
    return receipts, pipeline.snapshot(now_ns)
