"""Processes as the kernel shows them."""

import os
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.app.runtime.engines.processes import all_processes, parse, start_ticks

STAT = b"41 (python3) S 7 " + b"0 " * 17 + b"123456 " + b"0 " * 30


@pytest.mark.parametrize(
    ("command_line", "argv"),
    [
        (b"vllm\0serve\0a model\0", ("vllm", "serve", "a model")),
        (b"vllm\0serve\0\0--port\0", ("vllm", "serve", "", "--port")),
        (b"sglang::scheduler_TP0\0\0\0", ("sglang::scheduler_TP0", "", "")),
        (b"nginx: master process\0", ("nginx:", "master", "process")),
        (b"nginx: master process", ("nginx:", "master", "process")),
        (b"\xff\0", ("\udcff",)),
    ],
)
def test_arguments_are_split_as_they_were_given(command_line, argv):
    assert parse(41, command_line, STAT).argv == argv


@pytest.mark.parametrize(
    ("name", "command_line", "title"),
    [
        (b"python3", b"/usr/bin/python3\0x", "python3"),
        (b"VLLM::EngineCor", b"VLLM::EngineCore\0\0", "VLLM::EngineCore"),
        (b"a) S 9 (b", b"x", "a) S 9 (b"),
        (b"fifteen-letters", b"/usr/bin/other\0", "fifteen-letters"),
    ],
)
def test_a_title_that_the_kernel_has_cut_is_completed(name, command_line, title):
    seen = parse(41, command_line, STAT.replace(b"python3", name))
    assert (seen.title, seen.parent, seen.started) == (title, 7, 123456)


@pytest.mark.parametrize("state", [b"Z", b"X"])
def test_one_that_has_ended_is_none(state):
    assert parse(41, b"", STAT.replace(b" S ", b" " + state + b" ")) is None


@given(st.binary(), st.binary())
def test_any_bytes_are_read(command_line, status):
    parse(1, command_line, status)


def test_it_sees_what_psutil_sees():
    with subprocess.Popen([sys.executable, "-c", "input()", "with space", ""], stdin=subprocess.PIPE) as process:
        [seen] = [each for each in all_processes() if each.pid == process.pid]
        other = psutil.Process(process.pid)
        assert (list(seen.argv), seen.title, seen.parent) == (other.cmdline(), other.name(), os.getpid())
        assert start_ticks(process.pid) == seen.started
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_ticks(process.pid) is None, "it has ended, though nobody has waited for it yet"
    assert start_ticks(process.pid) is None


def test_kernel_threads_are_left_out():
    assert all(each.argv for each in all_processes())


def test_of_a_long_command_line_only_its_beginning_is_read():
    many = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *["x" * 100_000] * 10]
    with subprocess.Popen(many, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        [seen] = [each for each in all_processes() if each.pid == process.pid]
        process.communicate()
    assert seen.argv[0] == sys.executable
    assert 100_000 < sum(map(len, seen.argv)) <= 256 * 1024
