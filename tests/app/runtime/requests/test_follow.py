"""From followed lines to the core: handing over, back-pressure, what is counted."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from jouled.api import EngineHint, FileFollow, FollowSettings, LinesRead, Received, ReceivedRequest, Rejected
from jouled.app.runtime.requests import follow, follow_files, hand_over
from jouled.app.runtime.requests.follow import Follower
from jouled.model.engine import Engine
from jouled.model.errors import JouledError
from jouled.model.requests import RequestStart

ENGINE = Engine(name="sglang-30000", type="sglang")


class Lines:
    """A receiver whose requests are the lines themselves; `?` is refused, `!` is a bug."""

    name: ClassVar[str] = "lines"
    settings_type: ClassVar[type[FollowSettings]] = FollowSettings
    pattern: ClassVar[str] = "*.log"

    def decode_lines(self, lines: Sequence[bytes], read: LinesRead, settings: FollowSettings) -> Received:
        if b"!" in lines:
            raise KeyError(lines)
        told = [line.decode() for line in lines]
        requests = [
            ReceivedRequest(
                event=RequestStart(engine="", id=line, arrival_ns=1), hint=EngineHint(engine=settings.engine)
            )
            for line in told
            if line != "?"
        ]
        rejected = [Rejected("", "question", "?") for line in told if line == "?"]
        return Received(requests=requests, rejected=rejected)


class Core:
    """Takes requests; refuses to while `is_full`, as the daemon does whose disk is full."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.refused = 0
        self.rejected: Counter[str] = Counter()
        self.at_once: list[int] = []
        self.is_full = False
        self.asked_for_engines = 0
        self.engines: list[Engine] = [ENGINE]

    async def accept(self, received: Received) -> Received:
        self.rejected.update(each.reason for each in received.rejected)
        self.rejected.update(received.more_rejected)
        if self.is_full:
            self.refused += 1
            raise JouledError("the disk is full")
        self.at_once.append(len(received.requests))
        self.taken += [each.event.id for each in received.requests]
        return received

    def count(self, reason: str, number: int) -> None:
        self.rejected[reason] += number

    def known(self) -> Iterable[Engine]:
        self.asked_for_engines += 1
        return self.engines


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(hand_over.Backoff, "next_seconds", lambda _self: 0.005)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    return made


def follower(core: Core, folder: Path, receiver: FileFollow | None = None, engine: str = "sglang-30000") -> Follower:
    settings = FollowSettings(directory=str(folder), engine=engine)
    return Follower(receiver or Lines(), settings, core.accept, core.count, core.known, folder.parent)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@contextlib.asynccontextmanager
async def following(core: Core, folder: Path) -> AsyncIterator[Follower]:
    followed = follower(core, folder)
    await followed.follow_once()  # what is there now is not wanted
    task = asyncio.create_task(followed.run())
    try:
        yield followed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - bounded by the deadline above
            await asyncio.sleep(0.005)


async def test_lines_reach_the_core_in_their_order(folder: Path) -> None:
    core = Core()
    async with following(core, folder):
        append(folder / "a.log", "1\n2\n?\n3\n")
        await until(lambda: "3" in core.taken)
    assert core.taken == ["1", "2", "3"]
    assert core.rejected == {"question": 1}


async def test_a_core_that_is_full_stops_the_reading_and_loses_nothing(folder: Path) -> None:
    core = Core()
    async with following(core, folder):
        core.is_full = True
        append(folder / "a.log", "1\n?\n")
        await until(lambda: core.refused > 3)
        append(folder / "a.log", "2\n")
        core.is_full = False
        await until(lambda: "2" in core.taken)
    assert core.taken == ["1", "2"]
    assert core.rejected["question"] == 1


async def test_what_was_not_kept_comes_again_after_a_restart(folder: Path) -> None:
    core = Core()
    async with following(core, folder):
        core.is_full = True
        append(folder / "a.log", "1\n")
        await until(lambda: core.refused)
    core.is_full = False
    await follower(core, folder).follow_once()
    assert core.taken == ["1"]


