"""The file sink on real files: every record once and whole, whatever ends the writer or fills the disk."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.snapshots import NOW_NS, receipt, snapshot
from tests.support.tools import REPOSITORY

from jouled.api import Delivery, TakesPoints, TakesReceipts
from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import NumberedReceipt, Points
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.sinks import jsonl
from jouled.outputs.sinks.jsonl import JsonlSettings, JsonlSink, OpenJsonl
from jouled.outputs.sinks.jsonl_file import LinesFile
from jouled.outputs.sinks.jsonl_lines import key_in, key_of, line_of


def opened(path: Path, **settings: Any) -> OpenJsonl:
    return JsonlSink().open(JsonlSettings(path=str(path), **settings), "node17")


def numbered(first: int, last: int, **changes: Any) -> list[NumberedReceipt]:
    return [NumberedReceipt(number, receipt(number, **changes)) for number in range(first, last + 1)]


def moment(number: int) -> Points:
    return unpacked(number, packed(snapshot(), "1.2.3", NOW_NS - 3_600_000_000_000))


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def numbers(*paths: Path) -> list[int]:
    return [line["number"] for path in paths for line in lines(path)]


def older(folder: Path) -> list[Path]:
    """The files put aside, the oldest first."""
    return sorted(folder.glob("r.jsonl.*"), key=lambda file: -int(file.suffix[1:]))


def inode(path: Path) -> int:
    return path.stat().st_ino


async def test_receipt_is_one_line_with_all_its_fields(tmp_path: Path) -> None:
    sink = opened(tmp_path / "r.jsonl")
    delivery = await sink.receipts(numbered(3, 4))
    assert delivery == Delivery(2)
    first, second = lines(tmp_path / "r.jsonl")
    assert (first["type"], first["number"], first["node"], second["number"]) == ("receipt", 3, "node17", 4)
    assert first["id"] == receipt(3).id
    assert first["joules"] == 321.5
    assert first["sigma_joules"] == 9.5
    assert first["joules_residual"] is None
    assert first["good"] == {"chat": True, "batch": True, "agent": False}
    assert first["last_token_ns"] == receipt(3).last_token_ns
    assert first["outcome"] == "completed"
    assert stat.S_IMODE((tmp_path / "r.jsonl").stat().st_mode) == 0o640
    await sink.close()


async def test_points_hold_every_series_with_labels_and_value(tmp_path: Path) -> None:
    sink = opened(tmp_path / "p.jsonl", streams=["points"])
    sent = moment(1)
    await sink.points([sent])
    [line] = lines(tmp_path / "p.jsonl")
    assert (line["type"], line["number"], line["t_ns"], line["node"]) == ("points", 1, NOW_NS, "node17")
    families = {family["name"]: family for family in line["families"]}
    assert set(families) == {family.name for family in sent.families}
    for family in sent.families:
        written = families[family.name]
        assert written["unit"] == family.unit
        series = {tuple(one["labels"].values()): one for one in written["series"]}
        assert {labels: one["value"] for labels, one in series.items() if "value" in one} == dict(family.values)
        for labels, histogram in family.histograms.items():
            assert series[labels]["counts"] == list(histogram.counts)
            assert series[labels]["sum"] == histogram.sum
    owner = families["jouled_energy_joules_total"]["series"][0]["labels"]
    assert list(owner) == ["engine", "model_name", "owner", "quality"]
    await sink.close()


@pytest.mark.parametrize(
    ("streams", "kinds"), [(["receipts"], {"receipts"}), (["points", "receipts"], {"points", "receipts"})]
)
async def test_takes_the_streams_it_is_told_to(tmp_path: Path, streams: list[Any], kinds: set[str]) -> None:
    sink = opened(tmp_path / "x.jsonl", streams=streams)
    assert set(sink.most) == kinds
    assert isinstance(sink, TakesPoints)
    assert isinstance(sink, TakesReceipts)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"path": "receipts.jsonl"}, "path"),
        ({"path": "/x", "streams": []}, "streams"),
        ({"path": "/x", "max_mebibytes": 0}, "max_mebibytes"),
        ({"path": "/x", "files_kept": 0}, "files_kept"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word) as refused:
        JsonlSink().open(JsonlSettings(**settings), "node17")
    assert refused.value.mend


async def test_record_that_comes_again_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = opened(path)
    await sink.receipts(numbered(1, 5))
    assert await sink.receipts(numbered(1, 7)) == Delivery(7)  # its answer was lost
    assert numbers(path) == [1, 2, 3, 4, 5, 6, 7]
    again = opened(path)  # after a crash, with a commit of some time ago
    assert await again.receipts(numbered(4, 9)) == Delivery(6)
    assert await again.receipts(numbered(10, 10)) == Delivery(1)
    assert numbers(path) == list(range(1, 11))


async def test_streams_in_one_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first = opened(path, streams=["points", "receipts"])
    await first.receipts(numbered(1, 3))
    await first.points([moment(1), moment(2)])
    again = opened(path, streams=["points", "receipts"])
    await again.points([moment(1), moment(2), moment(3)])
    await again.receipts(numbered(2, 4))
    assert [(line["type"], line["number"]) for line in lines(path)] == [
        *(("receipt", number) for number in (1, 2, 3)),
        *(("points", number) for number in (1, 2, 3)),
        ("receipt", 4),
    ]


async def test_numbers_that_begin_anew_are_other_records(tmp_path: Path) -> None:
    """The store was lost: numbers 1, 2, 3 stand for requests that came later."""
    path = tmp_path / "r.jsonl"
    await opened(path).receipts(numbered(1, 3))
    later = [NumberedReceipt(number, receipt(number + 100)) for number in (1, 2, 3)]
    await opened(path).receipts(later)
    assert numbers(path) == [1, 2, 3, 1, 2, 3]


async def test_looks_back_no_further_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    await opened(path).receipts(numbered(1, 50))
    monkeypatch.setattr(jsonl, "LOOKED_BACK_BYTES", 5_000)
    await opened(path).receipts(numbered(1, 51))
    again = numbers(path)[50:]
    assert again == [*range(1, len(again)), 51]
    assert 30 < len(again) < 50  # those within the bound were recognised


@pytest.mark.parametrize("cut_bytes", [1, 2, 300])
async def test_torn_last_line_is_cut_off_and_its_record_written_again(tmp_path: Path, cut_bytes: int) -> None:
    path = tmp_path / "r.jsonl"
    await opened(path).receipts(numbered(1, 3))
    os.truncate(path, path.stat().st_size - cut_bytes)  # one byte: the line is whole but for its end
    await opened(path).receipts(numbered(2, 4))
    assert numbers(path) == [1, 2, 3, 4]


async def test_file_of_one_torn_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"type":"receipt","num')
    await opened(path).receipts(numbered(1, 2))
    assert numbers(path) == [1, 2]


async def test_file_that_somebody_moved_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = opened(path)
    await sink.receipts(numbered(1, 2))
    path.rename(tmp_path / "moved")
    await sink.receipts(numbered(3, 4))
    assert numbers(path) == [3, 4]


async def test_rotation_loses_and_tears_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = opened(path, max_mebibytes=1, files_kept=3, fsync=False)
    waiting, largest = numbered(1, 6_000), len(line_of(numbered(5_999, 5_999)[0], "node17"))
    while waiting:
        delivery = await sink.receipts(waiting[: sink.most["receipts"]])
        assert delivery.taken >= 1
        waiting = waiting[delivery.taken :]
    files = older(tmp_path)
    assert [file.name for file in files] == ["r.jsonl.3", "r.jsonl.2", "r.jsonl.1"]
    assert all(1024 * 1024 - largest <= file.stat().st_size <= 1024 * 1024 for file in files)
    kept = numbers(*files, path)
    assert kept == list(range(kept[0], 6_001))
    assert kept[0] > 1
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o640 for file in files)


async def test_record_that_comes_again_is_found_in_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    filled = LinesFile(path, max_bytes=5_000, files_kept=9, fsync=True)
    sent = numbered(1, 12)
    place = 0
    while place < len(sent):
        place += filled.append([line_of(each, "node17") for each in sent[place:]])
    assert (tmp_path / "r.jsonl.1").exists()
    await opened(path).receipts(numbered(3, 13))
    assert numbers(*older(tmp_path), path) == list(range(1, 14))


def test_line_longer_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    file = LinesFile(tmp_path / "x", max_bytes=10, files_kept=2, fsync=True)
    assert file.append([b"1234\n", b"5678901234567890\n", b"1\n"]) == 1
    assert file.append([b"5678901234567890\n", b"1\n"]) == 1
    assert file.append([b"1\n"]) == 1
    assert (tmp_path / "x").read_bytes() == b"1\n"
    assert (tmp_path / "x.1").read_bytes() == b"5678901234567890\n"
    assert list(file.backwards()) == [b"1", b"5678901234567890", b"1234"]


def test_gap_that_a_crash_left_between_files_is_no_trouble(tmp_path: Path) -> None:
    for name in ("x", "x.2"):
        (tmp_path / name).write_bytes(name.encode() + b"\n")
    file = LinesFile(tmp_path / "x", max_bytes=2, files_kept=3, fsync=True)
    file.append([b"new\n"])
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert contents == {"x": b"new\n", "x.1": b"x\n", "x.3": b"x.2\n"}


async def test_every_delivery_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "r.jsonl"
    await opened(path).receipts(numbered(1, 2))
    assert synced == [inode(tmp_path), inode(path)]  # the new file's name, then what is in it
    synced.clear()
    await opened(path, fsync=False).receipts(numbered(3, 4))
    assert synced == []


async def test_disk_that_cannot_sync_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    sink = opened(path)
    await sink.receipts(numbered(1, 2))
    before = path.read_bytes()

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        with pytest.raises(SinkError, match="Input/output error") as failed:
            await sink.receipts(numbered(3, 4))
    assert failed.value.reason == "disk"
    assert path.read_bytes() == before
    await sink.receipts(numbered(3, 4))
    assert numbers(path) == [1, 2, 3, 4]


async def test_lines_that_could_not_be_taken_back_are_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    sink = opened(path)
    await sink.receipts(numbered(1, 2))
    written: list[bytes] = []

    def half(descriptor: int, data: Any) -> int:
        if written:
            os.close(descriptor)  # from here on nothing works, cutting back included
        written.append(bytes(data[: len(data) - 10]))
        return os.pwrite(descriptor, written[0], 0)

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", half)
        with pytest.raises(SinkError):
            await sink.receipts(numbered(3, 5))
    assert path.read_bytes().count(b"\n") == 4  # 3 and 4 whole, 5 torn
    await sink.receipts(numbered(3, 6))
    assert numbers(path) == [1, 2, 3, 4, 5, 6]


async def test_folder_that_is_missing_is_told_with_what_mends_it(tmp_path: Path) -> None:
    sink = opened(tmp_path / "missing" / "r.jsonl")
    with pytest.raises(SinkError, match="No such file") as failed:
        await sink.receipts(numbered(1, 1))
    assert failed.value.reason == "disk"
    assert str(tmp_path / "missing") in failed.value.mend
    (tmp_path / "missing").mkdir()
    assert await sink.receipts(numbered(1, 1)) == Delivery(1)


_FULL = """
    import asyncio, os, sys
    from pathlib import Path
    from tests.support.snapshots import receipt
    from jouled.model.errors import SinkError
    from jouled.model.points import NumberedReceipt
    from jouled.outputs.sinks.jsonl import JsonlSettings, JsonlSink

    folder = Path(sys.argv[1])

    async def main():
        path = folder / "r.jsonl"
        sink = JsonlSink().open(JsonlSettings(path=str(path)), "node17")
        (folder / "filler").write_bytes(b"x" * 40_000)
        waiting = [NumberedReceipt(number, receipt(number)) for number in range(1, 41)]
        failures = 0
        while waiting:
            before = path.read_bytes() if path.exists() else b""
            try:
                delivery = await sink.receipts(waiting[:7])
            except SinkError as error:
                failures += 1
                assert error.reason == "disk", error
                assert "room" in error.mend, error
                assert path.read_bytes() == before
                if failures == 3:
                    (folder / "filler").unlink()
            else:
                waiting = waiting[delivery.taken:]
        assert failures == 3, failures
        sys.stdout.write(path.read_text())

    asyncio.run(main())
