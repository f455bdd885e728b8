"""The file of `web_config_file`, in the format of Prometheus' exporter-toolkit.

What it can say and jouled cannot do is refused, never passed over: the file decides who gets in.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from jouled.model.errors import ConfigurationError

_LARGEST_BYTES = 1024 * 1024

_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
"""Headers that may be set, as in the toolkit, and their values where only some are allowed."""

_REFUSED_TLS = {
    "cert": "is not taken inside the file: name a file with cert_file",
    "key": "is not taken inside the file: name a file with key_file",
    "client_ca": "is not taken inside the file: name a file with client_ca_file",
    "client_allowed_sans": "is not supported: use a CA of its own for those who may ask",
}
_RATE_LIMIT = "rate_limit is not supported: jouled limits connections and wrong passwords by itself. Leave it out"
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class TlsServer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tls_server_config`; paths as written."""

    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: str = ""
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    cipher_suites: list[str] = []
    prefer_server_cipher_suites: bool = True
    curve_preferences: list[str] = []
    cert: Any = None
    key: Any = None
    client_ca: Any = None
    client_allowed_sans: Any = None

    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        return tuple(name for name in (self.cert_file, self.key_file, self.client_ca_file) if name)


class HttpServer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`http_server_config`. `http2` changes nothing: jouled speaks HTTP/1.1, which clients fall back to."""

    http2: bool = True
    headers: dict[str, str] | None = None


class WebConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    tls_server_config: TlsServer | None = None
    http_server_config: HttpServer | None = None
    basic_auth_users: dict[str, str] | None = None
    rate_limit: Any = None

    def tls(self) -> TlsServer | None:
        """What it says about TLS; None if that is nothing, and plain HTTP is meant."""
        return None if self.tls_server_config == TlsServer() else self.tls_server_config

    def headers(self) -> Mapping[str, str]:
        """Headers for every answer; blank ones are not set."""
        headers = self.http_server_config.headers if self.http_server_config else None
        return {name: value for name, value in (headers or {}).items() if value}

    def users(self) -> Mapping[str, str]:
        """The bcrypt hash of each user's password; empty if nobody is asked for one."""
        return self.basic_auth_users or {}


def read_web_config(path: Path) -> WebConfig:
    """Read the file and check all that can be checked without the files it names.

    Raises:
        ConfigurationError: it cannot be read, or says what is wrong or not supported.
    """
    try:
        config = msgspec.convert(_parse(path) or {}, WebConfig)
    except msgspec.ValidationError as error:
        raise refusal(path, str(error), mend="Texts that look like numbers or words of YAML need quotes") from None
    if config.rate_limit is not None:
        raise refusal(path, _RATE_LIMIT)
    if config.tls_server_config is not None:
        for name, why in _REFUSED_TLS.items():
            if getattr(config.tls_server_config, name) is not None:
                raise refusal(path, f"tls_server_config.{name} {why}")
    _check_headers(path, config.headers())
    _check_users(path, config.users())
    return config


def refusal(path: Path, why: str, mend: str = "") -> ConfigurationError:
    """The error that says what is wrong with the file."""
    return ConfigurationError(f"serve.web_config_file {path}: {why}", mend=mend)


def _parse(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigurationError("serve.web_config_file needs PyYAML", mend="pip install 'jouled[web]'") from None
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise refusal(path, f"it cannot be read: {error.strerror}") from error
    if len(text) > _LARGEST_BYTES:
        raise refusal(path, "it is larger than 1 MiB")
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # The reader's own words quote the line, which may hold a hash.
        mark = error.problem_mark
        raise refusal(path, f"it is not YAML at line {mark.line + 1}" if mark else "it is not YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise refusal(path, "it is not YAML") from None


def _check_headers(path: Path, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        key = f"http_server_config.headers.{name}"
        if name not in _HEADERS:
            raise refusal(path, f"{key} cannot be set", mend=f"There are {', '.join(_HEADERS)}")
        if _HEADERS[name] and value not in _HEADERS[name]:
            raise refusal(path, f"{key} is {' or '.join(_HEADERS[name])}")
        if not value.isprintable() or not value.isascii():
            raise refusal(path, f"{key} is one line of ASCII")


def _check_users(path: Path, users: Mapping[str, str]) -> None:
    for user, hashed in users.items():
        if not user or ":" in user:
            raise refusal(path, "a user in basic_auth_users is empty or has a colon in its name")
        if not _BCRYPT.fullmatch(hashed):
            raise refusal(
                path,
                f"basic_auth_users.{user} is no bcrypt hash",
                mend="Make one with: htpasswd -nBC 10 '' | tr -d ':\\n'",
            )
