"""Which engines are asked when nothing is configured."""

import socket
import subprocess
import sys

import pytest

from jouled.app.runtime.engines.containers import Container
from jouled.app.runtime.engines.discovery import find_engines, place_of
from jouled.app.runtime.engines.engine_processes import Family, ProcessRecord, read_processes
from jouled.app.runtime.engines.namespaces import Published
from jouled.app.runtime.engines.proc_net import Listener
from jouled.app.runtime.engines.processes import SeenProcess


class FakeEngine:
    """Recognises `serve-fake --port N`; without `--port` its environment may say it."""

    port_variables = ("FAKE_HOST", "FAKE_PORT")

    def recognises(self, argv, title):
        return any(argument.endswith("serve-fake") for argument in argv) and "worker" not in title

    def port(self, argv):
        return int(argv[argv.index("--port") + 1]) if "--port" in argv else 8000


COLLECTORS = {"fake": FakeEngine()}


def record(pid: int = 10, port: str = "8001", **changes) -> ProcessRecord:
    fields = {"argv": ("serve-fake", "--port", port), "listening": (("0.0.0.0", int(port)),)}
    return ProcessRecord(pid=pid, **(fields | changes))


def test_an_engine_is_named_after_type_and_port():
    found = find_engines([record(pid=12)], COLLECTORS)
    [engine] = found.engines
    assert (engine.name, engine.type, engine.url, engine.pid) == ("fake-8001", "fake", "http://127.0.0.1:8001", 12)
    assert engine.devices == []
    assert found.notes == ()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "[::1]"),
        ("10.0.0.5", "10.0.0.5"),
        ("fd00::1", "[fd00::1]"),
    ],
)
def test_it_is_asked_where_it_listens(address, host):
    [engine] = find_engines([record(listening=((address, 8001),))], COLLECTORS).engines
    assert engine.url == f"http://{host}:8001"
    assert engine.name == ("fake-8001" if host == "127.0.0.1" else f"fake-{address}-8001")


UNSEEN = {"listening": None, "environ": None, "uid": 7}
OPEN = (Listener("0.0.0.0", 8001, uid=7, inode=1), Listener("0.0.0.0", 8000, uid=7, inode=2))


def test_where_its_sockets_may_not_be_seen_the_port_that_it_was_told_is_enough():
    [engine] = find_engines([record(**UNSEEN, listeners=OPEN)], COLLECTORS).engines
    assert engine.url == "http://127.0.0.1:8001"


def test_an_unseen_environment_may_name_another_port_than_the_default():
    default = record(argv=("serve-fake",), **UNSEEN, listeners=OPEN)
    assert find_engines([default], COLLECTORS).engines == ()

    class WithoutVariables(FakeEngine):
        port_variables = ()

    [engine] = find_engines([default], {"fake": WithoutVariables()}).engines
    assert engine.url == "http://127.0.0.1:8000"
    in_a_file = record(argv=("serve-fake", "--config", "fake.yaml"), **UNSEEN, listeners=OPEN)
    assert find_engines([in_a_file], {"fake": WithoutVariables()}).engines == ()


@pytest.mark.parametrize("said", ["9001", "0.0.0.0:9001", "http://127.0.0.1:9001"])
def test_the_environment_tells_the_port_where_the_command_line_does_not(said):
    environ = {"FAKE_HOST": said}
    told = record(argv=("serve-fake",), environ=environ, listening=(("0.0.0.0", 9001), ("0.0.0.0", 8000)))
    assert [each.name for each in find_engines([told], COLLECTORS).engines] == ["fake-9001"]
    overruled = record(environ=environ, listening=(("0.0.0.0", 9001), ("0.0.0.0", 8001)))
    assert [each.name for each in find_engines([overruled], COLLECTORS).engines] == ["fake-8001"]


