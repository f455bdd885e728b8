import pytest

from jouled.outputs.store import Published, may_continue


def test_the_number_is_replaced_at_once(tmp_path):
    published = Published(tmp_path / "published")
    assert published.read() is None
    for sequence in (1, 1_000_000):
        published.write(sequence)
        assert Published(tmp_path / "published").read() == sequence
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_an_unreadable_number_counts_as_missing(tmp_path, caplog):
    (tmp_path / "published").write_text("seven")
    assert Published(tmp_path / "published").read() is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("stored", "published", "expected"), [(5, None, True), (5, 5, True), (5, 4, True), (5, 6, False)]
)
def test_counters_go_on_only_from_what_was_last_published_or_later(stored, published, expected):
    assert may_continue(stored, published) is expected
