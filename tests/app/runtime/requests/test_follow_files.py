"""Lines of growing files, each once: growth, rotation, rewriting, restarts, and what others may put into the folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.app.runtime.requests import follow_files
from jouled.app.runtime.requests.follow_files import FollowedFiles

PATTERN = "requests-*.log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    return made


@pytest.fixture
def follow(tmp_path: Path, folder: Path) -> Callable[[], FollowedFiles]:
    """Begins to follow, as a daemon does that starts."""
    return lambda: FollowedFiles(folder, PATTERN, tmp_path / "follow.json")


def lines_of(files: FollowedFiles) -> list[bytes]:
    """Everything that is there to read; as after handing over, the position is kept."""
    lines: list[bytes] = []
    while (piece := files.read()) is not None:
        lines += piece.lines
        lines += [b"TOO LONG"] * piece.too_long
    files.save()
    return lines


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def test_what_was_there_before_the_first_start_is_not_read(folder, follow):
    append(folder / "requests-1.log", "old\n")
    files = follow()
    assert lines_of(files) == []
    append(folder / "requests-1.log", "new\n")
    assert lines_of(files) == [b"new"]


def test_the_rest_of_a_line_begun_before_the_first_start_is_left_out(folder, follow):
    append(folder / "requests-1.log", "old\nhal")
    files = follow()
    assert lines_of(files) == []
    append(folder / "requests-1.log", "f\nnew\n")
    assert lines_of(files) == [b"new"]


def test_a_partial_line_waits_for_its_end(folder, follow):
    files = follow()
    assert lines_of(files) == []
    append(folder / "requests-1.log", "one\ntw")
    assert lines_of(files) == [b"one"]
    assert lines_of(files) == []
    append(folder / "requests-1.log", "o\n")
    assert lines_of(files) == [b"two"]


def test_a_folder_that_comes_later_is_read_from_the_beginning(tmp_path):
    late = tmp_path / "late"
    files = FollowedFiles(late, PATTERN, tmp_path / "follow.json")
    with pytest.raises(FileNotFoundError):
        files.read()
    late.mkdir()
    append(late / "requests-1.log", "one\n")
    assert lines_of(files) == [b"one"]


def test_rotation_reads_the_old_file_to_its_end_first(folder, follow):
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", "a\n")
    assert lines_of(files) == [b"a"]
    append(folder / "requests-1.log", "b\n")
    append(folder / "requests-2.log", "c\n")
    os.utime(folder / "requests-1.log", ns=(1, 1))
    assert lines_of(files) == [b"b", b"c"]
    append(folder / "requests-2.log", "d\n")
    assert lines_of(files) == [b"d"]


def test_a_file_that_is_renamed_is_not_read_again(folder, follow):
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", "a\n")
    assert lines_of(files) == [b"a"]
    (folder / "requests-1.log").rename(folder / "requests-1.old.log")
    append(folder / "requests-1.log", "b\n")
    append(folder / "requests-1.old.log", "c\n")
    assert sorted(lines_of(files)) == [b"b", b"c"]


@pytest.mark.parametrize("text", ["x\n", "another and longer\nx\n"])
def test_a_file_that_was_emptied_and_written_anew_is_read_from_its_beginning(folder, follow, text):
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", "the first\n")
    assert lines_of(files) == [b"the first"]
    (folder / "requests-1.log").write_text(text)
    assert lines_of(files) == text.encode().splitlines()


def test_a_file_that_was_cut_back_is_read_from_its_beginning(folder, follow):
    files = follow()
    lines_of(files)
    lines = [f"line {number:03}" for number in range(100)]
    append(folder / "requests-1.log", "\n".join(lines) + "\n")
    assert len(lines_of(files)) == 100
    os.truncate(folder / "requests-1.log", 50 * 9)  # its first bytes are the same
    append(folder / "requests-1.log", "new\n")
    assert lines_of(files) == [line.encode() for line in [*lines[:50], "new"]]


def test_a_restart_loses_nothing_and_repeats_nothing(folder, follow):
    first = follow()
    lines_of(first)
    append(folder / "requests-1.log", "a\nb\npart")
    assert lines_of(first) == [b"a", b"b"]
    append(folder / "requests-1.log", "ial\nc\n")
    append(folder / "requests-2.log", "d\n")
    assert lines_of(follow()) == [b"partial", b"c", b"d"]


def test_what_was_read_and_not_kept_comes_again(folder, follow):
    first = follow()
    lines_of(first)
    append(folder / "requests-1.log", "a\n")
    piece = first.read()
    assert piece is not None
    assert lines_of(follow()) == [b"a"]


def test_another_folder_begins_anew(tmp_path, folder, follow):
    append(folder / "requests-1.log", "a\n")
    lines_of(follow())
    other = tmp_path / "other"
    other.mkdir()
    append(other / "requests-1.log", "old\n")
    assert lines_of(FollowedFiles(other, PATTERN, tmp_path / "follow.json")) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"directory": 1}', b"\xff"])
def test_a_broken_state_file_stops_nothing(tmp_path, folder, follow, content, caplog):
    append(folder / "requests-1.log", "old\n")
    (tmp_path / "follow.json").write_bytes(content)
    files = follow()
    assert lines_of(files) == []
    assert "cannot be read" in caplog.text
    append(folder / "requests-1.log", "new\n")
    assert lines_of(files) == [b"new"]


def test_an_inode_that_is_used_again_is_another_file(folder, follow, tmp_path):
    append(folder / "requests-1.log", "first file\n")
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", "one\n")
    assert lines_of(files) == [b"one"]
    # As if the file had gone while nobody looked, and its number had gone to another, longer one.
    state = json.loads((tmp_path / "follow.json").read_bytes())
    (position,) = state["by_inode"].values()
    (folder / "requests-1.log").unlink()
    append(folder / "requests-2.log", "quite another file\nwith two lines\n")
    state["by_inode"] = {str((folder / "requests-2.log").stat().st_ino): position}
    (tmp_path / "follow.json").write_text(json.dumps(state))
    assert lines_of(follow()) == [b"quite another file", b"with two lines"]


def test_a_file_removed_with_something_unread_in_it_is_counted(folder, follow):
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", "a\nunfinished")
    append(folder / "requests-2.log", "b\n")
    assert lines_of(files) == [b"a", b"b"]
    (folder / "requests-1.log").unlink()
    (folder / "requests-2.log").unlink()
    assert lines_of(files) == []
    assert files.lost_files == 1


def test_when_a_file_was_written_is_asked_after_reading_it(folder, follow, monkeypatch):
    """What comes while it reads must not look older than it is."""
    files = follow()
    lines_of(files)
    file = folder / "requests-1.log"
    append(file, "a\n")
    os.utime(file, ns=(1, 1))
    pread = os.pread

    def pread_late(*arguments: int) -> bytes:
        os.utime(file, ns=(2, 2))
        return pread(*arguments)

    monkeypatch.setattr(follow_files.os, "pread", pread_late)
    piece = files.read()
    assert piece is not None
    assert (piece.lines, piece.written_ns) == ([b"a"], 2)


def test_a_line_that_is_too_long_is_left_out_alone(folder, follow, monkeypatch):
    monkeypatch.setattr(follow_files, "READ_BYTES", 16)
    monkeypatch.setattr(follow_files, "LONGEST_LINE_BYTES", 64)
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", b"short\n" + b"x" * 50 + b"\n" + b"y" * 500)
    assert lines_of(files) == [b"short", b"x" * 50, b"TOO LONG"]
    append(folder / "requests-1.log", b"y" * 500 + b"\nafter\n")
    assert lines_of(files) == [b"after"]


def test_it_holds_no_more_than_a_read_of_a_large_file(folder, follow, monkeypatch):
    reads: list[int] = []

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        data = real(descriptor, size, offset)
        reads.append(len(data))
        return data

    real = os.pread
    files = follow()
    lines_of(files)
    with (folder / "requests-1.log").open("wb") as file:  # 5 GB with a hole in the middle
        file.write(b"first\n")
        file.seek(5_000_000_000)
        file.write(b"\nlast\n")
    monkeypatch.setattr(follow_files.os, "pread", pread)
    monkeypatch.setattr(follow_files, "LONGEST_LINE_BYTES", 64 * 1024 * 1024)
    seen: list[bytes] = []
    for _ in range(5):
        piece = files.read()
        assert piece is not None
        seen += piece.lines
    assert seen == [b"first"]
    assert max(reads) <= 64 * 1024 * 1024


def test_links_pipes_folders_and_other_names_are_left_alone(folder, follow, tmp_path):
    files = follow()
    lines_of(files)
    (tmp_path / "secret").write_text("secret\n")
    (folder / "requests-link.log").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "requests-pipe.log")
    (folder / "requests-folder.log").mkdir()
    append(folder / "other.log", "other\n")
    append(folder / "requests-1.log", "a\n")
    assert lines_of(files) == [b"a"]


def test_a_file_that_cannot_be_read_stops_no_other(folder, follow, monkeypatch):
    files = follow()
    lines_of(files)
    append(folder / "requests-1.log", "a\n")
    append(folder / "requests-2.log", "b\n")
    real = os.open

    def refuse(path: object, flags: int) -> int:
        if str(path).endswith("requests-1.log"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags)  # type: ignore[arg-type]

    monkeypatch.setattr(follow_files.os, "open", refuse)
    piece = files.read()
    assert piece is not None
    assert piece.lines == [b"b"]
    with pytest.raises(PermissionError):
        files.read()
    monkeypatch.setattr(follow_files.os, "open", real)
    assert lines_of(files) == [b"a"]


def test_many_files_are_not_looked_at_one_by_one(folder, follow, monkeypatch):
    for number in range(200):
        append(folder / f"requests-{number:03}.log", "old\n")
        os.utime(folder / f"requests-{number:03}.log", ns=(number, number))
    os.utime(folder, ns=(10**18, 10**18))
    files = follow()
    assert lines_of(files) == []
    looked: list[object] = []
    real = os.lstat

    def lstat(path: object) -> os.stat_result:
        looked.append(path)
        return real(path)  # type: ignore[arg-type]

    monkeypatch.setattr(follow_files.os, "lstat", lstat)
    assert lines_of(files) == []
    assert len(looked) < 10


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["write", "half", "rotate", "read", "restart", "crash"]), max_size=40))
def test_whatever_happens_every_line_comes_and_none_twice_but_after_a_crash(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("steps")
    folder = root / "export"
    folder.mkdir()
    files = FollowedFiles(folder, PATTERN, root / "follow.json")
    lines_of(files)
    written: list[bytes] = []
    seen: list[bytes] = []
    half, hour, crashed = False, 0, False

    def write(text: str) -> None:
        append(folder / f"requests-{hour:02}.log", text)

    for step in steps:
        if step in {"write", "rotate"}:
            written.append(b"rest" if half else f"line {len(written)}".encode())
            write("st\n" if half else f"line {len(written) - 1}\n")
            half = False
            hour += step == "rotate"
        elif step == "half" and not half:
            write("re")
            half = True
        elif step == "read":
            seen += lines_of(files)
        elif step == "restart":
            files = FollowedFiles(folder, PATTERN, root / "follow.json")
        elif step == "crash":
            crashed |= files.read() is not None
            files = FollowedFiles(folder, PATTERN, root / "follow.json")
    seen += lines_of(files)
    assert sorted(seen) == sorted(written)


def test_a_file_written_anew_to_the_same_size_is_read_again(folder, follow):
    path = folder / "requests-1.log"
    files = follow()
    assert lines_of(files) == []
    append(path, "one\n")
    assert lines_of(files) == [b"one"]
    path.write_bytes(b"two\n")
    os.utime(path, ns=(1, 1))
    assert lines_of(files) == [b"two"]


def test_a_first_start_on_a_full_disk_does_not_skip_what_comes(folder, follow, monkeypatch):
    append(folder / "requests-1.log", "old\n")
    files = follow()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(follow_files, "save", full)
        assert files.read() is None
        append(folder / "requests-1.log", "new\n")
    assert lines_of(files) == [b"new"]
