"""Which engines run on this node and where they can be asked, without being told.

Engines are recognised by their processes before anything is asked of them: no request ever goes to a port that does
not belong to a recognised engine. Where a process's own sockets may not be seen, its port is the one that it was told,
if its user listens there in its network namespace.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from jouled.api import EngineCollector, EnvironmentPort
from jouled.app.config.types import EngineConfig
from jouled.app.runtime.engines.engine_processes import ProcessRecord, read_processes, recognises

DROP_IN = "systemd/drop-ins/discovery.conf"
"""Lets the service see the sockets and the environment of other users' processes."""

_LOOPBACK = "127.0.0.1"
_ANY = ("0.0.0.0", "::")
_LOCAL = frozenset({"localhost", "0.0.0.0", "::1", "::"})
_MAXIMUM_PORT = 65_535


class FoundEngine(Struct, frozen=True):
    """An engine that can be asked, and the process that was recognised as it."""

    config: EngineConfig
    process: ProcessRecord


class FoundEngines(Struct, frozen=True):
    """Engines that can be asked, and what the operator should know or paste. servers: all processes recognised."""

    found: tuple[FoundEngine, ...] = ()
    notes: tuple[str, ...] = ()
    servers: frozenset[int] = frozenset()

    @property
    def engines(self) -> tuple[EngineConfig, ...]:
        """As the configuration would name them."""
        return tuple(each.config for each in self.found)


class _Port(NamedTuple):
    """The port that a server serves on. told: whether that is known, not only what such servers do by themselves."""

    number: int
    told: bool


def discover_engines(collectors: Mapping[str, EngineCollector]) -> FoundEngines:
    """Look at the processes of this host."""
    return find_engines(read_processes(collectors), collectors)


def find_engines(records: Iterable[ProcessRecord], collectors: Mapping[str, EngineCollector]) -> FoundEngines:
    """Decide which processes are engines that can be asked, and where."""
    engines: dict[str, FoundEngine] = {}
    reasons: dict[tuple[str, int, int | None], str] = {}
    served: set[tuple[str, int, int | None]] = set()
    servers: set[int] = set()
    for record in sorted(records, key=lambda record: (record.started, record.pid)):
        for kind, collector in collectors.items():
            if not recognises(collector, record.argv, record.title):
                continue
            servers.add(record.pid)
            port = _port(record, collector)
            what = (kind, port.number, record.network)
            place = _place(record, port)
            if place is None:
                reasons.setdefault(what, _why_not(record, kind, port))
                continue
            served.add(what)
            # Of a server, what wraps it, and its forks, the first one is the server.
            engines.setdefault(place, FoundEngine(_config(kind, place, record.pid), record))
    notes = [reason for what, reason in reasons.items() if what not in served]
    found = tuple(engines.values())
    if len(found) > 1:
        notes.append(_which_devices([each.config for each in found]))
    return FoundEngines(found, tuple(notes), frozenset(servers))


