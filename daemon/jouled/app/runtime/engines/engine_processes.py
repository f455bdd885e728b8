"""The processes of this host that are engines' servers, with all that this user may see of them. Asks nobody."""

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import psutil
from msgspec import Struct

from jouled.api import EngineCollector
from jouled.app.runtime.engines import proc_net
from jouled.app.runtime.engines.containers import Container, container_of
from jouled.app.runtime.engines.namespaces import (
    Published,
    Surroundings,
    is_proxy,
    published_to,
    reachable_in,
    surroundings,
)
from jouled.app.runtime.engines.proc_net import Listener
from jouled.app.runtime.engines.processes import SeenProcess, all_processes

_log = logging.getLogger(__name__)
_failed: set[str] = set()


class ProcessRecord(Struct, frozen=True, kw_only=True):
    """A process that an engine collector recognised.

    uid: its user; `None` if this process's user namespace does not tell that one from others. started: when it began,
    in the kernel's ticks; with the pid it is one process and no other. listening: addresses and ports of its own and
    its children's TCP sockets, `None` if they may not be seen. listeners: all of its network namespace, which anybody
    may see. environ: `None` if it may not be seen. network: the namespace, if it is not ours, as in a container; it is
    reached by what is `published` on this host and at the addresses in `reachable`.
    """

    pid: int
    argv: tuple[str, ...]
    title: str = ""
    uid: int | None = 0
    started: int = 0
    parents: tuple[int, ...] = ()
    environ: Mapping[str, str] | None = None
    listening: tuple[tuple[str, int], ...] | None = ()
    listeners: tuple[Listener, ...] = ()
    network: int | None = None
    published: tuple[Published, ...] = ()
    reachable: frozenset[str] = frozenset()
    container: Container | None = None


class Family:
    """Who started whom, of all processes at one moment."""

    def __init__(self, processes: Iterable[SeenProcess]) -> None:
        self._parents = {each.pid: each.parent for each in processes}
        self._children: defaultdict[int, list[int]] = defaultdict(list)
        for pid, parent in self._parents.items():
            self._children[parent].append(pid)

    def above(self, pid: int) -> tuple[int, ...]:
        """Parents, the nearest first."""
        found: list[int] = []
        while (pid := self._parents.get(pid, 0)) and pid not in found:
            found.append(pid)
        return tuple(found)

    def below(self, pid: int) -> Iterator[int]:
        """All that it started and they started, each once: they are not all looked at in the same moment.

        Chains of them may be longer than this interpreter's stack.
        """
        waiting, found = [pid], {pid}
        while waiting:
            for child in self._children.get(waiting.pop(), ()):
                if child not in found:
                    found.add(child)
                    waiting.append(child)
                    yield child


def read_processes(collectors: Mapping[str, EngineCollector]) -> list[ProcessRecord]:
    """The processes that some collector recognises; what they listen on is looked up for those only."""
    processes: list[SeenProcess] = []
    servers: list[SeenProcess] = []
    for seen in all_processes():
        if any(recognises(collector, seen.argv, seen.title) for collector in collectors.values()):
            servers.append(seen)
        # What thousands of others were started with, up to megabytes each, is not held.
        processes.append(seen if is_proxy(seen.argv) else seen._replace(argv=()))
    family = Family(processes)
    own = proc_net.namespace("self")
    around: Surroundings | None = None
    records = []
    for seen in servers:
        network = proc_net.namespace(seen.pid)
        foreign = network if network != own else None
        if foreign is not None and around is None:
            around = surroundings((each.pid, each.argv) for each in processes)
        with contextlib.suppress(OSError):  # it ended meanwhile
            records.append(_record(seen, family, foreign, around))
    return records


def recognises(collector: EngineCollector, argv: Sequence[str], title: str) -> bool:
    """Whether the collector takes this process for a server of its engine; one that fails takes none."""
    try:
        return collector.recognises(argv, title)
    except Exception:  # noqa: BLE001 - the boundary to plug-ins: a bug in one stops no other
        if collector.name not in _failed:
            _failed.add(collector.name)
            _log.exception("the collector %s failed unexpectedly on a command line", collector.name)
        return False


def _record(seen: SeenProcess, family: Family, foreign: int | None, around: Surroundings | None) -> ProcessRecord:
    """Raises `OSError` if the process is gone."""
    pid, uid = seen.pid, proc_net.user_of(seen.pid)
    listeners = proc_net.listeners(pid)
    published: tuple[Published, ...] = ()
    reachable: frozenset[str] = frozenset()
    if foreign is not None and around is not None:
        published = published_to(foreign, around, uid)
        reachable = reachable_in(foreign, proc_net.routes(pid), around)
    return ProcessRecord(
        pid=pid,
        argv=seen.argv,
        title=seen.title,
        uid=uid,
        started=seen.started,
        parents=family.above(pid),
        environ=_environ(pid),
        listening=_own_sockets(pid, family.below(pid), listeners),
        listeners=listeners,
        network=foreign,
        published=published,
        reachable=reachable,
        container=container_of(pid),
    )


def _environ(pid: int) -> Mapping[str, str] | None:
    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return None


def _own_sockets(pid: int, below: Iterable[int], listeners: Sequence[Listener]) -> tuple[tuple[str, int], ...] | None:
    """What a process and all below it listen on: a server may leave accepting to processes that it started."""
    held = _held_sockets(pid)
    if held is None:
        return None
    for child in below:
        held |= _held_sockets(child) or set()
    return tuple((each.address, each.port) for each in listeners if each.inode in held)


def _held_sockets(pid: int) -> set[int] | None:
    """Inode numbers of the sockets that a process holds open; `None` if its files may not be seen."""
    held: set[int] = set()
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208 - there may be tens of thousands
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                link = os.readlink(f"{folder}/{name}")  # noqa: PTH115 - as above
                if link.startswith("socket:["):
                    held.add(int(link[len("socket:[") : -1]))
    except PermissionError:
        return None
    except OSError:  # it ended meanwhile
        return set()
    return held
