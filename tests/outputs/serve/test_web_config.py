import logging
import os
import sys

import pytest

from jouled.model.errors import ConfigurationError
from jouled.outputs.serve.web_config import read_web_config
from jouled.outputs.serve.web_file import WebFile

HASH = "$2y$04$xXQQcTxFlmwSWJxCf4J.6uTYfUYRJkvWcIeE6cFLVhtvEeJ6zVW1y"
TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key, "


def test_everything_of_the_toolkit_that_is_honoured(web_file):
    config = read_web_config(
        web_file(f"""
tls_server_config:
  cert_file: a.pem
  key_file: a.key
  client_ca_file: ca.pem
  client_auth_type: RequireAndVerifyClientCert
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [X25519]
http_server_config:
  http2: true
  headers: {{Strict-Transport-Security: max-age=60, X-Frame-Options: sameorigin, X-XSS-Protection: ""}}
basic_auth_users:
  ann: {HASH}
""")
    )
    assert config.tls().files() == ("a.pem", "a.key", "ca.pem")
    assert config.headers() == {"Strict-Transport-Security": "max-age=60", "X-Frame-Options": "sameorigin"}
    assert config.users() == {"ann": HASH}


@pytest.mark.parametrize("text", ["", "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n", "{}"])
def test_a_file_that_says_nothing_is_plain_http_for_all(web_file, text):
    web = WebFile(web_file(text)).current()
    assert (web.context, web.passwords, web.headers) == (None, None, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a", "Expected `object`, got `array`"),
        ("basic_auth_user: {}", "unknown field `basic_auth_user`"),
        (TLS + "cert_fle: x}", "unknown field `cert_fle`"),
        ("basic_auth_users: {yes: x}", "quotes"),
        ("basic_auth_users: {ann: hunter2}", "basic_auth_users.ann is no bcrypt hash.*htpasswd"),
        (f"basic_auth_users: {{ann: {HASH.replace('04', '03')}}}", "no bcrypt hash"),
        (f"basic_auth_users: {{'a:b': {HASH}}}", "has a colon"),
        ("rate_limit: {interval: 1s, burst: 5}", "rate_limit is not supported"),
        ("http_server_config: {headers: {Server: x}}", "Server cannot be set. There are Content-Security-Policy"),
        ("http_server_config: {headers: {X-Frame-Options: none}}", "X-Frame-Options is deny or sameorigin"),
        ('http_server_config: {headers: {X-XSS-Protection: "1\\nX: y"}}', "one line of ASCII"),
        ("tls_server_config: {key: abc}", "key is not taken inside the file: name a file with key_file"),
        (TLS + "client_allowed_sans: [a]}", "client_allowed_sans is not supported"),
        (f"a: b\nbasic_auth_users: {{ann: '{HASH}", "is not YAML at line 2"),
        ("a: \x01", "is not YAML"),
        ("x" * (1024 * 1024 + 1), "larger than 1 MiB"),
        (TLS + "min_version: TLS10}", "min_version TLS10 is too old"),
        (TLS + "max_version: SSL3}", "max_version is TLS12 or TLS13, not SSL3"),
        (TLS + "min_version: TLS13, max_version: TLS12}", "min_version is above max_version"),
        (TLS + "cipher_suites: [TLS_AES_128_GCM_SHA256]}", "TLS_AES_128_GCM_SHA256 is one of TLS 1.3"),
        (TLS + "cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}", "TLS_RSA_WITH_RC4_128_SHA is not known or not secure"),
        (TLS + "curve_preferences: [CurveP256, X25519]}", "one curve here"),
        (TLS + "curve_preferences: [P256]}", "P256 is not known. There are CurveP256"),
        ("tls_server_config: {key_file: server.key}", "cert_file is missing"),
        ("tls_server_config: {cert_file: server.pem}", "key_file is missing"),
        ("tls_server_config: {cert_file: no.pem, key_file: server.key}", "cert_file no.pem cannot be read: No such"),
        ("tls_server_config: {cert_file: server.pem, key_file: other.key}", "do not belong together"),
        ("tls_server_config: {cert_file: server.key, key_file: server.key}", "no certificate and key in PEM"),
        ("tls_server_config: {cert_file: server.pem, key_file: locked.key}", "key_file is encrypted"),
        (TLS + "client_auth_type: RequireAndVerifyClientCert}", "client_ca_file is missing"),
        (TLS + "client_auth_type: VerifyClientCertIfGiven, client_ca_file: server.key}", "holds no CA"),
        (TLS + "client_ca_file: server.pem}", "client_ca_file is there and no .*client_auth_type"),
        (TLS + "client_auth_type: RequireAnyClientCert}", "nobody checks.*Use RequireAndVerifyClientCert"),
        (TLS + "client_auth_type: RequestClientCert}", "nobody checks"),
        (TLS + "client_auth_type: Sometimes}", "client_auth_type is one of NoClientCert"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_key(web_file, certificates, tmp_path, text, sentence):
    certificates.put("one", tmp_path)
    (tmp_path / "other.key").write_bytes((certificates.folder / "two.key").read_bytes())
    certificates.encrypt("one", tmp_path / "locked.key")
    with pytest.raises(ConfigurationError, match=rf"serve.web_config_file .*web.yml.*{sentence}") as refused:
        WebFile(web_file(text))
    for secret in (HASH[7:15], "hunter2", "PRIVATE"):
        assert secret not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"web\.yml: it cannot be read: No such file"):
        WebFile(tmp_path / "web.yml")


@pytest.mark.parametrize("library", ["yaml", "bcrypt"])
def test_a_missing_library_is_named_with_the_command(web_file, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'jouled\[web\]'"):
        WebFile(web_file(f"basic_auth_users: {{ann: {HASH}}}"))


async def test_headers_are_on_every_answer_and_follow_the_file(serve, web_file):
    served = await serve(web_file("http_server_config: {headers: {X-Frame-Options: sameorigin}}"))

    async def headers(path):
        async with served.session.get(served.url(path)) as answer:
            return answer.headers

    for path in ("/metrics", "/nothing", "/"):
        assert (await headers(path))["X-Frame-Options"] == "sameorigin"
    web_file("http_server_config: {headers: {Strict-Transport-Security: max-age=60}}")
    after = await headers("/metrics")
    assert (after["X-Frame-Options"], after["Strict-Transport-Security"]) == ("DENY", "max-age=60")
    assert "default-src 'none'" in (await headers("/"))["Content-Security-Policy"]


async def test_a_file_that_became_invalid_changes_nothing_and_is_said_once(serve, web_file, caplog):
    path = web_file("http_server_config: {headers: {X-Frame-Options: sameorigin}}")
    served = await serve(path)
    caplog.set_level(logging.INFO, logger="jouled")
    web_file(f"basic_auth_users: {{ann: {HASH}, x")
    for _ in range(3):
        await served.get("/metrics")
    [record] = caplog.records
    assert "what was in force before stays" in record.getMessage()
    assert HASH not in record.getMessage()
    path.unlink()
    await served.get("/metrics")
    assert "No such file" in caplog.records[-1].getMessage()
    web_file(f"basic_auth_users: {{ann: {HASH}}}")
    await served.get("/metrics", status=401)
    assert "was read again" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 3


@pytest.mark.parametrize("text", ["", "http_server_config: {headers: {X-Frame-Options: deny}}"])
async def test_a_file_cut_short_lets_nobody_in(serve, web_file, caplog, text):
    """As one looks that is being written, or that a full disk cut off."""
    served = await serve(web_file(f"basic_auth_users: {{ann: {HASH}}}"))
    await served.get("/metrics", status=401)
    web_file(text)
    await served.get("/metrics", status=401)
    assert "the last user goes with a restart only" in caplog.text


def test_a_change_within_the_same_size_is_seen(web_file):
    web = WebFile(web_file("http_server_config: {headers: {X-XSS-Protection: a}}"))
    path = web_file("http_server_config: {headers: {X-XSS-Protection: b}}")
    assert web.current().headers == {"X-XSS-Protection": "b"}
    path.write_text("http_server_config: {headers: {X-XSS-Protection: c}}")
    os.utime(path, ns=(1, 1))
    assert web.current().headers == {"X-XSS-Protection": "c"}
    assert web.current() is web.current()
