"""What any user may see of another process's network: `/proc/PID/net` is that of its network namespace (proc(5)).

Which process holds a socket is not told there: that takes `/proc/PID/fd`, which belongs to the process's user.
"""

import contextlib
import ipaddress
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

_LISTEN = "0A"
"""TCP_LISTEN of include/net/tcp_states.h; the kernel lists such sockets before all others."""

_GATEWAY = 0x2
"""RTF_GATEWAY of include/uapi/linux/route.h: the way leads over another machine."""

OVERFLOW_UID = 65_534
"""As which a user namespace shows every user that it has no number for (/proc/sys/kernel/overflowuid)."""

_ALL_USERS = 2**32 - 1
"""The last number is no user (INVALID_UID)."""

_Parsed = TypeVar("_Parsed")


class Listener(NamedTuple):
    """A TCP socket that listens; uid as this process's user namespace shows it."""

    address: str
    port: int
    uid: int
    inode: int


class Route(NamedTuple):
    """A way into a network; `gateway` is empty where the network lies behind the interface itself."""

    network: ipaddress.IPv4Network
    gateway: str


def namespace(pid: int | str) -> int | None:
    """Which network namespace a process is in, comparable among processes that live; `None` if it is gone.

    `/proc/PID/ns/net` needs CAP_SYS_PTRACE. The files below `/proc/PID/net` have one inode number a namespace, too
    (`proc_register` in fs/proc/generic.c; seen on Linux 6.18).
    """
    try:
        return Path(f"/proc/{pid}/net/tcp").stat().st_ino
    except OSError:
        return None


def user_of(pid: int) -> int | None:
    """The user of a process; `None` if it is one of those that this process's user namespace shows as one and the same.

    With `PrivateUsers=yes` systemd maps root and the service's user alone (user_namespaces(7), "Unmapped user and group
    IDs"). Raises `OSError` if the process is gone.
    """
    uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - one of many
    return None if uid == OVERFLOW_UID and not _read("/proc/self/uid_map", parse_has_all_users, True) else uid


def parse_has_all_users(lines: Iterable[str]) -> bool:
    """Whether a `/proc/PID/uid_map` has a number for every user of the host."""
    return sum(int(line.split()[2]) for line in lines) >= _ALL_USERS


def listeners(pid: int | str) -> tuple[Listener, ...]:
    """The listening TCP sockets of a process's namespace; none where it is gone."""
    found: list[Listener] = []
    for name in ("tcp", "tcp6"):
        found += _read(f"/proc/{pid}/net/{name}", lambda lines: tuple(parse_listeners(lines)), ())
    return tuple(found)


def addresses(pid: int | str) -> frozenset[str]:
    """The IPv4 addresses of a process's namespace, loopback left out."""
    return _read(f"/proc/{pid}/net/fib_trie", parse_addresses, frozenset())


def ipv6_addresses(pid: int | str) -> frozenset[str]:
    """The IPv6 addresses of a process's namespace; none where the kernel has no IPv6."""
    return _read(f"/proc/{pid}/net/if_inet6", parse_ipv6_addresses, frozenset())


def routes(pid: int | str) -> tuple[Route, ...]:
    """The IPv4 routes of a process's namespace, as in its main table."""
    return _read(f"/proc/{pid}/net/route", parse_routes, ())


def _read(path: str, parse: Callable[[Iterable[str]], _Parsed], otherwise: _Parsed) -> _Parsed:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as lines:
            return parse(lines)
    except OSError:
        return otherwise


def parse_listeners(lines: Iterable[str]) -> Iterator[Listener]:
    """The listening sockets of a `/proc/net/tcp` or `tcp6`; ends at the first that does not listen."""
    for line in lines:
        fields = line.split()
        if not fields or fields[0] == "sl":
            continue
        try:
            host, _, port = fields[1].partition(":")
            if fields[3] != _LISTEN:
                return
            yield Listener(_address(host), int(port, 16), int(fields[7]), int(fields[9]))
        except (IndexError, ValueError):
            continue


def parse_addresses(lines: Iterable[str]) -> frozenset[str]:
    """The local addresses of a `/proc/net/fib_trie`: leaves with the host as their scope (`/32 host LOCAL`)."""
    found: set[str] = set()
    leaf = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1] if len(words) > 1 else ""
        elif words[:3] == ["/32", "host", "LOCAL"] and _is_reachable(leaf):
            found.add(leaf)
    return frozenset(found)


def parse_ipv6_addresses(lines: Iterable[str]) -> frozenset[str]:
    """The addresses of a `/proc/net/if_inet6`, written as they are read."""
    found: set[str] = set()
    for line in lines:
        with contextlib.suppress(IndexError, ValueError):
            found.add(str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))))
    return frozenset(found)


def parse_routes(lines: Iterable[str]) -> tuple[Route, ...]:
    """The routes of a `/proc/net/route`."""
    found: list[Route] = []
    for line in lines:
        fields = line.split()
        with contextlib.suppress(IndexError, ValueError):
            network = ipaddress.IPv4Network(f"{_address(fields[1])}/{_address(fields[7])}")
            found.append(Route(network, _address(fields[2]) if int(fields[3], 16) & _GATEWAY else ""))
    return tuple(found)


def _is_reachable(text: str) -> bool:
    try:
        return not ipaddress.IPv4Address(text).is_loopback
    except ValueError:
        return False


def _address(hexadecimal: str) -> str:
    """An address as the kernel prints it: words of four bytes, each in the machine's byte order."""
    raw = bytes.fromhex(hexadecimal)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    address = ipaddress.ip_address(raw)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
