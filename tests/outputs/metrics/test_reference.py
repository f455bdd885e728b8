from pathlib import Path

from jouled.outputs.metrics.catalogue import CATALOGUE, GROUPS
from jouled.outputs.metrics.reference import render


def test_the_reference_is_current():
    page = Path(__file__).parents[3] / "docs/metrics.md"
    assert page.read_text(encoding="utf-8") == render(), "run: make docs"


def test_the_reference_names_every_metric_and_label():
    page = render()
    for metric in CATALOGUE.values():
        assert f"| `{metric.full_name}` |" in page
        assert all(f"`{label}`" in page for label in metric.labels)


def test_names_are_unique_and_say_their_type():
    metrics = [metric for _, group in GROUPS for metric in group]
    assert len(metrics) == len(CATALOGUE)
    for metric in metrics:
        assert (metric.type == "counter") == metric.name.endswith("_total")
        assert (metric.type == "info") == metric.name.endswith("_info")
        assert (metric.parts_per_unit == 1_000_000) == (metric.type == "counter" and "_joules_" in metric.name)
