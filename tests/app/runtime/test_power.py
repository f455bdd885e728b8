"""All sources together: who is made to let go of a device."""

import asyncio

from tests.app.runtime.fakes import FakeCollector

from jouled.api import PowerSettings
from jouled.app.runtime import power
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.power import PowerSources


class Supervisor:
    """Says yes to everything."""

    def __init__(self, collector) -> None:
        self.name = collector.name
        self.released = 0.0

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def release(self, seconds: float) -> bool:
        self.released = seconds
        return True


async def test_a_process_without_a_device_goes_on_while_others_let_go(monkeypatch) -> None:
    class Gpu(FakeCollector):
        name = "gpu"

    class Network(FakeCollector):
        name = "network"
        holds_devices = False

    made = {}

    def supervisor(collector, *_):
        made[collector.name] = Supervisor(collector)
        return made[collector.name]

    monkeypatch.setattr(power, "_supervisor", supervisor)
    collectors = {"gpu": Gpu(), "network": Network()}
    configured = dict.fromkeys(collectors, PowerSettings())
    sources = PowerSources(collectors, configured, {}, BootClock.equal_to_wall_now(), lambda _: None)
    async with asyncio.TaskGroup() as group:
        sources.start(group)
        assert await sources.release(7.0) == ["gpu"]
        sources.stop()
    assert (made["gpu"].released, made["network"].released) == (7.0, 0.0)
