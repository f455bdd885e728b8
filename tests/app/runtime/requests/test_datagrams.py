"""A receiver's datagrams, over real Unix sockets: taken, held, refused, and never in the way of the loop."""

import asyncio
import logging
import os
import socket
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from tests.support.unprivileged import NOBODY

from jouled.api import EngineHint, MalformedBodyError, Received, ReceivedRequest, Rejected
from jouled.app.runtime.requests import datagrams, hand_over
from jouled.app.runtime.requests.datagrams import LONGEST_DATAGRAM_BYTES, Datagrams
from jouled.model.engine import Engine
from jouled.model.errors import JouledError
from jouled.model.requests import RequestStart

SENDS_ONE = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'a', sys.argv[1])"
GROUP = 4242


class Words:
    """A receiver whose datagrams are request ids, parted by spaces."""

    name: ClassVar[str] = "words"
    socket_name: ClassVar[str] = "words.sock"

    def decode(self, datagram: bytes) -> Received:
        if datagram == b"malformed":
            raise MalformedBodyError("it says so")
        if datagram == b"crash":
            raise ZeroDivisionError
        requests, rejected = [], []
        for position, word in enumerate(datagram.decode().split()):
            hint = EngineHint(pid=77) if word.startswith("pid77") else EngineHint()
            if word == "bad":
                rejected.append(Rejected(str(position), "bad_word", "bad"))
            else:
                requests.append(ReceivedRequest(event=RequestStart(engine="", id=word, arrival_ns=1), hint=hint))
        more = {"lost": 3} if b"bad" in datagram else {}
        return Received(requests=requests, rejected=rejected, more_rejected=more)


class Core:
    """What accepts; it takes nothing while `is_stuck`, promises nothing once it `has_ended`.

    Nobody gets an answer before it is `free`.
    """

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.taken: list[ReceivedRequest] = []
        self.batches: list[int] = []
        self.counted: Counter[str] = Counter()
        self.offered = 0
        self.is_stuck = self.has_ended = False
        self.free = asyncio.Event()
        self.free.set()

    async def accept(self, received: Received) -> Received:
        self.offered += len(received.requests)
        await self.free.wait()
        if self.is_stuck:
            raise JouledError("the disk is full")
        self.taken += received.requests
        self.batches.append(len(received.requests))
        if self.has_ended:
            raise JouledError("it ends")
        return received

    def count(self, reason: str, number: int) -> None:
        self.counted[reason] += number

    @property
    def ids(self) -> list[str]:
        return [request.event.id for request in self.taken]


@asynccontextmanager
async def running(core: Core, folder: Path) -> AsyncIterator[Path]:
    """A receiver at work; its socket's path."""
    task = asyncio.create_task(Datagrams(Words(), core.accept, core.count, lambda: core.engines, folder).run())
    await asyncio.sleep(0)
    try:
        yield folder / Words.socket_name
    finally:
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)


@contextmanager
def sender(path: Path) -> Iterator[Callable[[bytes], int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.setblocking(False)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield lambda content: sending.sendto(content, str(path))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it waits for comes over a socket
            await asyncio.sleep(0)


@pytest.fixture
def core() -> Core:
    return Core()


async def test_requests_reach_the_core_with_their_senders_process(core: Core, tmp_path: Path) -> None:
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"a pid77-b")
        await until(lambda: len(core.taken) == 2)
    assert [(request.event.id, request.hint.pid) for request in core.taken] == [("a", os.getpid()), ("pid77-b", 77)]


async def test_the_process_is_the_kernels_word_whoever_sends(core: Core, tmp_path: Path) -> None:
    async with running(core, tmp_path) as path:
        process = await asyncio.create_subprocess_exec(sys.executable, "-Sc", SENDS_ONE, path)
        await until(lambda: bool(core.taken))
        await process.wait()
    assert core.taken[0].hint.pid == process.pid


@pytest.mark.parametrize(("pids", "is_found"), [([os.getpid()], True), ([2**22 + 1], False), ([], False)])
async def test_what_a_server_says_that_the_engines_process_started_is_the_engines(
    core: Core, tmp_path: Path, pids: list[int], is_found: bool
) -> None:
    core.engines = [Engine(name=f"vllm-{pid}", type="vllm", pid=pid) for pid in (*pids, None)]
    async with running(core, tmp_path) as path:
        waits = [sys.executable, "-Sc", f"{SENDS_ONE}; sys.stdin.read()", str(path)]
        process = await asyncio.create_subprocess_exec(*waits, stdin=asyncio.subprocess.PIPE)
        await until(lambda: bool(core.taken))
        await process.communicate(b"")
    assert core.taken[0].hint.pid == (os.getpid() if is_found else process.pid)


async def test_owner_and_group_may_send_and_nobody_else(core: Core, tmp_path: Path) -> None:
    async with running(core, tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


@contextmanager
def account(groups: list[int]) -> Iterator[None]:
    """Another user, a member of these groups."""
    before = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(groups)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before[2])
        os.setegid(before[1])
        os.setgroups(before[0])


@pytest.fixture
def service_directory() -> Iterator[Path]:
    """A runtime directory as systemd makes it: 0750, and what is made in it belongs to the group."""
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        folder = Path(above) / "jouled"
        folder.mkdir()
        os.chown(folder, -1, GROUP)
        folder.chmod(0o2750)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can take on other accounts")
async def test_an_engines_account_needs_the_daemons_group(core: Core, service_directory: Path) -> None:
    async with running(core, service_directory) as path:
        with sender(path) as send:
            with account([]), pytest.raises(PermissionError):
                send(b"stranger")
            with account([GROUP]):
                send(b"engine")
        await until(lambda: bool(core.ids))
    assert core.ids == ["engine"]


async def test_what_a_crash_left_behind_is_replaced(core: Core, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(tmp_path / Words.socket_name))
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"a")
        await until(lambda: core.ids == ["a"])


