"""Asks one SNMP agent for numbers, by pysnmp.

pysnmp is used one layer below its high-level API, which resolves every name by MIB modules: this starts in 0.2 s
instead of 2 s and saves 10 MB. Each agent has an engine of its own (65 ms and 1 MB, measured): users of the same name
with other passwords do not meet there, and what goes wrong in one stays in it.

GET is all that is needed. Sockets of a node are few and scattered, named values come back exactly or with a reason, and
even all 48 outlets of a PDU cost about the same by GETBULK (7 ms of CPU time each, 24 values at once, measured), which
reads past the end.
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from pyasn1.type import univ  # type: ignore[import-untyped]
from pysnmp.carrier.asyncio.dgram import udp, udp6  # type: ignore[import-untyped]
from pysnmp.entity import config, engine  # type: ignore[import-untyped]
from pysnmp.entity.rfc3413 import cmdgen  # type: ignore[import-untyped]
from pysnmp.proto import errind, rfc1905  # type: ignore[import-untyped]

from jouled_collectors.power.secret_file import read_secret
from jouled_collectors.power.snmp_pdu_errors import (
    library_missing,
    refused,
    silent,
    status_error,
    unknown_host,
)
from jouled_collectors.power.snmp_pdu_settings import PduSettings

SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"
"""SNMPv2-MIB: what the agent is."""

RETRIES = 1
"""A lost datagram is asked for once more."""

TIMER_SECONDS, LONGEST_TIMER_SECONDS, TIMER_SHARE = 0.1, 0.5, 0.25
"""How exactly pysnmp keeps its time limits: a share of them, within these. It wakes so often, with no request too."""

STATUS_TOO_BIG, STATUS_NO_ACCESS, STATUS_AUTHORIZATION = 1, 6, 16
"""RFC 3416, error-status."""

_LEVELS = {(False, False): "noAuthNoPriv", (True, False): "authNoPriv", (True, True): "authPriv"}
_DIGESTS = {
    "MD5": config.USM_AUTH_HMAC96_MD5,
    "SHA": config.USM_AUTH_HMAC96_SHA,
    "SHA224": config.USM_AUTH_HMAC128_SHA224,
    "SHA256": config.USM_AUTH_HMAC192_SHA256,
    "SHA384": config.USM_AUTH_HMAC256_SHA384,
    "SHA512": config.USM_AUTH_HMAC384_SHA512,
}
_CIPHERS = {
    "DES": config.USM_PRIV_CBC56_DES,
    "AES128": config.USM_PRIV_CFB128_AES,
    "AES192": config.USM_PRIV_CFB192_AES_BLUMENTHAL,
    "AES256": config.USM_PRIV_CFB256_AES_BLUMENTHAL,
}
_MODELS = {"2c": 1, "3": 3}
"""Message processing models (RFC 3411, SnmpMessageProcessingModel)."""

_TARGET = "pdu"
_NULL = univ.Null("")


class Unreadable(Struct, frozen=True):
    """An object that the agent has no number for; `reason` completes a sentence: it `does not exist`."""

    reason: str


class _Answer(Struct, frozen=True):
    """What pysnmp's callback told. indication: the request failed as a whole."""

    indication: Any
    status: int
    index: int
    values: Sequence[tuple[Any, Any]]


class Client:
    """One agent. Used inside one event loop, with one request in flight."""

    def __init__(self, settings: PduSettings, snmp_engine: Any) -> None:
        self._settings = settings
        self._engine = snmp_engine
        self._generator = cmdgen.GetCommandGenerator()
        self._names: dict[str, Any] = {}

    async def object_id(self) -> str:
        """The agent's sysObjectID. Raises `SourceError`."""
        answer = await self._ask([SYS_OBJECT_ID])
        for _, value in answer.values:
            if isinstance(value, univ.ObjectIdentifier):
                return str(value)
        return ""

    async def numbers(self, oids: Sequence[str]) -> Mapping[str, int | Unreadable]:
        """The numbers of these objects; every one of them has an entry. Raises `SourceError` if the agent is gone."""
        if not oids:
            return {}
        answer = await self._ask(oids)
        if answer.status == 0:
            return _named(oids, answer.values)
        names_culprit = answer.status != STATUS_TOO_BIG and 1 <= answer.index <= len(oids)
        if not names_culprit and len(oids) > 1:
            half = len(oids) // 2
            return {**await self.numbers(oids[:half]), **await self.numbers(oids[half:])}
        culprit = oids[answer.index - 1] if names_culprit else oids[0]
        others = [oid for oid in oids if oid != culprit]
        return {culprit: Unreadable(f"is answered by error {answer.status}"), **await self.numbers(others)}

    def close(self) -> None:
        """Let go of the socket and of the timer."""
        self._engine.close_dispatcher()

    async def _ask(self, oids: Iterable[str]) -> _Answer:
        """One GET. Raises `SourceError` where there is no answer, or one that refuses this user.

        pysnmp keeps its time limit by the wall clock, which may be set back: the caller has a limit of its own.
        """
        answered: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        binds = [(self._name(oid), _NULL) for oid in oids]
        self._generator.send_varbinds(self._engine, _TARGET, None, self._settings.context, binds, _take, answered)
        answer = await answered
        if isinstance(answer.indication, errind.RequestTimedOut):
            raise silent(self._settings)
        if answer.indication:
            raise refused(self._settings, answer.indication)
        if answer.status in {STATUS_NO_ACCESS, STATUS_AUTHORIZATION}:
            raise status_error(self._settings, answer.status)
        return answer

    def _name(self, oid: str) -> Any:
        if oid not in self._names:
            self._names[oid] = univ.ObjectIdentifier(oid)
        return self._names[oid]