"""


def test_full_disk_takes_whole_lines_or_nothing(tmp_path: Path) -> None:
    """A tmpfs of 64 KiB in a mount namespace of its own, where only root can make one."""
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(_FULL))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" "$3" "$1"'
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", disk, sys.executable, script],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if ended.returncode and "ermitted" in ended.stderr:
        pytest.skip(f"a mount namespace needs root: {ended.stderr}")
    assert ended.returncode == 0, ended.stderr
    assert [json.loads(line)["number"] for line in ended.stdout.splitlines()] == list(range(1, 41))


_LIMITED = """
    import asyncio, resource, sys
    from pathlib import Path
    from tests.support.snapshots import receipt
    from jouled.model.errors import SinkError
    from jouled.model.points import NumberedReceipt
    from jouled.outputs.sinks.jsonl import JsonlSettings, JsonlSink

    path = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))

    async def main():
        sink = JsonlSink().open(JsonlSettings(path=str(path)), "node17")
        for number in range(1, 100):
            before = path.read_bytes() if path.exists() else b""
            try:
                await sink.receipts([NumberedReceipt(number, receipt(number))])
            except SinkError as error:
                assert error.reason == "disk", error
                assert path.read_bytes() == before
                break
        else:
            raise AssertionError("the limit was never met")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await sink.receipts([NumberedReceipt(number, receipt(number))])
        sys.stdout.write(str(number))

    asyncio.run(main())