async def test_another_daemons_socket_is_left_alone(
    core: Core, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(core, tmp_path) as path:
        inode = path.stat().st_ino
        await Datagrams(Words(), core.accept, core.count, lambda: core.engines, tmp_path).run()
        assert path.stat().st_ino == inode
    assert f"another process receives at {path}" in caplog.text


@pytest.mark.parametrize("folder", ["missing", "x" * 120])
async def test_a_socket_that_cannot_be_made_is_told_and_stops_nothing(
    core: Core, tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    await Datagrams(Words(), core.accept, core.count, lambda: core.engines, tmp_path / folder).run()
    assert "cannot be made" in caplog.text


async def test_what_is_wrong_is_counted_and_the_next_is_taken(
    core: Core, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            for content in (
                b"malformed",
                b"crash",
                b"crash",
                b"",
                b"bad bad",
                b"x" * (LONGEST_DATAGRAM_BYTES + 1),
                b"a",
            ):
                send(content)
        await until(lambda: core.ids == ["a"])
    assert core.counted == {"malformed_datagram": 1, "decode_error": 2, "bad_word": 2, "lost": 3, "too_large": 1}
    assert len(caplog.records) == 1


async def test_the_largest_datagram_is_taken(core: Core, tmp_path: Path) -> None:
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"x" * LONGEST_DATAGRAM_BYTES)
        await until(lambda: bool(core.taken))
    assert core.ids == ["x" * LONGEST_DATAGRAM_BYTES]
    assert not core.counted


async def test_what_cannot_be_kept_now_is_offered_again(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = asyncio.Event()

    class Soon:
        def __init__(self, *_: float) -> None:
            pass

        def next_seconds(self) -> float:
            offered.set()
            return 0.0

    monkeypatch.setattr(hand_over, "Backoff", Soon)
    core.is_stuck = True
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"a b")
        await offered.wait()
        core.is_stuck = False
        await until(lambda: core.ids == ["a", "b"])


async def test_so_many_are_held_and_the_others_counted(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "MOST_HELD", 5)
    core.free.clear()
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"first")
            await until(lambda: core.offered == 1)
            for number in range(4):
                send(b"a%d b%d" % (number, number))
            await until(lambda: core.counted["not_kept"] == 3)
            send(b"bad")
            await until(lambda: core.counted["bad_word"] == 1)
        core.free.set()
        await until(lambda: len(core.taken) == 6)
    assert core.ids == ["first", "a0", "b0", "a1", "b1", "a2"]
    assert core.counted["not_kept"] == 3


async def test_many_reach_the_core_in_small_batches(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch is a turn of the loop; others get theirs between them."""
    monkeypatch.setattr(datagrams, "MOST_AT_ONCE", 2)
    core.free.clear()
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"first")
            send(b"a b c d e")
        await asyncio.sleep(0)
        core.free.set()
        await until(lambda: len(core.taken) == 6)
    assert max(core.batches) == 2


async def test_a_flood_is_read_a_little_at_a_time(core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn of the loop reads some and then lets others have theirs."""
    monkeypatch.setattr(datagrams, "MOST_BYTES_A_TURN", 3 * datagrams.LEAST_BYTES)
    receiver = Datagrams(Words(), core.accept, core.count, lambda: core.engines, tmp_path)
    bound = receiver._bind()
    assert bound is not None
    with bound, sender(tmp_path / Words.socket_name) as send:
        for _ in range(8):
            send(b"a")
        held = []
        while receiver._read(bound):
            held.append(len(receiver._held))
    assert held == [3, 6]
    assert len(receiver._held) == 8


async def test_what_the_kernel_has_at_the_end_is_handed_on(core: Core, tmp_path: Path) -> None:
    """The loop has no turn between sending and the end."""
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"a")
            send(b"b")
    assert core.ids == ["a", "b"]


async def test_what_is_held_at_the_end_is_handed_on_for_the_last_commit(core: Core, tmp_path: Path) -> None:
    core.free.clear()
    async with running(core, tmp_path) as path:
        with sender(path) as send:
            send(b"offered")
            await until(lambda: core.offered == 1)
            send(b"held bad")
            await until(lambda: core.counted["bad_word"] == 1)
            core.has_ended = True
            core.free.set()
    assert core.ids[-1] == "held"


async def test_what_comes_after_the_last_look_stays_with_its_sender(core: Core, tmp_path: Path) -> None:
    refused = []

    class Late(Core):
        async def accept(self, received: Received) -> Received:
            with sender(tmp_path / Words.socket_name) as send:
                try:
                    send(b"late")
                except OSError:
                    refused.append("late")
            return await super().accept(received)

    late = Late()
    async with running(late, tmp_path) as path:
        with sender(path) as send:
            send(b"a")
    assert (late.ids, refused) == (["a"], ["late"])


def test_it_is_found_again_after_an_end(core: Core, tmp_path: Path) -> None:
    async def once(word: bytes) -> None:
        async with running(core, tmp_path) as path:
            with sender(path) as send:
                send(word)
            await until(lambda: word.decode() in core.ids)

    asyncio.run(once(b"a"))
    asyncio.run(once(b"b"))
    assert core.ids == ["a", "b"]
