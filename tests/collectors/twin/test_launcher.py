"""The twin as a process of its own: started once, found again, stopped."""

import json
import os
import subprocess
import sys

import pytest

from jouled_collectors.twin import launcher
from jouled_collectors.twin.launcher import TwinError, ensure_running, running, stop
from jouled_collectors.twin.server import STATE_FILE

SPANS = "http://127.0.0.1:1/v1/traces"


@pytest.fixture
def directory(tmp_path):
    yield tmp_path / "state"
    stop(tmp_path / "state")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jouled_collectors.twin", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_it_is_started_once_found_again_pointed_elsewhere_and_stopped(directory):
    started = command("ensure", "--state", str(directory), "--spans", SPANS, "--linger-seconds", "60")
    assert started.returncode == 0, started.stderr
    told = json.loads(started.stdout)
    assert [engine["name"] for engine in told["engines"]] == ["llama-70b", "llama-8b"]
    found = ensure_running(directory, "http://127.0.0.1:2/v1/traces")
    assert (found.pid, found.url) == (told["pid"], told["url"])
    assert running(directory).spans_url == "http://127.0.0.1:2/v1/traces"
    stopped = command("stop", "--state", str(directory))
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert running(directory) is None
    assert not (directory / STATE_FILE).exists()
    assert command("stop", "--state", str(directory)).stdout == "no twin runs\n"


def test_a_record_of_something_that_is_gone_is_no_twin(directory):
    directory.mkdir()
    for record in ("", "{}", json.dumps({"pid": 1, "url": "http://127.0.0.1:1"}), json.dumps({"pid": 1, "url": "x"})):
        (directory / STATE_FILE).write_text(record)
        assert running(directory) is None
        assert not stop(directory)


def test_one_that_cannot_start_says_where_its_words_are(directory, monkeypatch):
    monkeypatch.setattr(launcher.sys, "executable", "/bin/false")
    with pytest.raises(TwinError, match=r"twin\.log"):
        ensure_running(directory, SPANS)
