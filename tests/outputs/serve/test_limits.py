import asyncio
import contextlib
import socket

import pytest

from jouled.outputs.serve import bodies, connection, limits, listener, server
from jouled.outputs.serve.limits import Guesses, Seats, peer_of

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"), ("2001:db8:1:3::9", "2001:db8:1:3::"), ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)  # fmt: skip
def test_whom_an_address_stands_for(host, peer):
    assert peer_of(host) == peer


def test_seats_in_all_and_by_peer(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTIONS", 3)
    monkeypatch.setattr(limits, "CONNECTIONS_PER_PEER", 2)
    seats = Seats()
    seats.take("a")
    seats.take("a")
    assert (seats.refusal("a"), seats.refusal("b")) == ("connections_per_peer", "")
    seats.take("b")
    assert seats.refusal("c") == "connections"
    seats.leave("a")
    assert (seats.refusal("a"), seats.refusal("c")) == ("", "")
    seats.leave("a")
    seats.leave("b")
    assert not seats._taken


def test_wrong_credentials_are_forgiven_one_by_one():
    guesses = Guesses()
    for _ in range(9):
        guesses.add("a", 100.0)
    assert guesses.wait_seconds("a", 100.0) == 0
    guesses.add("a", 100.0)
    assert guesses.wait_seconds("a", 100.0) == pytest.approx(6)
    assert guesses.wait_seconds("a", 104.0) == pytest.approx(2)
    assert guesses.wait_seconds("a", 106.0) == 0
    guesses.add("a", 106.0)
    assert guesses.wait_seconds("a", 106.0) == pytest.approx(6)
    assert guesses.wait_seconds("b", 100.0) == 0


def test_the_peers_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "_PEERS_REMEMBERED", 3)
    guesses = Guesses()
    for peer in "abacd":
        guesses.add(peer, 0.0)
    assert set(guesses._wrong) == {"a", "c", "d"}


