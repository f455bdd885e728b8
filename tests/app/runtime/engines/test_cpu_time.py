"""CPU time of an engine's processes."""

import os
import subprocess
import sys

from jouled.app.runtime.engines.cpu_time import cpu_seconds

PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
BURN = "import time\nbegun = time.process_time()\nwhile time.process_time() - begun < 0.3: pass\n"


def test_children_count_while_they_run_and_after_they_ended():
    before = cpu_seconds(os.getpid())
    burning = subprocess.Popen([sys.executable, "-c", f"{BURN}print('burnt', flush=True)\ninput()"], **PIPES)
    assert burning.stdout is not None
    assert burning.stdout.readline() == "burnt\n"
    during = cpu_seconds(os.getpid())
    burning.communicate("\n")
    after = cpu_seconds(os.getpid())
    assert before is not None
    assert during is not None
    assert after is not None
    assert before + 0.3 <= during + 0.02
    assert during <= after + 0.02, "the kernel counts in ticks of 10 ms"


def test_a_process_that_is_gone_tells_nothing():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert cpu_seconds(ended.pid) is None
