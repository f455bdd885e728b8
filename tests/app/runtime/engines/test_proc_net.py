"""What the kernel says of a network namespace, as text."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.unprivileged import unprivileged

from jouled.app.runtime.engines import proc_net
from jouled.app.runtime.engines.proc_net import Listener, Route

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1142770 1 0000000 100 0
   1: 0100007F:1FBC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1143080 1 0000000 100 0
   2: 0100007F:9973 0100007F:1FBC 01 00000000:00000000 00:00000000 00000000     0        0 1143081 1 0000000 100 0
"""
REST = "0A 00000000:00000000 00:00000000 00000000  1000        0 31 1 0 100 0 0 10 0"
TCP6 = f"""\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000000000000:1F40 00000000000000000000000000000000:0000 {REST}
   1: 0000000000000000FFFF00000100007F:1F41 00000000000000000000000000000000:0000 {REST}
   2: B80D0120000000000000000001000000:1F42 00000000000000000000000000000000:0000 {REST}
"""
FIB = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     +-- 172.17.0.0/16 2 0 2
        +-- 172.17.0.0/30 2 0 2
           |-- 172.17.0.0
              /16 link UNICAST
           |-- 172.17.0.2
              /32 host LOCAL
        |-- 172.17.255.255
           /32 link BROADCAST
"""
ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010011AC	0003	0	0	0	00000000	0	0	0
eth0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
"""

little_endian = pytest.mark.skipif(os.sys.byteorder != "little", reason="the text is of a little-endian machine")


@little_endian
def test_listening_sockets_with_their_users():
    assert list(proc_net.parse_listeners(TCP.splitlines())) == [
        Listener("0.0.0.0", 8000, 1000, 1142770),
        Listener("127.0.0.1", 8124, 0, 1143080),
    ]


@little_endian
def test_addresses_of_ipv6_and_of_ipv4_within_it():
    assert [each.address for each in proc_net.parse_listeners(TCP6.splitlines())] == ["::", "127.0.0.1", "2001:db8::1"]


def test_own_addresses_are_those_of_the_host_and_not_loopback():
    assert proc_net.parse_addresses(FIB.splitlines()) == {"172.17.0.2"}


def test_addresses_of_ipv6_are_those_of_its_interfaces():
    text = (
        "fe8000000000000000fc00fffe000001 02 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n"
    )
    assert proc_net.parse_ipv6_addresses(text.splitlines()) == {"fe80::fc:ff:fe00:1", "::1"}


@little_endian
def test_routes_tell_what_lies_behind_the_interface_itself():
    found = [Route(str(route.network), route.gateway) for route in proc_net.parse_routes(ROUTES.splitlines())]
    assert found == [("0.0.0.0/0", "172.17.0.1"), ("172.17.0.0/16", "")]


@given(st.text(), st.integers(0, 500), st.sampled_from([TCP, TCP6, FIB, ROUTES]))
def test_spoilt_text_is_read_as_far_as_it_goes(noise, where, text):
    lines = (text[:where] + noise + text[where:]).splitlines()
    for listener in proc_net.parse_listeners(lines):
        assert isinstance(listener.port, int)
    proc_net.parse_addresses(lines)
    proc_net.parse_ipv6_addresses(lines)
    list(proc_net.parse_routes(lines))


def test_what_this_process_listens_on_is_told_of_itself():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [found] = [each for each in proc_net.listeners(os.getpid()) if each.port == port]
        assert found == Listener("127.0.0.1", port, os.geteuid(), os.fstat(server.fileno()).st_ino)


def test_of_a_process_that_is_gone_nothing_is_told():
    with subprocess.Popen(["true"]) as process:
        pass
    assert proc_net.namespace(process.pid) is None
    assert proc_net.listeners(process.pid) == ()
    assert proc_net.addresses(process.pid) == frozenset()
    assert proc_net.routes(process.pid) == ()


def test_namespaces_are_told_apart_by_any_user():
    command = ["unshare", "--net", "--map-root-user", "sh", "-c", "echo there; exec sleep 30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            if not process.stdout.readline():
                pytest.skip("network namespaces cannot be made here")
            with unprivileged():
                assert proc_net.namespace(process.pid) not in {None, proc_net.namespace("self")}
                assert proc_net.namespace(os.getppid()) == proc_net.namespace("self")
        finally:
            process.kill()


ALL_USERS = "         0          0 4294967295\n"
OF_A_SERVICE = "         0          0          1\n       998        998          1\n"


@pytest.mark.parametrize(
    ("uid_map", "whole"),
    [
        (ALL_USERS, True),
        ("0 0 998\n998 998 1\n999 999 4294966296\n", True),
        (OF_A_SERVICE, False),
        ("0 0 65536\n", False),
    ],
)
def test_a_user_namespace_has_all_users_or_shows_several_as_one(uid_map, whole):
    assert proc_net.parse_has_all_users(uid_map.splitlines()) is whole


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can take on other accounts")
def test_in_a_namespace_of_one_user_all_others_are_one_and_not_told():
    """As a service with `PrivateUsers=yes` sees them."""
    source = "import os, sys; from jouled.app.runtime.engines.proc_net import user_of; print(*map(user_of, %s))"
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=12_345) as another,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=65_534) as nobody,
    ):
        pids = [os.getpid(), another.pid, nobody.pid]
        enclosed = ["unshare", "--user", "--map-root-user", sys.executable, "-c", source % pids]
        told = subprocess.run(enclosed, capture_output=True, text=True, check=True).stdout
        here = [proc_net.user_of(pid) for pid in pids]
        another.communicate()
        nobody.communicate()
    assert told.split() == ["0", "None", "None"]
    assert here == [0, 12_345, 65_534]