async def open_client(settings: PduSettings) -> Client:
    """Read the secrets, look the host up and make an engine; asks nobody yet.

    Raises `SourceError`; pysnmp may raise anything where it cannot digest a name or a password.
    """
    family, address = await _resolve(settings)
    snmp_engine = engine.SnmpEngine()
    client = Client(settings, snmp_engine)
    try:
        level = _add_user(snmp_engine, settings)
        config.add_target_parameters(snmp_engine, "access", _reader(settings), level, _MODELS[settings.version])
        transport = udp6.Udp6AsyncioTransport if family == socket.AF_INET6 else udp.UdpAsyncioTransport
        domain = udp6.DOMAIN_NAME if family == socket.AF_INET6 else udp.DOMAIN_NAME
        config.add_transport(snmp_engine, domain, transport().open_client_mode())
        timer_seconds = min(max(TIMER_SECONDS, TIMER_SHARE * settings.timeout_seconds), LONGEST_TIMER_SECONDS)
        snmp_engine.transport_dispatcher.set_timer_resolution(timer_seconds)
        config.add_target_address(
            snmp_engine, _TARGET, domain, address, "access", 100 * settings.timeout_seconds, RETRIES
        )
    except BaseException:
        client.close()
        raise
    return client


async def _resolve(settings: PduSettings) -> tuple[int, Any]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(settings.host, settings.port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise unknown_host(settings, error) from error
    family, _, _, _, address = found[0]
    return family, address


def _add_user(snmp_engine: Any, settings: PduSettings) -> str:
    """Tell the engine how to log in; returns the security level. Raises `SourceError`."""
    if settings.version == "2c":
        community = _secret(settings.community_file, "community_file", settings.name)
        config.add_v1_system(snmp_engine, _reader(settings), community)
        return _LEVELS[False, False]
    auth_key = _secret(settings.auth_key_file, "auth_key_file", settings.name)
    privacy_key = _secret(settings.privacy_key_file, "privacy_key_file", settings.name)
    if privacy_key:
        _check_ciphers(settings)
    config.add_v3_user(
        snmp_engine,
        _reader(settings),
        _DIGESTS[settings.auth_protocol] if auth_key else config.USM_AUTH_NONE,
        auth_key or None,
        _CIPHERS[settings.privacy_protocol] if privacy_key else config.USM_PRIV_NONE,
        privacy_key or None,
    )
    return _LEVELS[bool(auth_key), bool(privacy_key)]


def _reader(settings: PduSettings) -> str:
    """The security name: of version 2c a word of our own for the community."""
    return settings.user or "reader"


def _check_ciphers(settings: PduSettings) -> None:
    try:
        import cryptography  # noqa: F401 - pysnmp needs it, and does not depend on it
    except ImportError as error:
        raise library_missing(f"{settings.name}: encryption of SNMP version 3 needs cryptography") from error


def _take(  # the callback's signature is pysnmp's
    _engine: Any, _handle: Any, indication: Any, status: Any, index: Any, values: Any, answered: Any
) -> None:
    if not answered.done():
        answered.set_result(_Answer(indication, int(status), int(index), tuple(values)))


def _named(oids: Iterable[str], values: Iterable[tuple[Any, Any]]) -> dict[str, int | Unreadable]:
    """The answer by name: an agent may leave objects out, mix up their order or add some."""
    told = {str(name): value for name, value in values}
    return {oid: _number(told[oid]) if oid in told else Unreadable("is left out of the answer") for oid in oids}


def _number(value: Any) -> int | Unreadable:
    if isinstance(value, rfc1905.NoSuchObject | rfc1905.NoSuchInstance | rfc1905.EndOfMibView | univ.Null):
        return Unreadable("does not exist there")
    if not isinstance(value, univ.Integer) or not value.isValue:
        return Unreadable(f"is no number but {type(value).__name__}")
    return int(value)


def _secret(path: str, key: str, pdu: str) -> str:
    """Empty where none is configured."""
    return read_secret(path, key, pdu) if path else ""