def place_of(url: str) -> tuple[str, int | None]:
    """Host and port of a URL; this host's loopback has one name."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return url, None
    return _LOOPBACK if host in _LOCAL else host, port or (443 if parts.scheme == "https" else 80)


def not_named(found: FoundEngine) -> str:
    """What to tell of an engine that the configuration does not name, where it names others."""
    return (
        f"process {found.process.pid} is a {found.config.type} engine that no [[engines]] names; it is left alone, as "
        f"one of those may lead to it. If none does, add:\n{lines_of(found.config)}"
    )


def lines_of(engine: EngineConfig, devices: Sequence[str] = ()) -> str:
    """What to paste into the configuration for an engine, with its devices where they are known."""
    lines = f'[[engines]]\ntype = "{engine.type}"\nurl = "{engine.url}"'
    named = ", ".join(f'"{device}"' for device in devices)
    return f"{lines}\ndevices = [{named}]" if named else lines


def _port(record: ProcessRecord, collector: EngineCollector) -> _Port:
    """From the command line, else the environment, else what such servers take where neither says more."""
    number = collector.port(record.argv)
    if any(word == str(number) or word.endswith((f"={number}", f":{number}")) for word in record.argv):
        return _Port(number, told=True)
    variables = collector.port_variables if isinstance(collector, EnvironmentPort) else ()
    for name in variables:
        text = (record.environ or {}).get(name, "").rpartition(":")[2]
        if text.isascii() and text.isdigit() and 0 < int(text) <= _MAXIMUM_PORT:
            return _Port(int(text), told=True)
    in_a_file = any(word.startswith("--config") for word in record.argv)
    unseen = bool(variables) and record.environ is None
    return _Port(number, told=not (in_a_file or unseen))


def _place(record: ProcessRecord, port: _Port) -> str | None:
    """Where the process can be asked, as `HOST:PORT`; `None` if it is not known to listen there."""
    if record.listening is not None:
        sockets: Sequence[tuple[str, int]] = record.listening
    elif port.told:
        sockets = [(each.address, each.port) for each in record.listeners if each.uid == record.uid is not None]
    else:
        return None
    bound = [address for address, number in sockets if number == port.number]
    if not bound:
        return None
    if record.network is None:
        return f"{_host(bound[0])}:{port.number}"
    for way in record.published:
        if way.to_port == port.number and _takes(bound, way.to_address):
            return f"{_host(way.host)}:{way.port}"
    reached = [address for address in sorted(record.reachable) if _takes(bound, address)]
    return f"{reached[0]}:{port.number}" if reached else None


def _host(address: str) -> str:
    if address in _ANY:
        return _LOOPBACK
    return f"[{address}]" if ":" in address else address


def _takes(bound: Sequence[str], address: str) -> bool:
    return any(each in _ANY or each == address for each in bound)


def _config(kind: str, place: str, pid: int) -> EngineConfig:
    # A place names one engine for as long as it lives there, whatever else comes and goes: names are never traded.
    return EngineConfig(name=f"{kind}-{_short(place)}", type=kind, url=f"http://{place}", pid=pid)


def _short(place: str) -> str:
    host, _, port = place.rpartition(":")
    return port if host == _LOOPBACK else f"{host.strip('[]')}-{port}"


def _why_not(record: ProcessRecord, kind: str, port: _Port) -> str:
    who = f"process {record.pid}" + (f" in {record.container}" if record.container else "")
    lines = f'[[engines]]\ntype = "{kind}"\nurl = "http://127.0.0.1:{port.number}"\npid = {record.pid}'
    if record.listening is None and not port.told:
        return (
            f"{who} looks like a {kind} engine, but its command line does not tell its port and this user may not see "
            f"its sockets; run `sudo jouled check`, install {DROP_IN}, or put into the configuration, with its port:\n"
            f"{lines}"
        )
    sockets = record.listening if record.listening is not None else [(each[0], each[1]) for each in record.listeners]
    if not any(number == port.number for _, number in sockets):
        others = sorted({number for _, number in record.listening or ()})
        more = f"; it listens on {', '.join(map(str, others))}: which of them is it?\n{lines}" if others else ""
        return f"{who} is a {kind} engine that does not listen on port {port.number} yet{more}"
    if record.listening is None and record.uid is None:
        return (
            f"{who} looks like a {kind} engine, but the service cannot tell users apart, so port {port.number} may be "
            f"another user's; start it with PrivateUsers=no, as {DROP_IN} does, or put into the configuration:\n{lines}"
        )
    if record.network is not None:
        return (
            f"{who} is a {kind} engine in a network of its own, and no way into it is certain; publish its port and "
            f"put into the configuration, with the port as published:\n{lines}"
        )
    return (
        f"{who} looks like a {kind} engine, but port {port.number} is held by another user; if it is its own, put into "
        f"the configuration:\n{lines}"
    )


def _which_devices(engines: Sequence[EngineConfig]) -> str:
    blocks = [f"{lines_of(engine)}\ndevices = []  # as named by `jouled check`" for engine in engines]
    told = "several engines run here; where the driver does not tell on which devices each computes, say it in the"
    return f"{told} configuration:\n" + "\n".join(blocks)
