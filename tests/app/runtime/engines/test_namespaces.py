"""Ways into the network of a container, as far as they are certain."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.app.runtime.engines.namespaces import (
    Published,
    Surroundings,
    held_ports,
    parse_proxy,
    published_to,
    reachable_in,
)
from jouled.app.runtime.engines.proc_net import Listener, Route

OURS, BOX, INNER = 1, 2, 3


def route(network: str, gateway: str = "") -> Route:
    return Route(ipaddress.IPv4Network(network), gateway)


def bridge(**changes) -> Surroundings:
    """This host with a container behind its bridge."""
    return Surroundings(
        addresses={OURS: frozenset({"10.0.0.5", "172.17.0.1"}), BOX: frozenset({"172.17.0.2"})},
        own=OURS,
        routes=(route("0.0.0.0/0", "10.0.0.1"), route("10.0.0.0/24"), route("172.17.0.0/16")),
        published=(Published("0.0.0.0", 7001, "172.17.0.2", 8000), Published("0.0.0.0", 7002, "172.17.0.3", 8000)),
    )._replace(**changes)


BEHIND_US = (route("0.0.0.0/0", "172.17.0.1"), route("172.17.0.0/16"))


def test_a_container_behind_our_bridge_is_reached():
    assert reachable_in(BOX, BEHIND_US, bridge()) == {"172.17.0.2"}
    assert [way.port for way in published_to(BOX, bridge(), 0)] == [7001]


def test_an_address_that_another_namespace_has_too_may_be_that_ones():
    nested = bridge()
    nested = nested._replace(addresses={**nested.addresses, INNER: frozenset({"172.17.0.2"})})
    assert reachable_in(BOX, BEHIND_US, nested) == frozenset()
    assert published_to(BOX, nested, 0) == ()


@pytest.mark.parametrize(
    "routes",
    [
        (route("0.0.0.0/0", "172.17.0.9"),),  # its gateway is another machine: it is bridged to the outside
        (route("0.0.0.0/0", "10.0.2.2"),),  # a network in user space
        (),
    ],
)
def test_a_network_that_is_not_behind_this_host_is_left_alone(routes):
    assert reachable_in(BOX, routes, bridge()) == frozenset()


def test_where_the_way_leads_over_another_machine_the_address_is_that_ones():
    away = bridge(routes=(route("0.0.0.0/0", "10.0.0.1"), route("10.0.0.0/24")))
    assert reachable_in(BOX, BEHIND_US, away) == frozenset()
    assert reachable_in(BOX, BEHIND_US, bridge(routes=())) == frozenset()


def test_the_closest_route_counts():
    vpn = bridge(routes=(route("172.17.0.0/16"), route("172.17.0.2/32", "10.0.0.1")))
    assert reachable_in(BOX, BEHIND_US, vpn) == frozenset()


def test_a_pod_with_a_route_of_its_own_is_reached():
    pod = (route("0.0.0.0/0", "169.254.1.1"),)
    calico = bridge(routes=(route("0.0.0.0/0", "10.0.0.1"), route("172.17.0.2/32")))
    assert reachable_in(BOX, pod, calico) == {"172.17.0.2"}
    assert reachable_in(BOX, pod, bridge()) == frozenset()


def test_a_proxy_of_a_third_user_may_lead_to_something_of_that_users():
    ways = tuple(Published("0.0.0.0", port, "172.17.0.2", 8000, uid) for port, uid in ((1, 0), (2, 7), (3, 8)))
    assert [way.port for way in published_to(BOX, bridge(published=ways), 7)] == [1, 2]
    assert [way.port for way in published_to(BOX, bridge(published=ways), None)] == [1]


def test_a_proxy_counts_where_its_user_listens_as_it_says():
    ways = [Published("127.0.0.1", 7001, "172.17.0.2", 8000, uid=7)]
    assert list(held_ports(ways, [Listener("127.0.0.1", 7001, uid=7, inode=1)])) == ways
    assert list(held_ports(ways, [Listener("::", 7001, uid=7, inode=1)])) == ways
    assert list(held_ports(ways, [Listener("127.0.0.1", 7001, uid=8, inode=1)])) == [], "another user has the port"
    assert list(held_ports(ways, [Listener("10.0.0.5", 7001, uid=7, inode=1)])) == []
    assert list(held_ports(ways, [Listener("127.0.0.1", 7002, uid=7, inode=1)])) == []


DOCKER = [
    *("-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "7001"),
    *("-container-ip", "172.17.0.2", "-container-port", "8000"),
]


@pytest.mark.parametrize(
    ("argv", "way"),
    [
        (["/usr/bin/docker-proxy", *DOCKER], Published("0.0.0.0", 7001, "172.17.0.2", 8000)),
        (["docker-proxy", *DOCKER, "-use-listen-fd"], Published("0.0.0.0", 7001, "172.17.0.2", 8000)),
        (["docker-proxy", "-proto", "udp", *DOCKER[2:]], None),
        (["docker-proxy", *DOCKER[:-1]], None),
        (["docker-proxy", *DOCKER[:-1], "http"], None),
        (["socat", "TCP-LISTEN:7001,fork", "TCP:172.17.0.2:8000"], Published("0.0.0.0", 7001, "172.17.0.2", 8000)),
        (
            ["socat", "-d", "tcp4-listen:7001,reuseaddr,bind=127.0.0.1", "tcp4:172.17.0.2:8000,nodelay"],
            Published("127.0.0.1", 7001, "172.17.0.2", 8000),
        ),
        (
            ["socat", "TCP-LISTEN:7001,bind=localhost", "TCP:172.17.0.2:80"],
            Published("127.0.0.1", 7001, "172.17.0.2", 80),
        ),
        (["socat", "TCP-LISTEN:7001,bind=another.host", "TCP:172.17.0.2:8000"], None),
        (["docker-proxy", "-proto", "tcp", "-host-ip", "another.host", *DOCKER[4:]], None),
        (["socat", "TCP-LISTEN:7001", "UNIX-CONNECT:/run/x"], None),
        (["socat", "TCP-LISTEN:7001", "TCP:[::1]:8000"], None),
        (["nginx", *DOCKER], None),
        ([], None),
    ],
)
def test_a_proxy_says_where_it_leads(argv, way):
    assert parse_proxy(argv) == way


@given(
    st.lists(st.text() | st.sampled_from([*DOCKER, "TCP:", "TCP-LISTEN:1", "TCP:a:1"])),
    st.sampled_from(["docker-proxy", "socat"]),
)
def test_any_arguments_are_read(arguments, program):
    parse_proxy([program, *arguments])