@pytest.fixture
async def opened():
    """Opens connections, from an address of choice; they are gone after the test."""
    writers = []

    async def connect(served, source="127.0.0.1"):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port, local_addr=(source, 0))
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until_cut(reader):
    """What came until the server ended the connection."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def asks(reader, writer):
    writer.write(HEAD + b"\r\n")
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"ok\n")
    return b" 200 " in head


async def test_connections_are_limited_by_address_and_in_all(serve, opened, monkeypatch):
    monkeypatch.setattr(limits, "CONNECTIONS_FROM_LOOPBACK", 2)
    monkeypatch.setattr(limits, "CONNECTIONS", 3)
    served = await serve()
    first, second = await opened(served), await opened(served)
    assert await asks(*first)
    assert await asks(*second)
    assert await until_cut((await opened(served))[0]) == b""
    assert served.refused == {"connections_per_peer": 1}
    assert await asks(*await opened(served, "127.0.0.2"))
    assert await until_cut((await opened(served, "127.0.0.3"))[0]) == b""
    assert served.refused["connections"] == 1
    await served.post("/api/v1/requests", b"a", unix=True)

    first[1].write(HEAD + b"Connection: close\r\n\r\n")
    await until_cut(first[0])
    assert await asks(*await opened(served))


async def test_a_header_that_drips_is_cut_off_in_the_first_request_and_later(serve, opened, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    served = await serve()
    silent = await opened(served)
    assert await until_cut(silent[0]) == b""
    dripping = await opened(served)
    dripping[1].write(HEAD)
    assert await until_cut(dripping[0]) == b""
    later = await opened(served)
    assert await asks(*later)
    later[1].write(HEAD[:5])
    assert await until_cut(later[0]) == b""
    assert served.refused == {"header_too_slow": 3}


async def test_a_connection_between_two_requests_is_left_alone(serve, opened, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    served = await serve()
    kept, dripping = await opened(served), await opened(served)
    assert await asks(*kept)
    assert await until_cut(dripping[0]) == b""  # as long as a header may take
    assert await asks(*kept)


async def test_a_body_may_take_longer_than_a_header_but_not_for_ever(serve, opened, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(bodies, "_SECONDS", 0.5)
    served = await serve()
    reader, writer = await opened(served)
    writer.write(b"POST /api/v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")  # fmt: skip
    async with asyncio.timeout(10):
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"half")
    async with asyncio.timeout(10):
        assert b" 408 " in await reader.readuntil(b"\r\n\r\n")
    assert served.refused["request_timeout"] == 1


async def test_too_many_headers_are_refused(serve, opened):
    served = await serve()
    reader, writer = await opened(served)
    writer.write(HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(100)) + b"\r\n")
    async with asyncio.timeout(10):
        assert b" 400 " in await reader.readuntil(b"\r\n\r\n")


@pytest.fixture
def stuck(monkeypatch):
    """A client that asks for more than it reads; begins when the server has to wait for it."""
    is_full = asyncio.Event()
    pause_writing = connection.Connection.pause_writing

    def note(self):
        pause_writing(self)
        is_full.set()

    monkeypatch.setattr(connection.Connection, "pause_writing", note)

    @contextlib.asynccontextmanager
    async def begin(served):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.running.port))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
            async with asyncio.timeout(30):
                await is_full.wait()
                yield

    return begin


async def test_who_never_reads_its_answer_is_cut_off(serve, stuck, monkeypatch):
    monkeypatch.setattr(listener, "UNREAD_SECONDS", 0.5)
    ended = asyncio.Event()
    lost = connection.Connection.connection_lost

    def note(self, exc):
        lost(self, exc)
        ended.set()

    monkeypatch.setattr(connection.Connection, "connection_lost", note)
    served = await serve()
    async with stuck(served):
        await ended.wait()
    assert served.refused == {"answer_not_read": 1}


async def test_closing_does_not_wait_for_who_never_reads(serve, stuck, monkeypatch):
    monkeypatch.setattr(server, "_SHUTDOWN_SECONDS", 0.1)
    monkeypatch.setattr(listener, "_FAREWELL_SECONDS", 0.1)
    served = await serve()
    async with stuck(served):
        await served.running.close()
        assert not served.running._listener._open


async def test_what_is_refused_is_counted_by_its_reason(serve):
    served = await serve(token="s3cret")
    await served.get("/api/v1/snapshot", status=403, headers={"Host": "evil.example"})
    await served.post("/api/v1/requests", b"a", status=401)
    await served.post("/api/v1/requests", b"{", status=400, Authorization="Bearer s3cret")
    await served.post("/api/v1/requests", b"a", status=415, Content_Type="a/b", Authorization="Bearer s3cret")
    await served.get("/api/v1/requests/nobody", status=404)
    assert served.refused == {
        "foreign_host": 1, "no_credentials": 1, "bad_request": 1, "unsupported_media_type": 1,
    }  # fmt: skip


async def test_a_host_name_is_listened_on_at_all_its_addresses():
    sockets = await listener.bind("localhost", 0)
    assert {bound.getsockname()[0] for bound in sockets} <= {"127.0.0.1", "::1"}
    for bound in sockets:
        bound.close()


async def test_a_flood_of_requests_is_slowed_and_others_are_not(serve, monkeypatch):
    monkeypatch.setattr(limits, "REQUESTS_FROM_LOOPBACK", 1.0)
    served = await serve()
    for _ in range(10):
        await served.get("/healthz")
    async with served.session.get(served.url("/healthz")) as answer:
        assert answer.status == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
    assert served.refused["too_many_requests"] == 1
    await served.post("/api/v1/requests", b"a", unix=True)


def test_rates_give_what_they_say_and_remember_no_more_than_they_must():
    rates = limits.Rates()
    taken = sum(rates.wait_seconds("192.0.2.1", second / 500) == 0.0 for second in range(500 * 60))
    assert taken == pytest.approx(limits.REQUESTS_PER_SECOND * 70, rel=0.01), "a minute's, and ten seconds' at once"
    for number in range(10_000):
        rates.wait_seconds(f"198.51.{number // 250}.{number % 250}", 60.0)
    assert len(rates._used) <= 4096
