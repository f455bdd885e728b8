"""Settings of the MQTT sink, and what follows from them."""

import re
import ssl
from typing import Annotated

from msgspec import Meta

from jouled.api import SinkSettings
from jouled.model.errors import ConfigurationError

_PORT, _TLS_PORT = 1883, 8883
_MOST = 65535

_NOT_IN_A_PREFIX = re.compile(r"[+#\x00-\x1f\x7f-\x9f]")


class MqttSettings(SinkSettings):
    """`[sinks.mqtt]`."""

    host: Annotated[str, Meta(description="The broker.")] = "localhost"
    port: Annotated[int | None, Meta(description="Empty: 1883, with `tls` 8883.")] = None
    tls: Annotated[bool, Meta(description="Encrypt, and ask the broker for a certificate of `host`.")] = False
    ca_file: Annotated[
        str, Meta(description="Who signs the broker's certificate. Empty: the system's authorities.")
    ] = ""
    cert_file: Annotated[str, Meta(description="Client certificate, for a broker that asks for one.")] = ""
    key_file: Annotated[str, Meta(description="Its key, where `cert_file` does not hold it.")] = ""
    user: Annotated[str, Meta(description="User name. Empty: none.")] = ""
    password_file: Annotated[str, Meta(description="File that holds the password. Without `tls` it goes in clear.")] = (
        ""
    )
    client_id: Annotated[str, Meta(description="Must be unique at the broker. Empty: `jouled-NODE`.")] = ""
    topic: Annotated[str, Meta(description="What all topics begin with. Empty: `jouled/NODE`.")] = ""
    discovery: Annotated[bool, Meta(description="Let Home Assistant find the power and energy of all devices.")] = False
    discovery_prefix: Annotated[str, Meta(description="Home Assistant's discovery prefix.")] = "homeassistant"
    receipts: Annotated[bool, Meta(description="Send receipts too.")] = True
    keepalive_seconds: Annotated[int, Meta(description="A silent connection is probed after this time.")] = 60


def port_of(settings: MqttSettings) -> int:
    """The port, as configured or the registered one (IANA: 1883 mqtt, 8883 secure-mqtt)."""
    return settings.port or (_TLS_PORT if settings.tls else _PORT)


def check(settings: MqttSettings) -> None:
    """Refuse settings that make no sense, or make none without another, by `ConfigurationError`."""
    if not settings.host:
        raise ConfigurationError("host is empty", mend="Name the MQTT broker there")
    if settings.port is not None and not 0 < settings.port <= _MOST:
        raise ConfigurationError(f"port {settings.port} is none", mend="Give one from 1 to 65535, or leave it out")
    if not 0 < settings.keepalive_seconds <= _MOST:
        raise ConfigurationError("keepalive_seconds is out of range", mend="Give 1 to 65535")
    for key in ("topic", "discovery_prefix"):
        prefix: str = getattr(settings, key)
        odd = _NOT_IN_A_PREFIX.search(prefix) or prefix.startswith(("/", "$")) or prefix.endswith("/")
        if odd or (key == "discovery_prefix" and not prefix):
            raise ConfigurationError(
                f"{key} {prefix!r} cannot be what topics begin with",
                mend="Leave out +, #, control characters, a $ or / at the start and a / at the end",
            )
    if settings.password_file and not settings.user:
        raise ConfigurationError("password_file is given without user", mend="Set user too")
    if settings.key_file and not settings.cert_file:
        raise ConfigurationError("key_file is given without cert_file", mend="Set cert_file too")
    if not settings.tls and (settings.ca_file or settings.cert_file):
        raise ConfigurationError("certificates are given without tls", mend="Set tls = true")


def tls_of(settings: MqttSettings) -> ssl.SSLContext | None:
    """What to encrypt with, if at all. Raises `ConfigurationError`: the certificates cannot be used."""
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        context.sslsocket_class = _TlsSocket
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file or None)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(file for file in (settings.ca_file, settings.cert_file, settings.key_file) if file)
        raise ConfigurationError(f"the certificates {files} cannot be used: {error}") from error
    return context


class _TlsSocket(ssl.SSLSocket):
    """Closes itself where the handshake fails: paho forgets to."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise
