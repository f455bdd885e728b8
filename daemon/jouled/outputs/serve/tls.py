"""From `tls_server_config` to what Python's ssl can do."""

import ssl
from pathlib import Path
from typing import NoReturn

from jouled.outputs.serve.web_config import TlsServer, refusal

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS = {"TLS10", "TLS11"}

_CLIENT_AUTH = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_UNVERIFIED_CLIENT_AUTH = {"RequestClientCert", "RequireAnyClientCert", "RequireClientCert"}

_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""Go's names of the suites of TLS 1.2 that it holds for secure, and OpenSSL's."""

_TLS13_CIPHERS = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}


def server_context(tls: TlsServer, path: Path) -> ssl.SSLContext:
    """A context of its own for what the file at `path` says now.

    Raises:
        ConfigurationError: a file cannot be used, or Python's ssl cannot do what is asked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _set_versions(context, tls, path)
    _set_ciphers(context, tls, path)
    _set_curve(context, tls, path)
    _load_certificate(context, tls, path)
    _set_client_auth(context, tls, path)
    return context


def _set_versions(context: ssl.SSLContext, tls: TlsServer, path: Path) -> None:
    for key in ("min_version", "max_version"):
        version = getattr(tls, key)
        if version in _OLD_VERSIONS:
            raise refusal(path, f"tls_server_config.{key} {version} is too old: it is TLS12 or TLS13")
        if version not in _VERSIONS:
            raise refusal(path, f"tls_server_config.{key} is TLS12 or TLS13, not {version}")
    if _VERSIONS[tls.min_version] > _VERSIONS[tls.max_version]:
        raise refusal(path, "tls_server_config.min_version is above max_version")
    context.minimum_version = _VERSIONS[tls.min_version]
    context.maximum_version = _VERSIONS[tls.max_version]


def _set_ciphers(context: ssl.SSLContext, tls: TlsServer, path: Path) -> None:
    key = "tls_server_config.cipher_suites"
    for name in tls.cipher_suites:
        if name in _TLS13_CIPHERS:
            raise refusal(path, f"{key}: {name} is one of TLS 1.3, which are always on and cannot be chosen")
        if name not in _CIPHERS:
            raise refusal(path, f"{key}: {name} is not known or not secure", mend=f"There are {', '.join(_CIPHERS)}")
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if not tls.cipher_suites:
        return
    try:
        context.set_ciphers(":".join(_CIPHERS[name] for name in tls.cipher_suites))
    except ssl.SSLError as error:
        raise refusal(path, f"{key}: this OpenSSL has none of them: {error.reason}") from error


def _set_curve(context: ssl.SSLContext, tls: TlsServer, path: Path) -> None:
    key = "tls_server_config.curve_preferences"
    for name in tls.curve_preferences:
        if name not in _CURVES:
            raise refusal(path, f"{key}: {name} is not known", mend=f"There are {', '.join(_CURVES)}")
    if len(tls.curve_preferences) > 1:
        raise refusal(path, f"{key} can be one curve here, not an order of several: Python's ssl takes one or its own")
    if tls.curve_preferences:
        context.set_ecdh_curve(_CURVES[tls.curve_preferences[0]])


def _load_certificate(context: ssl.SSLContext, tls: TlsServer, path: Path) -> None:
    for key in ("cert_file", "key_file"):
        _check_readable(path, key, getattr(tls, key))

    def encrypted() -> NoReturn:
        raise refusal(path, "tls_server_config.key_file is encrypted: nobody is there to type its password")

    try:
        context.load_cert_chain(path.parent / tls.cert_file, path.parent / tls.key_file, password=encrypted)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = "do not belong together" if mismatch else f"are no certificate and key in PEM: {error.reason}"
        raise refusal(path, f"tls_server_config.cert_file and key_file {why}") from error


def _set_client_auth(context: ssl.SSLContext, tls: TlsServer, path: Path) -> None:
    key = "tls_server_config.client_auth_type"
    if tls.client_auth_type in _UNVERIFIED_CLIENT_AUTH:
        raise refusal(
            path,
            f"{key} {tls.client_auth_type} asks for a certificate that nobody checks, which Python's ssl cannot do",
            mend="Use RequireAndVerifyClientCert, VerifyClientCertIfGiven or NoClientCert",
        )
    if tls.client_auth_type not in _CLIENT_AUTH:
        raise refusal(path, f"{key} is one of {', '.join(name for name in _CLIENT_AUTH if name)}")
    context.verify_mode = _CLIENT_AUTH[tls.client_auth_type]
    if context.verify_mode is ssl.CERT_NONE:
        if tls.client_ca_file:
            raise refusal(
                path, f"client_ca_file is there and no {key}", mend="Add client_auth_type: RequireAndVerifyClientCert"
            )
        return
    _check_readable(path, "client_ca_file", tls.client_ca_file)
    try:
        context.load_verify_locations(path.parent / tls.client_ca_file)
    except ssl.SSLError as error:
        raise refusal(path, f"tls_server_config.client_ca_file holds no CA in PEM: {error.reason}") from error


def _check_readable(path: Path, key: str, name: str) -> None:
    """What ssl says of a missing file names no file."""
    if not name:
        raise refusal(path, f"tls_server_config.{key} is missing")
    try:
        with (path.parent / name).open("rb"):
            return
    except OSError as error:
        raise refusal(path, f"tls_server_config.{key} {name} cannot be read: {error.strerror}") from error
