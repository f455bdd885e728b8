"""Which engines are asked when nothing is configured."""

import socket
import subprocess
import sys

import pytest

from jouled.app.runtime.discovery import ProcessRecord, find_engines, read_processes


class FakeEngine:
    """Recognises `serve-fake --port N`."""

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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"listening": ()}, "does not listen on port 8001 yet"),
        ({"listening": (("127.0.0.1", 9),)}, "does not listen on port 8001 yet"),
        ({"listening": None}, "sudo jouled check"),
        ({"listening": None, "same_network": False}, "network of its own"),
    ],
)
def test_a_port_that_is_not_known_to_be_an_engines_is_never_asked(changes, said):
    found = find_engines([record(**changes)], COLLECTORS)
    assert found.engines == ()
    [note] = found.notes
    assert said in note


def test_what_may_not_be_seen_is_told_with_the_lines_to_paste():
    [note] = find_engines([record(pid=77, listening=None)], COLLECTORS).notes
    assert '[[engines]]\ntype = "fake"\nurl = "http://127.0.0.1:8001"\npid = 77' in note


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
    assert found.same_network
    assert found.listening == (("127.0.0.1", port),)
    assert found.argv[-1] == "serve-fake"


def test_reading_processes_connects_to_nobody(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it connected"))
    find_engines(read_processes(COLLECTORS), COLLECTORS)
