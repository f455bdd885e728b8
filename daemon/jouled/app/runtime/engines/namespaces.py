"""How an engine in a network namespace of its own (a container) is reached from here, as far as that is certain.

Two ways are certain: a proxy on this host that says to which address and port it passes on, and an address of that
namespace which this host reaches over an interface of its own and which no other namespace of the host has.
"""

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

from jouled.app.runtime.engines import proc_net
from jouled.app.runtime.engines.proc_net import Listener, Route

_HOST_ROUTE_BITS = 32
_ROOT = 0
_ANY = ("0.0.0.0", "::")
_LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
"""Calico and the AWS VPC CNI give pods a gateway from here, and the host a route for each pod alone."""


class Published(NamedTuple):
    """A port of this host that a proxy passes on to a port of an address. uid: the user that holds the port."""

    host: str
    port: int
    to_address: str
    to_port: int
    uid: int = 0


class Surroundings(NamedTuple):
    """What is known of this host's network and of all its namespaces, by their identity."""

    addresses: Mapping[int, frozenset[str]] = {}
    own: int | None = None
    routes: tuple[Route, ...] = ()
    published: tuple[Published, ...] = ()


def surroundings(processes: Iterable[tuple[int, Sequence[str]]]) -> Surroundings:
    """Look at the namespaces of all these processes, given with their arguments. Opens no connection."""
    own = proc_net.namespace("self")
    members: dict[int, int] = {}
    published = []
    for pid, argv in processes:
        network = proc_net.namespace(pid)
        if network is None:
            continue
        members.setdefault(network, pid)
        if network == own and (proxy := parse_proxy(argv)):
            with contextlib.suppress(OSError):  # it ended meanwhile
                uid = proc_net.user_of(pid)
                published += [] if uid is None else [proxy._replace(uid=uid)]
    addresses = {network: proc_net.addresses(pid) for network, pid in members.items()}
    listeners = proc_net.listeners("self")
    return Surroundings(addresses, own, proc_net.routes("self"), tuple(held_ports(published, listeners)))


def held_ports(proxies: Iterable[Published], listeners: Sequence[Listener]) -> Iterator[Published]:
    """The proxies whose user listens where they say: anybody can start a program with any arguments."""
    for proxy in proxies:
        heard = {each.address for each in listeners if (each.port, each.uid) == (proxy.port, proxy.uid)}
        if heard & {proxy.host, *_ANY}:
            yield proxy


def published_to(network: int, around: Surroundings, uid: int | None) -> tuple[Published, ...]:
    """The ports of this host that lead into that namespace, by root's word or by that of this user, whose server it is.

    Another user's proxy may lead to a server of that user's own.
    """
    inside = _unique_addresses(network, around)
    return tuple(each for each in around.published if each.to_address in inside and each.uid in {_ROOT, uid})


def reachable_in(network: int, routes: Sequence[Route], around: Surroundings) -> frozenset[str]:
    """The addresses of that namespace, whose routes these are, that are surely reached from here."""
    ours = around.addresses.get(around.own, frozenset()) if around.own is not None else frozenset()
    # A container whose gateway is this host lies behind a bridge of it; in a network made by a helper in user space
    # (slirp4netns), or bridged to the outside, the same address can be another machine's.
    gateways = {route.gateway for route in routes if route.gateway}
    behind_us = not gateways.isdisjoint(ours)
    alone = any(ipaddress.IPv4Address(gateway) in _LINK_LOCAL for gateway in gateways)
    return frozenset(
        address
        for address in _unique_addresses(network, around)
        if (route := _way_to(address, around.routes)) is not None
        and not route.gateway
        and (behind_us or (alone and route.network.prefixlen == _HOST_ROUTE_BITS))
    )


def is_proxy(argv: Sequence[str]) -> bool:
    """Whether this is a program that `parse_proxy` knows."""
    return bool(argv) and PurePath(argv[0]).name in _PROXIES


def parse_proxy(argv: Sequence[str]) -> Published | None:
    """Read the arguments of `docker-proxy`, or of `socat TCP-LISTEN:… TCP:…`; `None` if it is neither."""
    if not is_proxy(argv):
        return None
    try:
        return _PROXIES[PurePath(argv[0]).name](argv)
    except (KeyError, ValueError):
        return None


def _docker_proxy(argv: Sequence[str]) -> Published | None:
    said = {name.lstrip("-"): value for name, value in pairwise(argv) if name.startswith("-")}
    if said["proto"] != "tcp":
        return None
    return Published(
        _address(said["host-ip"]), int(said["host-port"]), said["container-ip"], int(said["container-port"])
    )


def _socat(argv: Sequence[str]) -> Published | None:
    ends = [argument.split(",") for argument in argv[1:] if ":" in argument and not argument.startswith("-")]
    listens = [end for end in ends if end[0].upper().startswith(("TCP-LISTEN:", "TCP4-LISTEN:", "TCP-L:", "TCP4-L:"))]
    leads = [end for end in ends if end[0].upper().startswith(("TCP:", "TCP4:", "TCP-CONNECT:", "TCP4-CONNECT:"))]
    if len(listens) != 1 or len(leads) != 1:
        return None
    host = next((word.partition("=")[2] for word in listens[0] if word.startswith("bind=")), "0.0.0.0")
    _, address, port = leads[0][0].split(":")
    return Published(_address(host), int(listens[0][0].partition(":")[2]), address, int(port))


def _address(host: str) -> str:
    """A name is not looked up, but for this host's own. Raises `ValueError`."""
    return "127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))


_PROXIES = {"docker-proxy": _docker_proxy, "socat": _socat}


def _unique_addresses(network: int, around: Surroundings) -> frozenset[str]:
    """Those that no other namespace has: containers within containers use the same ones again."""
    users = Counter(address for inside in around.addresses.values() for address in inside)
    return frozenset(address for address in around.addresses.get(network, ()) if users[address] == 1)


def _way_to(address: str, routes: Iterable[Route]) -> Route | None:
    wanted = ipaddress.IPv4Address(address)
    fitting = [route for route in routes if wanted in route.network]
    return max(fitting, key=lambda route: route.network.prefixlen, default=None)
