"""What the stat-logger plug-in adds to a step of vLLM's front end.

Run as `python bench/vllm_plugin.py`; prints JSON lines. Times are CPU times of the thread that calls `record`, sending
included, so that neighbours on the machine do not count; a process of its own reads the socket as the daemon does.
Each value is the median of the rounds, with the least and the greatest. `without_jouled_socket`: installed and inert.
`amortised`: 64 sequences of 250 tokens each, so that 256 of 1000 steps see one end.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jouled_collectors.requests.vllm_plugin import SOCKET_VARIABLE, JouledStatLogger

ROUNDS = 15
STEPS = 1_000
STEPS_AT_ONCE = 5
PAUSE_SECONDS = 0.005
"""After a few steps: an engine's step takes a millisecond and more, in which the daemon reads."""
ENDS_IN_1000_STEPS = 256
READER = """
import socket, sys
bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
bound.bind(sys.argv[1])
print(flush=True)
while True:
    bound.recv(65536)
"""


class FinishReason(IntEnum):
    """The one that is needed of vLLM's."""

    LENGTH = 1


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="jouled-bench-") as folder:
        read, missing = Path(folder) / "read.sock", Path(folder) / "missing.sock"
        with subprocess.Popen([sys.executable, "-c", READER, read], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            try:
                bench("without_jouled_socket", logger_for(None), partial(always, 0))
                for finished in (0, 1, 64):
                    bench("reading", logger_for(read), partial(always, finished), finished=finished)
                bench("reading", logger_for(read), amortised, finished="amortised")
                bench("away", logger_for(missing), amortised, finished="amortised")
            finally:
                reader.terminate()


def always(finished: int, _: int) -> int:
    """So many requests end in every step."""
    return finished


def amortised(step: int) -> int:
    """Requests that end in a step, spread evenly."""
    return (step + 1) * ENDS_IN_1000_STEPS // 1_000 - step * ENDS_IN_1000_STEPS // 1_000


def logger_for(path: Path | None) -> JouledStatLogger:
    os.environ.pop(SOCKET_VARIABLE, None)
    if path is not None:
        os.environ[SOCKET_VARIABLE] = str(path)
    return JouledStatLogger(None, 0)


def bench(daemon: str, logger: JouledStatLogger, ends: Callable[[int], int], **about: object) -> None:
    rounds = []
    for _ in range(ROUNDS):
        used_ns = 0
        for batch in range(STEPS // STEPS_AT_ONCE):
            steps = [statistics_of(ends(batch * STEPS_AT_ONCE + step)) for step in range(STEPS_AT_ONCE)]
            start_ns = time.thread_time_ns()
            for scheduler_stats, iteration_stats in steps:
                logger.record(scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0)
            used_ns += time.thread_time_ns() - start_ns
            time.sleep(PAUSE_SECONDS)
        rounds.append(used_ns / STEPS / 1_000)
    report("vllm_plugin_record", rounds, "µs/step", daemon=daemon, **about)


def statistics_of(finished: int) -> tuple[Any, Any]:
    """What vLLM 0.32.0 hands over: objects of the same attributes, read the same way."""
    requests = [
        SimpleNamespace(
            finish_reason=FinishReason.LENGTH,
            request_id=f"chatcmpl-{number:032x}",
            e2e_latency=3.8210517,
            num_prompt_tokens=1_024,
            num_preemptions=0,
            num_generation_tokens=250,
            queued_time=3.961800007346028e-05,
            prefill_time=0.02261175400008142,
            inference_time=3.7649819,
            decode_time=3.7423701,
            num_cached_tokens=512,
        )
        for number in range(finished)
    ]
    prompt = SimpleNamespace(computed=64, local_cache_hit=0, external_kv_transfer=0, cached_tokens=0, total=64)
    iteration_stats = SimpleNamespace(
        iteration_timestamp=time.time(),
        num_generation_tokens=64,
        prompt_token_stats=prompt,
        finished_requests=requests,
    )
    details = SimpleNamespace(num_ctx_tokens=64, num_generation_tokens=64, elapsed_ms=12.5)
    return SimpleNamespace(num_running_reqs=64, iteration_details=details), iteration_stats


def report(name: str, values: list[float], unit: str, **about: object) -> None:
    spread = {"value": statistics.median(values), "min": min(values), "max": max(values)}
    rounded = {key: float(f"{value:.4g}") for key, value in spread.items()}
    print(json.dumps({"name": name, **rounded, "unit": unit, "rounds": len(values), **about}, ensure_ascii=False))


if __name__ == "__main__":
    main()
