"""Processes on devices that belong to no engine."""

import os
import subprocess
import sys

from jouled.app.runtime.engines.containers import Container
from jouled.app.runtime.engines.device_owners import Stranger, stranger_note, strangers


def test_workers_of_a_server_are_no_strangers_and_others_are():
    code = "import subprocess; c = subprocess.Popen(['sleep', '30']); print(c.pid, flush=True); c.wait()"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server,
        subprocess.Popen(["sleep", "31"]) as other,
    ):
        worker = int(server.stdout.readline())
        by_device = {"gpu1": {other.pid, worker}, "gpu0": {worker, other.pid}, "gpu2": {server.pid}, "gpu3": set()}
        found = list(strangers(by_device, {server.pid}))
        everybody = {stranger.pid for stranger in strangers(by_device, set())}
        os.kill(worker, 9)
        other.kill()
    assert [(each.pid, each.title, each.devices) for each in found] == [(other.pid, "sleep", ("gpu0", "gpu1"))]
    assert everybody == {server.pid, worker, other.pid}


def test_a_title_written_over_the_command_line_is_the_title():
    code = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        ["sglang::scheduler_TP0", "-c", code], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        process.stdout.readline()
        [found] = strangers({"gpu0": {process.pid}}, set())
        process.stdin.close()
    assert found.title == "sglang::scheduler_TP0"


def test_a_title_can_be_printed_whatever_it_is():
    code = "import sys; print(flush=True); sys.stdin.read()"
    title = b"VLLM::\x1b]0;x\n\xff" + b"m" * 1_000
    process = subprocess.Popen(
        [title, "-c", code], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        process.stdout.readline()
        [found] = strangers({"gpu0": {process.pid}}, set())
        process.stdin.close()
    assert found.title.startswith("VLLM::?]0;x??mmm")
    assert len(found.title) <= 256


def test_a_process_that_cannot_be_seen_is_told_of_all_the_same():
    with subprocess.Popen(["true"]) as process:
        pass
    [found] = strangers({"gpu0": {process.pid}}, {1})
    assert found == Stranger(process.pid, "", ("gpu0",), None)
    assert f"process {process.pid} (not visible from here) computes on gpu0" in stranger_note(found, ["vllm"])


def test_a_worker_without_a_known_server_is_told_with_the_lines_to_paste():
    note = stranger_note(Stranger(7, "VLLM::Worker_TP0", ("gpu0", "gpu1"), None), ["sglang", "vllm"])
    assert "worker of vllm" in note
    assert '[[engines]]\ntype = "vllm"\n' in note
    assert 'devices = ["gpu0", "gpu1"]' in note


def test_what_becomes_of_a_strangers_joules_is_said():
    note = stranger_note(Stranger(7, "train.py", ("gpu0",), Container("ab" * 32)), ["vllm"])
    assert note.startswith(
        "process 7 (train.py) in container abababababab computes on gpu0 and belongs to no known engine"
    )
    assert "idle" in note
