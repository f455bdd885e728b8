import asyncio
import json
import socket
import stat

import pytest

from jouled.model.errors import JouledError
from jouled.outputs.serve import access
from jouled.outputs.serve.access import Caller, is_loopback
from jouled.outputs.serve.server import parse_listen, start

PATH = "/api/v1/requests"
GUARDED = ("/", "/static/page.js", "/api/v1/snapshot", "/api/v1/requests", "/api/v1/requests/x")
OPEN = ("/metrics", "/healthz", "/readyz")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True),
        ("::ffff:127.0.0.1", True), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("evil.example", False),
        ("127.0.0.1.evil.example", False), ("fe80::1%eth0", False), ("", False),
    ],
)  # fmt: skip
def test_what_counts_as_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", ["localhost:9966", "127.0.0.1", "[::1]:9966", "LOCALHOST"])
async def test_loopback_names_are_served(serve, host):
    served = await serve()
    await served.get("/api/v1/snapshot", headers={"Host": host})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9966", "localhost.evil.example", "[::2]:9966", ""])
async def test_a_rebound_name_reads_and_writes_nothing(serve, host):
    served = await serve()
    for path in GUARDED:
        assert "Host header" in (await served.get(path, status=403, headers={"Host": host}))["error"]
    await served.post(PATH, b"a", status=403, Host=host)
    assert served.taken == []
    await served.get("/metrics", headers={"Host": host})


async def test_the_listen_address_is_a_known_host(serve):
    served = await serve()
    await served.get("/", status=403, headers={"Host": "node17:9966"})
    served.running._runner.app[access.HOSTS].add("node17")
    await served.get("/", headers={"Host": "node17:9966"})


async def test_foreign_pages_cannot_post(serve):
    served = await serve()
    await served.post(PATH, b"a", status=403, Origin="http://evil.example")
    await served.post(PATH, b"a", status=403, Origin="null")
    await served.post(PATH, b"a", status=403, Origin="http://localhost:1")
    await served.post(PATH, b"a", status=403, Sec_Fetch_Site="cross-site")
    assert served.taken == []
    await served.post(PATH, b"a", Origin=f"http://127.0.0.1:{served.running.port}")
    assert served.taken == ["a"]


async def test_a_token_is_asked_of_every_sender_except_on_the_unix_socket(serve):
    served = await serve(token="s3cret-ü")
    for wrong in (
        {},
        {"Authorization": "Bearer other"},
        {"Authorization": "Basic s3cret-ü"},
        {"Authorization": "\xff"},
    ):
        answer = await served.post(PATH, b"a", status=401, **wrong)
        assert "token_file" in answer["error"]
    assert served.taken == []
    await served.post(PATH, b"a", Authorization="Bearer s3cret-ü")
    await served.post(PATH, b"b", unix=True)
    assert served.taken == ["a", "b"]
    await served.get("/api/v1/snapshot")


async def test_without_authentication_other_hosts_see_metrics_and_health_only(serve, monkeypatch):
    monkeypatch.setattr(access, "caller_of", lambda _: Caller.ELSEWHERE)
    served = await serve()
    for path in OPEN:
        await served.get(path)
    for path in GUARDED:
        assert "token_file" in (await served.get(path, status=403))["error"]
    await served.post(PATH, b"a", status=403)
    assert served.taken == []


async def test_with_the_token_other_hosts_see_everything_under_any_name(serve, monkeypatch):
    monkeypatch.setattr(access, "caller_of", lambda _: Caller.ELSEWHERE)
    served = await serve(token="s3cret")
    await served.get("/api/v1/snapshot", status=401)
    headers = {"Authorization": "Bearer s3cret", "Host": "node17:9966"}
    await served.get("/api/v1/snapshot", headers=headers)
    await served.post(PATH, b"a", **headers)
    assert served.taken == ["a"]


async def test_devices_are_released_through_the_unix_socket_only(serve):
    served = await serve()
    body = json.dumps({"seconds": 600}).encode()
    assert "jouled release" in (await served.post(access.RELEASE_PATH, body, status=403))["error"]
    assert (await served.post(access.RELEASE_PATH, body, unix=True))["released"] == ["nvml"]
    assert served.released == [600]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"seconds": "10"}', b'{"seconds": 0}', b'{"seconds": 1e9}', b'{"s": 1}']
)
async def test_a_release_without_a_sensible_time_is_refused(serve, body):
    served = await serve()
    assert "seconds" in (await served.post(access.RELEASE_PATH, body, status=400, unix=True))["error"]
    assert served.released == []


async def test_the_unix_socket_is_for_its_group_and_goes_with_the_server(serve):
    served = await serve()
    mode = served.unix_socket.stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)
    await served.running.close()
    assert not served.unix_socket.exists()


async def test_a_socket_left_by_a_crash_is_replaced_and_a_living_one_is_not(serve, tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "api.sock"))
    left.close()
    served = await serve()
    await served.post(PATH, b"a", unix=True)
    with pytest.raises(JouledError, match="another jouled listens on"):
        await start(served.running._runner.app, listen="127.0.0.1:0", unix_socket=served.unix_socket)
    await served.post(PATH, b"b", unix=True)


async def test_a_busy_port_is_named_with_the_flag(serve):
    served = await serve()
    address = f"127.0.0.1:{served.running.port}"
    with pytest.raises(JouledError, match=rf"{address} is taken by another program\. .*--listen"):
        await start(served.running._runner.app, listen=address, unix_socket=None)


async def test_a_socket_path_that_is_too_long_is_named(serve, tmp_path):
    served = await serve()
    with pytest.raises(JouledError, match=r"path too long.*RUNTIME_DIRECTORY"):
        await start(served.running._runner.app, listen="127.0.0.1:0", unix_socket=tmp_path / ("x" * 120))


@pytest.mark.parametrize("listen", ["9966", "localhost", ":9966", "::1:9966", "a:b", "a:70000", "[]:1", "a:-1", "a:²"])
def test_an_address_of_another_form_is_refused(listen):
    with pytest.raises(JouledError, match="--listen HOST:PORT"):
        parse_listen(listen)


def test_addresses_to_listen_on():
    assert parse_listen("127.0.0.1:9966") == ("127.0.0.1", 9966)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert parse_listen("node17:80") == ("node17", 80)


async def test_closing_does_not_wait_for_idle_clients(serve):
    served = await serve()
    _, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    async with asyncio.timeout(5):
        await served.running.close()
    writer.close()
