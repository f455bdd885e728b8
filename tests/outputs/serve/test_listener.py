"""What becomes of connections that come while the daemon ends: on a reload the process lives on, and so would they."""

import asyncio
import socket
from collections import Counter

import pytest
from aiohttp import web

from jouled.outputs.serve.listener import Listener, bind


async def hello(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


@pytest.mark.parametrize("turns", range(10))
async def test_who_comes_as_it_stops_is_answered_or_sent_away(turns: int) -> None:
    """`turns`: how far the loop gets with the connection before the end."""
    server = web.Server(hello)
    sockets = await bind("127.0.0.1", 0)
    listener = Listener(sockets, server, lambda: None, Counter())
    await asyncio.to_thread(int)  # it waits for connections now
    with socket.create_connection(sockets[0].getsockname(), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        await listener.stop()
        await server.shutdown(0.1)
        await listener.end_all()
        try:
            answer = await asyncio.to_thread(client.recv, 100)
        except ConnectionResetError:
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 200")
    assert not listener._open
