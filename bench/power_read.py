"""What the reads of one power source cost: `python -m bench.power_read`, the question on standard input.

A process of its own, as its libraries find their stubs by the environment, and so that all of its CPU time is the
source's: that of threads and of child processes too.
"""

import resource
import sys
import time
from typing import Any

import msgspec
from msgspec import Struct

from jouled.api import PowerCollector, PowerSettings
from jouled.app.config.load import settings_for
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.plugins import load_plugins

WARM_UP_READS = 3


class Question(Struct):
    """The source, the table of its settings, how often to read it and how far apart."""

    source: str
    settings: dict[str, Any]
    reads: int
    pace_seconds: float


class Cost(Struct):
    """What a read took, and the CPU time a second of the threads that work between this read and the next."""

    cpu_seconds: float
    wall_seconds: float
    between: float


class Answer(Struct):
    """What each read cost. devices: how many the last read told of."""

    interval_seconds: float
    devices: int
    costs: list[Cost]


def main() -> None:
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    collector = load_plugins().power[question.source]
    settings = settings_for(collector, question.settings, "bench")
    sys.stdout.buffer.write(msgspec.json.encode(answer(collector, settings, question.reads, question.pace_seconds)))


def answer(collector: PowerCollector, settings: PowerSettings, reads: int, pace_seconds: float) -> Answer:
    """Read the source at this pace; what the first reads cost is left out."""
    source = collector.open(settings, BootClock.equal_to_wall_now())
    costs, told = [], set[str]()
    try:
        for _ in range(reads + WARM_UP_READS):
            wall, cpu = time.perf_counter(), cpu_seconds()
            readings = source.read()
            read_wall, read_cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            told.update(reading.device for reading in readings)
            time.sleep(max(0.0, pace_seconds - read_wall))
            whole_wall, whole_cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            between = (whole_cpu - read_cpu) / (whole_wall - read_wall)
            costs.append(Cost(read_cpu, read_wall, between))
    finally:
        source.close()
    return Answer(source.interval_seconds, len(told), costs[WARM_UP_READS:])


def cpu_seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