"""


def test_limit_of_file_size_takes_whole_lines_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    last = int(_run(_LIMITED, path))
    assert last > 2
    assert numbers(path) == list(range(1, last + 1))


def _run(script: str, *arguments: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


_WRITER = """
    import asyncio, sys
    from tests.support.snapshots import receipt
    from jouled.model.points import NumberedReceipt
    from jouled.outputs.sinks.jsonl import JsonlSettings, JsonlSink

    path, position, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = JsonlSettings(path=path, max_mebibytes=1, files_kept=50)
    padding = {"p": "x" * 2_000}

    async def main():
        place = position
        sink = JsonlSink().open(settings, "node17")
        sent = 0
        print("ready", flush=True)
        while place < last:
            part = [
                NumberedReceipt(number, receipt(number, method=padding))
                for number in range(place + 1, min(place + 150, last) + 1)
            ]
            place += (await sink.receipts(part)).taken
            sent += 1
            if sent % 3 == 0 or place == last:
                print(place, flush=True)  # the commit that keeps the place

    asyncio.run(main())
"""


def test_writer_killed_at_any_moment_writes_every_record_once(tmp_path: Path) -> None:
    path, last = tmp_path / "r.jsonl", 8_000
    position, kills, chance = 0, 0, random.Random(17)
    while position < last:
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WRITER), path, str(position), str(last)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        timer = threading.Timer(chance.uniform(0.005, 0.08), writer.send_signal, [signal.SIGKILL])
        timer.start()
        committed = writer.stdout.read().splitlines()
        timer.cancel()
        kills += writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        position = int(committed[-1]) if committed else position
    files = older(tmp_path)
    assert kills >= 3
    assert len(files) >= 3
    assert numbers(*files, path) == list(range(1, last + 1))


_texts = st.text(max_size=30)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_times = st.integers(min_value=0, max_value=2**63 - 1)


@given(
    number=_times,
    name=_texts,
    engine=_texts,
    last_token_ns=_times,
    joules=_floats,
    node=_texts,
    tags=st.dictionaries(_texts, _texts, max_size=3),
)
def test_any_receipt_is_one_line_that_reads_back(
    number: int, name: str, engine: str, last_token_ns: int, joules: float, node: str, tags: dict[str, str]
) -> None:
    record = NumberedReceipt(
        number, receipt(0, id=name, engine=engine, last_token_ns=last_token_ns, joules=joules, method=tags)
    )
    line = line_of(record, node)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    read = json.loads(line)
    assert (read["number"], read["id"], read["engine"], read["node"]) == (number, name, engine, node)
    assert (read["last_token_ns"], read["joules"], read["method"]) == (last_token_ns, joules, tags)
    assert key_in(line) == key_of(record)


@given(st.binary(max_size=200))
def test_line_of_anything_else_has_no_key(line: bytes) -> None:
    assert key_in(line) is None


@given(st.lists(st.binary(min_size=1, max_size=40).map(lambda data: data.replace(b"\n", b" ")), max_size=30))
def test_lines_read_backwards_are_those_appended(
    tmp_path_factory: pytest.TempPathFactory, content: Sequence[bytes]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x"
    file = LinesFile(path, max_bytes=10_000, files_kept=1, fsync=False)
    if content:
        assert file.append([line + b"\n" for line in content]) == len(content)
    assert list(file.backwards()) == list(reversed(content))