@pytest.mark.parametrize("said", ["", "port", "99999", "-1", "9001x", "\u0661"])
def test_an_environment_that_makes_no_sense_is_passed_over(said):
    odd = record(argv=("serve-fake",), environ={"FAKE_PORT": said}, listening=(("0.0.0.0", 8000),))
    assert [each.name for each in find_engines([odd], COLLECTORS).engines] == ["fake-8000"]


IN_CONTAINER = {"network": 4711, "container": Container("c0ffee" + 58 * "0", "")}


def test_an_engine_in_a_container_is_asked_at_the_port_that_is_published():
    ways = (
        Published("0.0.0.0", 7001, "172.17.0.2", 9999),
        Published("0.0.0.0", 7002, "172.17.0.2", 8001),
    )
    published = record(**IN_CONTAINER, published=ways, reachable=frozenset({"172.17.0.2"}))
    [engine] = find_engines([published], COLLECTORS).engines
    assert (engine.name, engine.url) == ("fake-7002", "http://127.0.0.1:7002")


def test_else_at_its_address_behind_the_bridge():
    engines = find_engines(
        [
            record(pid=5, **IN_CONTAINER, reachable=frozenset({"172.17.0.2"})),
            record(pid=6, network=4712, reachable=frozenset({"172.17.0.3"})),
            record(pid=7),
        ],
        COLLECTORS,
    ).engines
    assert {(engine.name, engine.url, engine.pid) for engine in engines} == {
        ("fake-172.17.0.2-8001", "http://172.17.0.2:8001", 5),
        ("fake-172.17.0.3-8001", "http://172.17.0.3:8001", 6),
        ("fake-8001", "http://127.0.0.1:8001", 7),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"published": (Published("0.0.0.0", 7001, "172.17.0.2", 9999),)},
        {"listening": (("127.0.0.1", 8001),), "reachable": frozenset({"172.17.0.2"})},
        {
            "listening": (("127.0.0.1", 8001),),
            "published": (Published("0.0.0.0", 7001, "172.17.0.2", 8001),),
        },
    ],
)
def test_without_a_certain_way_into_its_network_it_is_not_asked(changes):
    found = find_engines([record(**(IN_CONTAINER | changes))], COLLECTORS)
    assert found.engines == ()
    [note] = found.notes
    assert "container c0ffee000000 is a fake engine in a network of its own" in note


def test_that_one_container_serves_says_nothing_of_another_one():
    found = find_engines([record(pid=5), record(pid=6, **IN_CONTAINER)], COLLECTORS)
    assert [engine.pid for engine in found.engines] == [5]
    assert any("process 6" in note and "network of its own" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"listening": ()}, "does not listen on port 8001 yet"),
        ({"listening": (("127.0.0.1", 9),)}, "it listens on 9: which of them is it?"),
        ({**UNSEEN, "argv": ("serve-fake",)}, "sudo jouled check"),
        ({**UNSEEN}, "does not listen on port 8001 yet"),
        ({**UNSEEN, "listeners": (Listener("0.0.0.0", 8001, uid=8, inode=1),)}, "held by another user"),
    ],
)
def test_a_port_that_is_not_known_to_be_an_engines_is_never_asked(changes, said):
    found = find_engines([record(**changes)], COLLECTORS)
    assert found.engines == ()
    [note] = found.notes
    assert said in note


def test_what_may_not_be_seen_is_told_with_the_lines_to_paste():
    [note] = find_engines([record(pid=77, argv=("serve-fake",), listening=None)], COLLECTORS).notes
    assert '[[engines]]\ntype = "fake"\nurl = "http://127.0.0.1:8000"\npid = 77' in note
    assert "discovery.conf" in note


def test_unrecognised_processes_are_nobodys_business():
    worker = record(title="serve-fake worker")
    other = ProcessRecord(pid=1, argv=("nginx",), listening=(("0.0.0.0", 80),))
    assert find_engines([worker, other], COLLECTORS) == find_engines([], COLLECTORS)


