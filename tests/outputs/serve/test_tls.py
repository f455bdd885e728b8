import asyncio
import logging
import ssl

import aiohttp
import bcrypt
import pytest
from tests.support.snapshots import snapshot
from tests.support.tools import tool

from jouled.outputs.serve import access, listener
from jouled.outputs.serve.access import Caller

SERVER = "cert_file: server.pem, key_file: server.key"
MUTUAL = SERVER + ", client_ca_file: ca.pem, client_auth_type: "
PATH = "/api/v1/requests"


@pytest.fixture
def serve_tls(serve, web_file, certificates, tmp_path):
    """Starts a server with these keys in tls_server_config."""

    async def begin(keys=SERVER, **changes):
        certificates.put("one", tmp_path)
        (tmp_path / "ca.pem").write_bytes((certificates.folder / "ca.pem").read_bytes())
        served = await serve(web_file(f"tls_server_config: {{{keys}}}"), **changes)
        served.scheme = "https"
        return served

    return begin


async def shown(served, context, **options):
    """The common name of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.running.port, ssl=context, **options)
    name = dict(pair for [pair] in writer.get_extra_info("peercert")["subject"])["commonName"]
    writer.close()
    await writer.wait_closed()
    return name


async def test_metrics_over_tls_and_no_longer_in_the_clear(serve_tls, certificates):
    served = await serve_tls()
    assert "jouled_build_info" in await served.get("/metrics", ssl=certificates.client())
    with pytest.raises(aiohttp.ClientError):
        await served.session.get(f"http://127.0.0.1:{served.running.port}/metrics")
    assert served.refused["tls_handshake"] >= 1  # the client tries twice
    await served.post(PATH, b"a", unix=True)
    assert served.taken == ["a"]


@pytest.mark.parametrize("name", ["localhost", ""])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_renewed_certificate_is_shown_with_and_without_server_name(
    serve_tls, certificates, tmp_path, name, version
):
    served = await serve_tls()
    client = certificates.client(version=version)
    client.check_hostname = bool(name)
    assert await shown(served, client, server_hostname=name) == "one"
    certificates.put("two", tmp_path)
    assert await shown(served, client, server_hostname=name) == "two"


async def test_a_renewal_half_done_keeps_the_old_certificate(serve_tls, certificates, tmp_path, caplog):
    served = await serve_tls()
    (tmp_path / "server.key").write_bytes((certificates.folder / "two.key").read_bytes())
    for _ in range(2):
        assert await shown(served, certificates.client()) == "one"
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "do not belong together" in record.getMessage()
    (tmp_path / "server.pem").write_bytes((certificates.folder / "two.pem").read_bytes())
    assert await shown(served, certificates.client()) == "two"


async def test_an_open_connection_ends_after_the_settings_changed(serve_tls, certificates, tmp_path):
    served = await serve_tls()

    async def says_close():
        async with served.session.get(served.url("/metrics"), ssl=certificates.client()) as answer:
            return answer.headers.get("Connection") == "close"

    client = certificates.client()
    certificates.client = lambda: client  # one context, so that the connection is used again
    assert not await says_close()
    certificates.put("two", tmp_path)
    assert await says_close()
    assert not await says_close()
    del certificates.client


async def test_tls_comes_and_goes_with_a_restart_only(serve_tls, certificates, web_file, caplog):
    served = await serve_tls()
    web_file("http_server_config: {headers: {X-XSS-Protection: a}}")
    assert "jouled_build_info" in await served.get("/metrics", ssl=certificates.client())
    assert "with a restart only. Restart jouled" in caplog.text


async def test_only_clients_with_a_certificate_of_the_ca(serve_tls, certificates):
    served = await serve_tls(MUTUAL + "RequireAndVerifyClientCert")
    for name in ("", "foreign"):
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await served.get("/metrics", ssl=certificates.client(name))
    assert served.refused["tls_handshake"] >= 2
    await served.get("/metrics", ssl=certificates.client("client"))


@pytest.mark.parametrize("auth", ["RequireAndVerifyClientCert", "VerifyClientCertIfGiven"])
async def test_a_verified_certificate_opens_everything_but_release_to_other_hosts(
    serve_tls, certificates, monkeypatch, auth
):
    monkeypatch.setattr(access, "caller_of", lambda _: Caller.ELSEWHERE)
    served = await serve_tls(MUTUAL + auth)
    client = certificates.client("client")
    await served.get("/api/v1/snapshot", ssl=client, headers={"Host": "node17:9966"})
    async with served.session.post(
        served.url(PATH), data=b"a", ssl=client, headers={"Content-Type": "application/json"}
    ) as answer:
        assert answer.status == 200
    assert served.taken == ["a"]
    async with served.session.post(served.url(access.RELEASE_PATH), data=b'{"seconds": 1}', ssl=client) as answer:
        assert answer.status == 403
    async with served.session.post(
        served.url(PATH), data=b"b", ssl=client, headers={"Origin": "https://evil.example"}
    ) as answer:
        assert answer.status == 403


async def test_without_a_certificate_other_hosts_see_metrics_only(serve_tls, certificates, monkeypatch):
    monkeypatch.setattr(access, "caller_of", lambda _: Caller.ELSEWHERE)
    served = await serve_tls(MUTUAL + "VerifyClientCertIfGiven")
    await served.get("/metrics", ssl=certificates.client())
    assert "web_config_file" in (await served.get("/api/v1/snapshot", status=403, ssl=certificates.client()))["error"]
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await served.get("/metrics", ssl=certificates.client("foreign"))


async def test_a_token_is_asked_beside_the_certificate(serve_tls, certificates, monkeypatch):
    monkeypatch.setattr(access, "caller_of", lambda _: Caller.ELSEWHERE)
    served = await serve_tls(MUTUAL + "RequireAndVerifyClientCert", token="s3cret")
    client = certificates.client("client")
    await served.get("/api/v1/snapshot", status=401, ssl=client)
    await served.get("/api/v1/snapshot", ssl=client, headers={"Authorization": "Bearer s3cret"})


async def test_a_ca_that_is_withdrawn_shuts_out_its_clients(serve_tls, certificates, tmp_path):
    served = await serve_tls(MUTUAL + "RequireAndVerifyClientCert")
    client = certificates.client("client")
    await shown(served, client)
    (tmp_path / "ca.pem").write_bytes((certificates.folder / "foreign-ca.pem").read_bytes())
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await served.get("/metrics", ssl=client)


async def test_versions_suites_and_curve_are_those_of_the_file(serve_tls, certificates):
    served = await serve_tls(
        SERVER + ", max_version: TLS12, cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256],"
        " curve_preferences: [CurveP384]"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", served.running.port, ssl=certificates.client())
    assert writer.get_extra_info("cipher")[:2] == ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2")
    writer.close()
    await writer.wait_closed()
    other_curve = certificates.client()
    other_curve.set_ecdh_curve("prime256v1")
    for context in (other_curve, certificates.client(version=ssl.TLSVersion.TLSv1_3)):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown(served, context)


async def test_a_handshake_that_stalls_is_given_up(serve_tls, certificates, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.1)
    served = await serve_tls()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await served.get("/metrics", ssl=certificates.client())
    assert served.refused["tls_handshake"] == 1
    assert served.running._listener._seats._taken.total() == 1


async def test_closing_does_not_wait_for_a_handshake_or_a_farewell(serve_tls, certificates, monkeypatch):
    monkeypatch.setattr(listener, "_FAREWELL_SECONDS", 0.1)
    served = await serve_tls()
    _, stalled = await asyncio.open_connection("127.0.0.1", served.running.port)
    _, idle = await asyncio.open_connection("127.0.0.1", served.running.port, ssl=certificates.client())
    idle.transport.pause_reading()
    async with asyncio.timeout(5):
        await served.running.close()
    assert not served.running._listener._open
    for writer in (stalled, idle):
        writer.transport.abort()


async def test_a_real_prometheus_comes_in_with_certificate_and_password(serve, web_file, certificates, tmp_path):
    certificates.put("one", tmp_path)
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    asked = asyncio.Event()

    def show():
        asked.set()
        return snapshot()

    served = await serve(
        web_file(
            f"tls_server_config: {{{SERVER}, client_auth_type: RequireAndVerifyClientCert,"
            f" client_ca_file: {certificates.folder}/ca.pem}}\nbasic_auth_users: {{prometheus: {hashed}}}"
        ),
        snapshot=show,
    )
    (tmp_path / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: jouled
    scheme: https
    basic_auth: {{username: prometheus, password: right}}
    tls_config:
      ca_file: {certificates.folder}/ca.pem
      cert_file: {certificates.folder}/client.pem
      key_file: {certificates.folder}/client.key
    static_configs: [{{targets: ['localhost:{served.running.port}']}}]
""")
    scraper = await asyncio.create_subprocess_exec(
        tool("prometheus"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=error",
    )
    try:
        async with asyncio.timeout(30):
            await asked.wait()
    finally:
        scraper.terminate()
        await scraper.wait()
    assert not served.refused