async def test_what_was_kept_does_not_come_again_after_a_restart(folder: Path) -> None:
    core = Core()
    async with following(core, folder):
        append(folder / "a.log", "1\n")
        await until(lambda: core.taken)
        await until((folder.parent / "follow-lines.json").exists)
    append(folder / "a.log", "2\n")
    again = follower(core, folder)
    while await again.follow_once():
        pass
    assert core.taken[-1] == "2"
    assert len(core.taken) <= 3  # at most the one that was under way comes twice


async def test_nothing_is_read_before_an_engine_is_known(folder: Path) -> None:
    core = Core()
    core.engines = []
    async with following(core, folder):
        append(folder / "a.log", "1\n")
        await until(lambda: core.asked_for_engines > 3)
        assert not core.taken
        core.engines = [ENGINE]
        await until(lambda: core.taken == ["1"])


async def test_many_are_given_in_parts_that_hold_up_nobody(folder: Path) -> None:
    core = Core()
    followed = follower(core, folder)
    await followed.follow_once()
    append(folder / "a.log", "".join(f"{number}\n" for number in range(1_000)))
    assert await followed.follow_once()
    assert core.taken == [str(number) for number in range(1_000)]
    assert max(core.at_once) == hand_over.MOST_AT_ONCE


async def test_no_more_is_read_than_is_handed_over_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "ENOUGH_REQUESTS", 10)
    monkeypatch.setattr(follow_files, "READ_BYTES", 20)
    core = Core()
    followed = follower(core, folder)
    await followed.follow_once()
    append(folder / "a.log", "".join(f"{number:03}\n" for number in range(100)))
    await followed.follow_once()
    assert 10 <= len(core.taken) < 20
    while await followed.follow_once():
        pass
    assert core.taken == [f"{number:03}" for number in range(100)]


async def test_a_bug_in_a_receiver_loses_only_what_it_choked_on(folder: Path) -> None:
    core = Core()
    followed = follower(core, folder)
    await followed.follow_once()
    append(folder / "a.log", "1\n!\n")
    assert await followed.follow_once()
    append(folder / "a.log", "2\n")
    assert await followed.follow_once()
    assert core.taken == ["2"]
    assert core.rejected == {"receiver_failed": 2}


async def test_lines_too_long_and_files_removed_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_files, "READ_BYTES", 8)
    monkeypatch.setattr(follow_files, "LONGEST_LINE_BYTES", 16)
    core = Core()
    followed = follower(core, folder)
    await followed.follow_once()
    append(folder / "a.log", f"1\n{'x' * 40}\n2\nrest")
    while await followed.follow_once():
        pass
    (folder / "a.log").unlink()
    assert not await followed.follow_once()
    assert core.taken == ["1", "2"]
    assert core.rejected == {"line_too_long": 1, "file_removed": 1}


async def test_a_folder_that_is_missing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    core = Core()
    followed = follower(core, tmp_path / "export")
    for _ in range(3):
        assert not await followed.follow_once()
    assert len([record for record in caplog.records if "does not exist yet" in record.message]) == 1
    (tmp_path / "export").mkdir()
    append(tmp_path / "export" / "a.log", "1\n")
    assert await followed.follow_once()
    assert core.taken == ["1"]


async def test_a_state_directory_that_is_full_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core()
    followed = follower(core, folder)
    await followed.follow_once()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(follow_files, "save", full)
    append(folder / "a.log", "1\n")
    assert await followed.follow_once()
    assert core.taken == ["1"]
    assert "a restart begins further back" in caplog.text


class LinesOfSglang(Lines):
    engine_type: ClassVar[str] = "sglang"


@pytest.mark.parametrize(("receiver", "engine"), [(LinesOfSglang(), ""), (Lines(), "sglang-30000")])
async def test_another_engine_makes_no_line_be_read(
    folder: Path, receiver: FileFollow, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core()
    followed = follower(core, folder, receiver, engine)
    await followed.follow_once()
    append(folder / "a.log", "1\n")
    core.engines = [Engine(name="vllm-8000", type="vllm")]
    task = asyncio.create_task(followed.run())
    await until(lambda: core.asked_for_engines > 2)
    assert core.taken == []
    assert "nothing is read before" in caplog.text
    core.engines = [*core.engines, ENGINE]
    await until(lambda: core.taken == ["1"])
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