def test_a_wrapper_and_its_server_are_one_engine():
    found = find_engines([record(pid=5, listening=()), record(pid=6), record(pid=7)], COLLECTORS)
    assert [(engine.name, engine.pid) for engine in found.engines] == [("fake-8001", 6)]
    assert found.notes == ()


def test_of_several_engines_the_devices_have_to_be_said():
    found = find_engines([record(pid=5), record(pid=6, port="8002")], COLLECTORS)
    assert [engine.name for engine in found.engines] == ["fake-8001", "fake-8002"]
    [note] = found.notes
    assert "on which devices each computes" in note
    assert note.count("[[engines]]") == 2


def test_a_real_process_is_found_with_its_port():
    script = (
        "import socket,sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "serve-fake"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        port = int(process.stdout.readline())
        [found] = [each for each in read_processes(COLLECTORS) if each.pid == process.pid]
        process.stdin.close()
    assert found.network is None
    assert found.listening == (("127.0.0.1", port),)
    assert found.argv[-1] == "serve-fake"


def test_a_port_that_a_child_accepts_on_is_its_parents():
    script = (
        "import os,socket,sys; s = socket.create_server(('127.0.0.1', 0)); r, w = os.pipe()\n"
        "if os.fork(): os.close(r); print(s.getsockname()[1], flush=True); s.close(); sys.stdin.read(); os.close(w)\n"
        "else: os.close(w); os.read(r, 1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "serve-fake"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        port = int(process.stdout.readline())
        found = [each for each in read_processes(COLLECTORS) if process.pid in {each.pid, *each.parents}]
        process.stdin.close()
    assert {each.listening for each in found} == {(("127.0.0.1", port),)}
    assert len(found) == 2


def test_reading_processes_connects_to_nobody(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it connected"))
    find_engines(read_processes(COLLECTORS), COLLECTORS)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://localhost:8000/", ("127.0.0.1", 8000)),
        ("http://[::1]:8000", ("127.0.0.1", 8000)),
        ("http://gpu7:8000/v1", ("gpu7", 8000)),
        ("https://gateway", ("gateway", 443)),
        ("http://127.0.0.1:port", ("http://127.0.0.1:port", None)),
    ],
)
def test_names_of_one_place_are_one(url, place):
    assert place_of(url) == place


def test_a_port_is_not_an_engines_where_its_user_cannot_be_told_from_others():
    """With `PrivateUsers=yes` the engine's user and the one that holds the port both look like 65534."""
    listener = Listener("127.0.0.1", 8001, uid=65_534, inode=1)
    found = find_engines([record(**(UNSEEN | {"uid": None}), listeners=(listener,))], COLLECTORS)
    assert found.engines == ()
    [note] = found.notes
    assert "cannot tell users apart" in note
    assert "PrivateUsers=no" in note


class Broken(FakeEngine):
    """A plug-in with a bug."""

    name = "broken"

    def recognises(self, argv, title):
        raise KeyError(title)


def test_a_collector_that_fails_on_a_command_line_hinders_no_other(caplog):
    collectors = {"broken": Broken(), **COLLECTORS}
    found = find_engines([record(pid=1), record(pid=2, port="8002")], collectors)
    assert [engine.name for engine in found.engines] == ["fake-8001", "fake-8002"]
    assert [line.getMessage() for line in caplog.records] == [
        "the collector broken failed unexpectedly on a command line"
    ]


def seen(pid: int, parent: int) -> SeenProcess:
    return SeenProcess(pid, parent, 1, (), "")


def test_a_chain_of_processes_may_be_long_and_be_seen_as_a_ring():
    chain = Family([seen(pid, pid - 1) for pid in range(2, 5_000)])
    assert len(list(chain.below(1))) == 4_998
    ring = Family([seen(1, 2), seen(2, 1)])
    assert list(ring.below(1)) == [2]
    assert list(ring.above(1)) == [2, 1]
