"""Complaints that no other test is about; tests/complaints/table.py says which."""

import ast
import asyncio
import threading
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from tests.app.runtime.fakes import FakeSource, InstantStop, ManualClock
from tests.core.scenario import SECOND, START, Node, Result, gpu, owners_uj, request, run, when
from tests.support.tools import REPOSITORY

from jouled.api import Clock, PowerSettings
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.samplers import sample
from jouled.app.runtime.threads import ThreadSupervisor
from jouled.core.pipeline import Input
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading
from jouled.model.snapshot import Snapshot
from jouled.outputs.metrics.exposition import Exposition, Format
from jouled.outputs.metrics.points import packed, unpacked
from jouled_collectors.power.rapl import RaplCollector, RaplSettings

POWER = REPOSITORY / "collectors/jouled_collectors/power"
STARTS_PROCESSES = {"subprocess", "multiprocessing", "pty"}
MAY_START_A_PROCESS = {"ipmi_process.py"}
"""ipmitool asks the BMC where nothing else can; it runs in the sampler's thread, never at a scrape."""

PAGE_ALONE = {"jouled_page_series", "jouled_page_series_dropped"}
"""What the page says of itself."""

TWO = (
    request("a", 3.0, prefill=0.5, decode=5.5, prompt=400, generated=100),
    request("b", 20.0, prefill=0.5, decode=3.5, prompt=400, generated=60),
)


def page(snapshot: Snapshot) -> dict[str, list[dict[str, str]]]:
    """The labels of every series of a page, by name."""
    series: dict[str, list[dict[str, str]]] = {}
    for family in parse(Exposition("1.2.3", dict).page(snapshot, Format.TEXT).body.decode()):
        for each in family.samples:
            series.setdefault(each.name, []).append(each.labels)
    return series


def with_readings(node: Node, *more: Input) -> Result:
    inputs = [*more, *node.inputs()]
    return run([*[i for i in inputs if not when(i)], *sorted([i for i in inputs if when(i)], key=when)])


