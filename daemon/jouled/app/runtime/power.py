"""The power sources of the node, each under its supervisor."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from jouled.api import PowerCollector, PowerSettings
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.children import ChildSupervisor
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.gate import Gate
from jouled.app.runtime.plugins import POWER
from jouled.app.runtime.threads import ThreadSupervisor

Deliver = Callable[[Batch], None]


class Supervisor(Protocol):
    """What keeps one source sampled."""

    name: str

    async def run(self) -> None:
        """Sample until cancelled."""
        ...

    async def release(self, seconds: float) -> bool:
        """Let go of the device for a while. False: this source holds none."""
        ...


class PowerSources:
    """All sampled sources. `configured`: by the operator, with settings; `found`: none were, these may be here."""

    def __init__(
        self,
        collectors: Mapping[str, PowerCollector],
        configured: Mapping[str, PowerSettings],
        found: Mapping[str, PowerSettings],
        clock: BootClock,
        deliver: Deliver,
    ) -> None:
        self.required = frozenset(name for name, settings in configured.items() if settings.startup == "require")
        self._collectors = collectors
        self._clock = clock
        self._gate = Gate(found, deliver, self._dismiss, clock.now_ns())
        self._supervisors: dict[str, Supervisor] = {
            name: _supervisor(collectors[name], settings, clock, self._gate.take if name in found else deliver)
            for name, settings in {**found, **configured}.items()
        }
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, group: asyncio.TaskGroup) -> None:
        """Begin to sample."""
        for name, supervisor in self._supervisors.items():
            self._tasks[name] = group.create_task(supervisor.run(), name=f"power {name}")

    def stop(self) -> None:
        """Begin to end all samplers; the task group waits for them."""
        for task in self._tasks.values():
            task.cancel()

    def look(self) -> None:
        """Decide what of the sources that were not configured is used; to be called every second."""
        self._gate.look(self._clock.now_ns())

    async def release(self, seconds: float) -> list[str]:
        """Let go of every device that is held; names the sources that did."""
        names = [name for name in self._tasks if getattr(self._collectors[name], "holds_devices", True)]
        let_go = await asyncio.gather(*(self._supervisors[name].release(seconds) for name in names))
        return [name for name, released in zip(names, let_go, strict=True) if released]

    def _dismiss(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()


def _supervisor(collector: PowerCollector, settings: PowerSettings, clock: BootClock, deliver: Deliver) -> Supervisor:
    if collector.isolation == "process":
        return ChildSupervisor(POWER, collector, settings, clock, deliver)
    return ThreadSupervisor(collector, settings, clock, deliver)
