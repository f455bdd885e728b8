"""Twin GPUs, one for each Dynamo worker: a meter whose power follows the requests that its worker has in hand.

A power collector as a third party's package brings it; `tests.real.dynamo` installs it beside the daemon.
"""

import re
import urllib.request
from collections.abc import Sequence
from typing import ClassVar, Literal

from jouled.api import Clock, PowerSettings, Reading
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading

IDLE_WATTS, BUSY_WATTS, REQUEST_WATTS = 90.0, 160.0, 25.0
_IN_HAND = re.compile(
    rb'^dynamo_component_inflight_requests\{[^}]*dynamo_endpoint="generate"[^}]*\} (\d+)', re.MULTILINE
)


class WorkerGpuSettings(PowerSettings, kw_only=True):
    """urls: of the workers' metrics pages; the first one's GPU is `gpu0`."""

    urls: list[str]


class WorkerGpuCollector:
    """Reads all workers at once, ten times a second."""

    name: ClassVar[str] = "worker_gpus"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = WorkerGpuSettings

    def open(self, settings: PowerSettings, clock: Clock) -> "WorkerGpus":
        assert isinstance(settings, WorkerGpuSettings)
        return WorkerGpus(settings.urls, clock)


class WorkerGpus:
    """Counters of microjoules that grow by what the power at the last read makes of the time since."""

    interval_seconds = 0.1

    def __init__(self, urls: Sequence[str], clock: Clock) -> None:
        self._urls = urls
        self._clock = clock
        self._last_ns = 0
        self._microjoules = [5_000_000.0] * len(urls)
        self._watts = [IDLE_WATTS] * len(urls)
        self.devices = [
            Device(
                name=f"gpu{index}",
                kind=DeviceKind.GPU,
                source="worker_gpus",
                uuid=f"GPU-{index}",
                idle_watts=IDLE_WATTS,
                max_watts=2000.0,
            )
            for index in range(len(urls))
        ]

    def read(self) -> list[Reading]:
        in_hand = [_requests_in_hand(url) for url in self._urls]
        now_ns = self._clock.now_ns()
        seconds = (now_ns - self._last_ns) / 1e9 if self._last_ns else 0.0
        self._last_ns = now_ns
        for index, requests in enumerate(in_hand):
            self._microjoules[index] += 1e6 * self._watts[index] * seconds
            self._watts[index] = IDLE_WATTS + (BUSY_WATTS + REQUEST_WATTS * requests if requests else 0.0)
        return [
            EnergyReading(device.name, now_ns, round(microjoules))
            for device, microjoules in zip(self.devices, self._microjoules, strict=True)
        ]

    def close(self) -> None:
        pass


def _requests_in_hand(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            page = answer.read()
    except OSError as error:
        raise SourceError(SourceState.DOWN, "worker_down", f"{url} does not answer: {error}") from error
    return sum(int(count) for count in _IN_HAND.findall(page))