def test_what_is_rejected_is_counted_by_its_reason() -> None:
    sentinel = EnergyReading("gpu0", START + 10 * SECOND + SECOND // 20, 4_294_967_295_000_000)
    result = with_readings(Node((), seconds=20.0), sentinel)
    assert result.snapshot.counters["source_errors_total"] == {("test", "implausible"): 1}
    labels = page(result.snapshot)["jouled_source_errors_total"]
    assert labels == [{"source": "test", "reason": "implausible"}]


def test_idle_is_a_series_of_its_own() -> None:
    result = run(Node(TWO, seconds=40.0).inputs())
    owners = {labels["owner"] for labels in page(result.snapshot)["jouled_energy_joules_total"]}
    assert {"idle", "prefill", "decode", "resident"} <= owners
    nobody_was_there = 40.0 - 6.0 - 4.0
    assert result.book.idle_uj == pytest.approx(100e6 * nobody_was_there, rel=0.01)


def test_a_virtual_machine_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        RaplCollector().open(RaplSettings(sysfs_root=str(tmp_path)), ManualClock())
    assert caught.value.state is SourceState.ABSENT
    assert "virtual machine" in caught.value.mend
    assert "[power.estimate]" in caught.value.mend


def test_gpu_processor_and_memory_stand_on_one_page() -> None:
    host = {"cpu0": DeviceKind.CPU_PACKAGE, "dram0": DeviceKind.DRAM}
    devices = [Device(name=name, kind=kind, source="rapl", max_watts=400.0) for name, kind in host.items()]
    told = [EnergyReading(name, START + k * SECOND // 10, k * 5_000_000) for k in range(200) for name in host]
    shown = page(with_readings(Node((), seconds=20.0), *devices, *told).snapshot)
    energy = {(labels["device"], labels["kind"]) for labels in shown["jouled_device_energy_joules_total"]}
    assert energy == {("gpu0", "gpu"), ("cpu0", "cpu_package"), ("dram0", "dram")}
    assert {labels["device"] for labels in shown["jouled_device_power_watts"]} == {"gpu0", *host}


def test_the_parts_of_the_host_add_up() -> None:
    """Three engines that share 100 W of host: 10^7 µJ in each cell, which no three parts divide."""
    names = ("e", "f", "g")
    engines = [Engine(name=name, type="vllm", model="tiny-8B", devices=(f"gpu{i}",)) for i, name in enumerate(names)]
    requests = [request(name, 2.0, prefill=0.5, decode=5.5, engine=name) for name in names]
    cpu = Device(name="cpu0", kind=DeviceKind.CPU_PACKAGE, source="rapl", idle_watts=50.0, max_watts=400.0)
    meters = ("cpu0", *(f"gpu{i}" for i in range(3)))
    told = [EnergyReading(name, START + k * SECOND // 10, k * 10_000_000) for k in range(201) for name in meters]
    result = run([cpu, *(gpu(i) for i in range(3)), *engines, *sorted([*told, *requests], key=when)])
    host = result.pipeline.host
    assert host.attributed_uj + host.idle_uj + host.unattributed_uj + host.open_uj == 2000 * 10**6
    assert host.attributed_uj > 500 * 10**6


class Collector:
    """Opens what it is given."""

    name: ClassVar[str] = "given"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = PowerSettings

    def __init__(self, source: FakeSource) -> None:
        self._source = source

    def open(self, settings: PowerSettings, clock: Clock) -> FakeSource:
        return self._source


@pytest.mark.timeout(10)  # the loop itself hangs where the guard is missing
async def test_a_meter_that_hangs_delays_no_scrape() -> None:
    hangs, ends = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        ends.wait(2.0)

    clock = BootClock.equal_to_wall_now()
    supervisor = ThreadSupervisor(Collector(FakeSource(clock, hang)), PowerSettings(), clock, lambda _batch: None)
    sampling = asyncio.create_task(supervisor.run())
    begun = asyncio.get_running_loop().time()
    assert await asyncio.to_thread(hangs.wait, 5.0)
    rendered = await asyncio.to_thread(Exposition("1.2.3", dict).page, Snapshot(), Format.TEXT)
    took_seconds = asyncio.get_running_loop().time() - begun
    ends.set()
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    assert b"jouled_build_info" in rendered.body
    assert took_seconds < 1.0


def imported(path: Path) -> set[str]:
    """The packages that a module imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def test_reading_a_meter_starts_no_process() -> None:
    starting = {path.name for path in POWER.glob("*.py") if imported(path) & STARTS_PROCESSES}
    assert starting <= MAY_START_A_PROCESS


def test_a_source_with_an_interval_of_zero_is_read() -> None:
    clock, batches = ManualClock(), list[Batch]()
    source = FakeSource(clock)
    source.interval_seconds = 0.0
    sample(Collector(source), PowerSettings(), clock, batches.append, InstantStop(clock, 2000))
    assert not [report for batch in batches for report in batch.reports if report.state is not SourceState.OK]
    assert sum(len(batch.readings) for batch in batches) > 1000


def test_what_is_sent_is_all_that_the_page_has() -> None:
    snapshot = run(Node(TWO, seconds=40.0, samples=True).inputs()).snapshot
    of_the_page = {family.name for family in parse(Exposition("1.2.3", dict).page(snapshot, Format.TEXT).body.decode())}
    sent = {family.name for family in unpacked(1, packed(snapshot, "1.2.3", START)).families}
    assert {name.removesuffix("_total") for name in sent} >= {
        name.removesuffix("_total") for name in of_the_page
    } - PAGE_ALONE


def test_requests_have_the_energy_of_the_simulated_load() -> None:
    """100 W of base power and 80 W for each request, of which one at a time is there."""
    result = run(Node(TWO, seconds=40.0).inputs())
    for name, seconds in (("a", 6.0), ("b", 4.0)):
        assert result.receipts[name].joules == pytest.approx(180.0 * seconds, rel=0.01)
    assert owners_uj(result.book) == result.book.measured_uj == Node(TWO).joules_at(START + 40 * SECOND)


def test_a_receipt_says_method_lengths_and_validity() -> None:
    receipt = run(Node(TWO, seconds=40.0).inputs()).receipts["a"]
    assert receipt.method == {"attribution": "channels", "priors": "name", "idle_power": "configured"}
    assert (receipt.prompt_tokens, receipt.generation_tokens) == (400, 100)
    assert receipt.validity == "ok"
    assert receipt.sigma_joules is not None


def test_joules_by_all_tokens_and_by_generated_ones_can_be_told() -> None:
    result = run(Node(TWO, seconds=40.0, samples=True).inputs())
    shown = page(result.snapshot)["jouled_engine_tokens_total"]
    assert {"prompt_computed", "generation"} <= {labels["kind"] for labels in shown}
    tokens = {labels[2]: value for labels, value in result.snapshot.counters["engine_tokens_total"].items()}
    assert (tokens["prompt_computed"], tokens["generation"]) == (800, 160)
    assert gpu().name in {labels["device"] for labels in page(result.snapshot)["jouled_device_energy_joules_total"]}
