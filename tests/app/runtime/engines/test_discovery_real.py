"""Engines of other users, in networks of their own and behind proxies, as a user without privileges finds them."""

import contextlib
import os
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from tests.support.engine_process import (
    OTHER_USER,
    EngineProcess,
    engine_port,
    engine_process,
    port_proxy,
)
from tests.support.network import Network, network
from tests.support.tools import run, tool
from tests.support.unprivileged import unprivileged

from jouled.app.runtime.engines.discovery import FoundEngines, find_engines
from jouled.app.runtime.engines.engine_processes import read_processes
from jouled_collectors.engines.vllm import VllmCollector

COLLECTORS = {"vllm": VllmCollector()}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="processes of several users need root")


def found_of(*engines: EngineProcess) -> FoundEngines:
    """What a user without privileges finds of these engines."""
    pids = {engine.pid for engine in engines}
    with unprivileged():
        return find_engines([each for each in read_processes(COLLECTORS) if each.pid in pids], COLLECTORS)


@pytest.fixture
def box() -> Iterator[Network]:
    """A container's network."""
    tool("ip")
    with network() as made:
        yield made


@needs_root
def test_an_engine_of_another_user_is_found_by_the_port_that_it_was_told():
    port = engine_port()
    with engine_process("--port", str(port), user=OTHER_USER) as engine:
        [found] = found_of(engine).found
        assert (found.config.url, found.config.pid) == (f"http://127.0.0.1:{port}", engine.pid)
        assert (found.process.listening, found.process.environ) == (None, None), "it was not allowed to see more"


@needs_root
def test_with_privileges_its_own_sockets_and_its_environment_are_seen():
    port = engine_port()
    with engine_process("--port", str(port), user=OTHER_USER, environ={"CUDA_VISIBLE_DEVICES": "3"}) as engine:
        [record] = [each for each in read_processes(COLLECTORS) if each.pid == engine.pid]
    assert record.listening == (("0.0.0.0", port),)
    assert record.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert (record.uid, record.network) == (OTHER_USER, None)


@needs_root
def test_a_port_that_another_user_holds_is_not_the_engines():
    port = engine_port()
    # It listens elsewhere, as it may while it starts, and somebody else listens where it is going to.
    with (
        engine_process("--port", "0", "--port", str(port), user=OTHER_USER) as engine,
        socket.create_server(("127.0.0.1", port)),
    ):
        found = found_of(engine)
    assert found.engines == ()
    [note] = found.notes
    assert f"port {port} is held by another user" in note


@needs_root
def test_an_engine_in_a_container_is_reached_behind_the_bridge(box):
    with engine_process("--port", "8000", user=OTHER_USER, namespace=box.name) as engine:
        found = found_of(engine)
        [config] = found.engines
        assert (config.name, config.url) == (f"vllm-{box.theirs}-8000", f"http://{box.theirs}:8000")
        assert b"vllm:" in urllib.request.urlopen(f"{config.url}/metrics", timeout=5).read()
    assert engine.pid == config.pid


@needs_root
@pytest.mark.parametrize("kind", ["docker-proxy", "socat"])
def test_an_engine_in_a_container_is_asked_at_its_published_port(box, kind):
    published = engine_port()
    with (
        engine_process("--port", "8000", user=OTHER_USER, namespace=box.name) as engine,
        port_proxy(kind, published, box.theirs, 8000),
    ):
        [config] = found_of(engine).engines
        assert (config.name, config.url) == (f"vllm-{published}", f"http://127.0.0.1:{published}")
        assert b"vllm:" in urllib.request.urlopen(f"{config.url}/metrics", timeout=5).read()


@needs_root
def test_two_engines_on_one_port_in_two_networks_are_two_engines(box):
    with (
        engine_process("--port", "8000", user=OTHER_USER, namespace=box.name) as one,
        network() as second,
        engine_process("--port", "8000", user=OTHER_USER, namespace=second.name) as two,
    ):
        named = {config.name: config.pid for config in found_of(one, two).engines}
    assert named == {f"vllm-{box.theirs}-8000": one.pid, f"vllm-{second.theirs}-8000": two.pid}


@needs_root
def test_an_engine_that_only_its_container_can_reach_is_told_of_and_not_asked(box):
    with engine_process("--port", "8000", "--host", "127.0.0.1", user=OTHER_USER, namespace=box.name) as engine:
        found = found_of(engine)
        assert engine.asked == []
    assert found.engines == ()
    [note] = found.notes
    assert "network of its own" in note


@needs_root
def test_an_address_that_is_in_use_twice_is_not_asked(box):
    # As with containers within a container: the inner ones have the addresses of the outer ones again.
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engine_process("--port", "8000", user=OTHER_USER, namespace=box.name))
        inner = stack.enter_context(network())
        run(["ip", "-n", inner.name, "addr", "add", f"{box.theirs}/32", "dev", "lo"])
        stack.enter_context(engine_process("--port", "9000", namespace=inner.name))
        found = found_of(engine)
    assert found.engines == ()
    assert "no way into it is certain" in found.notes[0]


@needs_root
def test_looking_opens_no_connection(box, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it connected"))
    with engine_process("--port", "8000", user=OTHER_USER, namespace=box.name) as engine:
        assert len(found_of(engine).engines) == 1
        assert engine.asked == []
