"""Which engines run on this node and where they can be asked, without being told.

Engines are recognised by their processes before anything is asked of them: no request ever goes to a port that does
not belong to a recognised engine.
"""

import os
from collections.abc import Iterable, Iterator, Mapping

import psutil
from msgspec import Struct

from jouled.api import EngineCollector
from jouled.app.config.types import EngineConfig

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "::1": "[::1]"}


class ProcessRecord(Struct, frozen=True, kw_only=True):
    """A process that an engine collector recognised.

    listening: its TCP addresses and ports, `None` if they may not be seen. same_network: whether its loopback is ours;
    not so in a container with a network of its own.
    """

    pid: int
    argv: tuple[str, ...]
    title: str = ""
    listening: tuple[tuple[str, int], ...] | None = ()
    same_network: bool = True


class FoundEngines(Struct, frozen=True):
    """Engines that can be asked, and what the operator should know or paste."""

    engines: tuple[EngineConfig, ...] = ()
    notes: tuple[str, ...] = ()


def discover_engines(collectors: Mapping[str, EngineCollector]) -> FoundEngines:
    """Look at the processes of this host."""
    return find_engines(read_processes(collectors), collectors)


def find_engines(records: Iterable[ProcessRecord], collectors: Mapping[str, EngineCollector]) -> FoundEngines:
    """Decide which processes are engines that can be asked, and where."""
    engines: dict[str, EngineConfig] = {}
    notes: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.pid):
        for kind, collector in collectors.items():
            if not collector.recognises(record.argv, record.title):
                continue
            port = collector.port(record.argv)
            name = f"{kind}-{port}"
            host = _host(record, port)
            if host and name not in engines:
                engines[name] = EngineConfig(name=name, type=kind, url=f"http://{host}:{port}", pid=record.pid)
            elif not host:
                notes.setdefault(name, _why_not(record, kind, port))
    told = [note for name, note in notes.items() if name not in engines]
    if len(engines) > 1:
        told.append(_which_devices(engines.values()))
    return FoundEngines(tuple(engines.values()), tuple(told))


def read_processes(collectors: Mapping[str, EngineCollector]) -> Iterator[ProcessRecord]:
    """The processes that some collector recognises; what they listen on is looked up for those only."""
    for process in psutil.process_iter(["cmdline", "name"]):
        argv, title = tuple(process.info["cmdline"] or ()), process.info["name"] or ""
        if not any(collector.recognises(argv, title) for collector in collectors.values()):
            continue
        same_network = _same_network(process.pid)
        yield ProcessRecord(
            pid=process.pid,
            argv=argv,
            title=title,
            listening=_listening(process) if same_network else None,
            same_network=same_network is not False,
        )


def _same_network(pid: int) -> bool | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - a link to no path
    except OSError:
        return None


def _listening(process: psutil.Process) -> tuple[tuple[str, int], ...] | None:
    # A server may leave accepting to processes that it forked.
    try:
        family = [process, *process.children(recursive=True)]
        connections = [connection for each in family for connection in each.net_connections("tcp")]
    except psutil.Error:
        return None
    return tuple((c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN)


def _host(record: ProcessRecord, port: int) -> str:
    """Where the process can be asked; empty if it is not known to listen there."""
    if not record.same_network or record.listening is None:
        return ""
    for address, listening in record.listening:
        if listening == port:
            return _ANY_ADDRESS.get(address, f"[{address}]" if ":" in address else address)
    return ""


def _why_not(record: ProcessRecord, kind: str, port: int) -> str:
    lines = f'[[engines]]\ntype = "{kind}"\nurl = "http://127.0.0.1:{port}"\npid = {record.pid}'
    if not record.same_network:
        return (
            f"process {record.pid} is a {kind} engine in a network of its own; publish its port and put into the "
            f"configuration, with the port as published:\n{lines}"
        )
    if record.listening is None:
        return (
            f"process {record.pid} looks like a {kind} engine, but this user may not see its ports; run "
            f"`sudo jouled check`, or put into the configuration:\n{lines}"
        )
    return f"process {record.pid} is a {kind} engine that does not listen on port {port} yet"


def _which_devices(engines: Iterable[EngineConfig]) -> str:
    blocks = [
        f'[[engines]]\ntype = "{engine.type}"\nurl = "{engine.url}"\ndevices = []  # as named by `jouled check`'
        for engine in engines
    ]
    told = "several engines run here; where the driver does not tell on which devices each computes, say it in the"
    return f"{told} configuration:\n" + "\n".join(blocks)
