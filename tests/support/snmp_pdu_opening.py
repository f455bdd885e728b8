"""How tests open the PDU collector."""

import time
from contextlib import contextmanager
from pathlib import Path

import msgspec

from jouled.model.errors import SourceError
from jouled_collectors.power.snmp_pdu import SnmpPduCollector
from jouled_collectors.power.snmp_pdu_settings import SnmpPduSettings


class JumpClock:
    """Real time, which can be moved ahead: pauses need not be waited for."""

    def __init__(self) -> None:
        self._ahead_ns = 0

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def advance(self, seconds: float) -> None:
        self._ahead_ns += round(seconds * 1e9)


def pdu(folder: Path, port: int, name: str = "a", community: str = "public", **keys) -> dict[str, object]:
    """The configuration of one PDU of version 2c."""
    file = folder / f"community-{community}"
    file.write_text(f"{community}\n")
    sockets = {} if "inlets" in keys else {"outlets": [1, 2]}
    where = {"name": name, "host": "127.0.0.1", "port": port, "community_file": str(file)}
    return where | {"timeout_seconds": 0.3} | sockets | keys


def secure_pdu(folder: Path, port: int, name: str = "a", **keys) -> dict[str, object]:
    """The configuration of one PDU of version 3, authPriv, for snmpd's user."""
    for file, text in (("auth", "authpass12"), ("privacy", "privpass12")):
        if not (folder / file).exists():
            (folder / file).write_text(f"{text}\n")
    where = {"name": name, "host": "127.0.0.1", "port": port, "version": "3", "user": "meter"}
    keys_of_user = {"auth_key_file": str(folder / "auth"), "privacy_key_file": str(folder / "privacy")}
    return where | {"timeout_seconds": 0.5, "outlets": [1, 2]} | keys_of_user | keys


@contextmanager
def opened(*pdus, clock: JumpClock | None = None, **keys):
    """The opened source, read every 0.1 s as far as it knows. Settings go through JSON, as to the child process."""
    settings = msgspec.convert({"interval_seconds": 0.1, "pdus": list(pdus), **keys}, SnmpPduSettings)
    settings = msgspec.json.decode(msgspec.json.encode(settings), type=SnmpPduSettings)
    source = SnmpPduCollector().open(settings, clock or JumpClock())
    try:
        yield source
    finally:
        source.close()


def until(source, condition, clock: JumpClock | None = None, seconds: float = 10.0):
    """Read until the readings are as wanted; returns them. Pauses pass ten times as fast as they are."""
    deadline = time.monotonic() + seconds
    readings: list = []
    while not condition(readings):
        assert time.monotonic() < deadline, (readings, getattr(source, "parts", None))
        time.sleep(0.02)
        if clock:
            clock.advance(2.0)
        try:
            readings = source.read()
        except SourceError:
            readings = []
    return readings


def watts(readings) -> dict[str, float]:
    """Watts by device."""
    return {reading.device: reading.watts for reading in readings}
