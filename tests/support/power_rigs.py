"""One rig for each power source: its fake below the real client library, each fault as it looks there, and its end.

A rig has a meter, `victim`, that faults befall, and mostly others beside it that must not notice. Its clock is the
trial's; the energy of the victim follows it at `watts`.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
from pymodbus.constants import ExcCodes
from tests.support import amdsmi_stub, dcgm_exporter, hlml_stub, mosquitto, nvml_stub, redfish_trees
from tests.support.amdsmi_stub import child as amdsmi_child
from tests.support.hwmon_tree import make_chip, make_meter
from tests.support.ipmi_bmc import IpmiBmc
from tests.support.modbus import ModbusServer
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_meter import Publisher
from tests.support.nvml_stub import child as nvml_child
from tests.support.redfish import PASSWORD, USER, running
from tests.support.snmp_pdu_agent import Agent
from tests.support.snmp_pdu_opening import pdu
from tests.support.tools import free_port, tool

from jouled.api import Clock, PowerCollector, PowerSettings, PowerSource, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled.testing import ManualClock
from jouled_collectors.power import ipmi_meter, ipmi_request, redfish_part, snmp_pdu_part
from jouled_collectors.power.amd import AmdCollector
from jouled_collectors.power.cray import CrayCollector
from jouled_collectors.power.dcgm import DcgmCollector
from jouled_collectors.power.estimate import EstimateCollector
from jouled_collectors.power.gaudi import GaudiCollector
from jouled_collectors.power.hwmon import HwmonCollector
from jouled_collectors.power.ipmi import IpmiCollector
from jouled_collectors.power.modbus import ModbusCollector
from jouled_collectors.power.mqtt_meter import MqttMeterCollector
from jouled_collectors.power.nvml import NvmlCollector
from jouled_collectors.power.rapl import RaplCollector
from jouled_collectors.power.redfish import RedfishCollector
from jouled_collectors.power.snmp_pdu import SnmpPduCollector

FAULTS = (
    "absent",
    "denied",
    "garbage",
    "frozen",
    "sentinel",
    "wrapping",
    "reset",
    "jumping",
    "overflowing",
    "hanging",
    "flapping",
)
OF_THE_COUNT = frozenset({"frozen", "wrapping", "reset", "jumping", "overflowing"})
"""Faults of the number that a meter shows; all others are of how it is reached or what it says in its place."""

OVERFLOWING_UJ = 3 * 2**62
"""More than the books hold (63 bits), and no pattern that stands for something."""

HEARD_SECONDS = 5.0


class Count:
    """What a meter counts: it follows the clock at constant power. Faults move it."""

    def __init__(self, clock: ManualClock, watts: int, unit_uj: int, range_counts: int | None = None) -> None:
        self.watts = watts
        self.unit_uj = unit_uj
        self.range_counts = range_counts
        self._clock = clock
        self._held_uj: int | None = None
        self.begin()

    def begin(self) -> None:
        """Some hours after the meter was switched on."""
        self._held_uj = None
        self._zero_ns = self._clock.time_ns - 20_000_000_000_000
        if self.range_counts is not None:
            self._zero_ns = self._clock.time_ns - self._range_ns // 4

    @property
    def counts(self) -> int:
        """What it shows now."""
        held = self._held_uj
        counts = ((self._clock.time_ns - self._zero_ns) * self.watts // 1_000 if held is None else held) // self.unit_uj
        return counts % self.range_counts if self.range_counts is not None else counts

    @property
    def microjoules(self) -> int:
        """The same as a reading tells it."""
        return self.counts * self.unit_uj

    def freeze(self) -> None:
        """Show the same until `thaw`."""
        self._held_uj = self.microjoules

    def overflow(self) -> None:
        """Show what no counter has until `thaw`."""
        self._held_uj = OVERFLOWING_UJ

    def thaw(self) -> None:
        """Go on where it would have been."""
        self._held_uj = None

    def reset(self) -> None:
        """Start over, a second ago."""
        self._zero_ns = self._clock.time_ns - 1_000_000_000

    def jump(self, joules: int) -> None:
        """Show so much more from now on."""
        self._zero_ns -= joules * 1_000_000_000 // self.watts

    def end_in(self, seconds: float) -> None:
        """Be so near the end of its range."""
        self._zero_ns = self._clock.time_ns - self._range_ns + round(seconds * 1e9)

    @property
    def _range_ns(self) -> int:
        assert self.range_counts is not None
        return self.range_counts * self.unit_uj * 1_000 // self.watts


class Rig:
    """What all rigs have.

    part: which part of the source tells of the victim's faults. from_the_start: faults that are there when the source
    is opened; all others come under way. strides: by fault, the seconds that pass before each read beyond the trial's
    one; good_reads: how often it is read while all is well; bad_reads: by fault, how often meanwhile; patience_seconds:
    how long a source may leave alone what has failed. jump_joules: what no such device uses in a second. shown: what
    the victim showed at the last tick. source: what is open.
    """

    name: ClassVar[str]
    collector_type: ClassVar[type[PowerCollector]]
    victim: ClassVar[str]
    part: ClassVar[str] = ""
    watts: ClassVar[int] = 400
    unit_uj: ClassVar[int] = 1_000
    range_counts: ClassVar[int | None] = None
    from_the_start: ClassVar[frozenset[str]] = frozenset({"absent", "denied"})
    strides: ClassVar[Mapping[str, float]] = {}
    good_reads: ClassVar[int] = 2
    bad_reads: ClassVar[Mapping[str, int]] = {}
    patience_seconds: ClassVar[float] = 31.0
    jump_joules: ClassVar[int] = 10_000_000

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.count = Count(self.clock, self.watts, self.unit_uj, self.range_counts)
        self.fault = ""
        self.stack = ExitStack()
        self.patch = pytest.MonkeyPatch()
        self.stack.callback(self.patch.undo)
        self.source: Any = None
        self.shown = 0.0
        with ExitStack() as undo:
            undo.callback(self.close)
            self.settings = self.convert(self.start())
            undo.pop_all()
        self.good_settings = self.settings

    def collector(self) -> PowerCollector:
        """A new one, without memory."""
        return self.collector_type()

    def convert(self, table: Mapping[str, object]) -> PowerSettings:
        """The settings of `[power.NAME]`."""
        return msgspec.convert(table, self.collector_type.settings_type)

    def begin(self, fault: str) -> None:
        """All is well, but for what is to happen."""
        self.mend()
        self.count.begin()
        if fault == "wrapping":
            self.count.end_in(2.5)

    def before_open(self) -> None:
        """A source is about to be opened."""

    def cause(self, fault: str) -> None:
        """Let it happen."""
        self.fault = fault
        match fault:
            case "frozen":
                self.count.freeze()
            case "reset":
                self.count.reset()
            case "jumping":
                self.count.jump(self.jump_joules)
            case "overflowing":
                self.count.overflow()
        self.spoil(fault)

    def mend(self) -> None:
        """All is well again; a meter that was reset, or jumped, goes on from there."""
        self.fault = ""
        self.count.thaw()
        self.settings = self.good_settings
        self.repair()

    def tick(self) -> None:
        """Let the meters go on."""
        if not self.fault or self.fault in OF_THE_COUNT:
            self.show()
        self.show_others()
        self.shown = self.value

    def close(self) -> None:
        """End everything."""
        self.stack.close()

    @property
    def value(self) -> float:
        """What a reading of the victim tells now, if it is passed on as it is."""
        return self.count.microjoules

    def start(self) -> Mapping[str, object]:
        """Start the fake; returns the table that reaches it."""
        raise NotImplementedError

    def show(self) -> None:
        """Let the victim show its count."""

    def show_others(self) -> None:
        """Let the others go on."""

    def spoil(self, fault: str) -> None:
        """What is particular in this fault."""

    def repair(self) -> None:
        """Undo `spoil`."""


class Remote:
    """A collector in a child process, on the trial's clock; what the daemon's sampler does for vendor libraries."""

    def __init__(self, child: Any, collector: PowerCollector) -> None:
        self.name, self.isolation, self.settings_type = collector.name, collector.isolation, collector.settings_type
        self._child = child

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        self._child.follow(clock)
        return RemoteSource(self._child, self._child.open(**msgspec.to_builtins(settings)), clock)


class RemoteSource:
    """Its source. It has parts where the one in the child has some."""

    def __init__(self, child: Any, devices: Sequence[Device], clock: Clock) -> None:
        self.devices = devices
        self.interval_seconds = 1.0
        self._child = child
        self._clock = clock
        if hasattr(child, "parts"):
            self.parts: Mapping[str, SourceError | None] = {}

    def read(self) -> list[Reading]:
        self._child.follow(self._clock)
        try:
            readings = self._child.read()
        finally:
            if hasattr(self._child, "parts"):
                self.parts = self._child.parts()
        if hasattr(self._child, "devices_now"):
            self.devices = tuple(self._child.devices_now().values())
        return readings

    def close(self) -> None:
        self._child.close()


class Following:
    """A child of the stubs' kind, whose clock can be set to another's."""

    def __init__(self, child: Any) -> None:
        self._child = child

    def __getattr__(self, name: str) -> Any:
        return getattr(self._child, name)

    def follow(self, clock: Clock) -> None:
        self._child.advance((clock.now_ns() - self._child._now_ns) / 1e9)


class RemoteRig(Rig):
    """A vendor library in a child process, one for the life of the rig."""

    child: Any

    def collector(self) -> PowerCollector:
        return Remote(self.child, self.collector_type())


class NvmlRig(RemoteRig):
    """Two GPUs by a stub of NVML."""

    name, collector_type, victim, part = "nvml", NvmlCollector, "gpu0", "gpu0"
    strides: ClassVar = {"frozen": 16.0}
    bad_reads: ClassVar = {"frozen": 3}
    NOT_FOUND, NO_PERMISSION, LOST, UNKNOWN = 12, 4, 15, 999

    def start(self) -> Mapping[str, object]:
        library = nvml_stub.build(self.folder / "lib")
        self.controls = nvml_stub.Controls(self.folder / "controls")
        self.child = Following(self.stack.enter_context(nvml_child.start(library, self.controls)))
        return {}

    def show(self) -> None:
        self.controls.set("gpu0.millijoules", self.count.counts)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.controls.set("init.code", self.NOT_FOUND)
            case "denied":
                self.controls.set("init.code", self.NO_PERMISSION)
            case "garbage":
                self.controls.set("gpu0.all.code", self.UNKNOWN)
            case "sentinel":
                self.controls.set("gpu0.millijoules", 2**64 - 1)
            case "flapping":
                self.controls.set("gpu0.all.code", self.LOST)

    def repair(self) -> None:
        self.controls.clear_all()


class AmdRig(RemoteRig):
    """Two GPUs by a stub of AMD SMI. The trial of the counter when it is opened is on the stub's own integral."""

    name, collector_type, victim, part = "amd", AmdCollector, "amdgpu0", "amdgpu0"
    unit_uj = 1_000_000
    strides: ClassVar = dict.fromkeys(("frozen", "garbage", "sentinel", "overflowing", "flapping"), 6.0)
    bad_reads: ClassVar = {"frozen": 3}
    NO_PERMISSION, UNEXPECTED_DATA, FILE_ERROR = 10, 43, 6

    def start(self) -> Mapping[str, object]:
        self.controls = amdsmi_stub.Controls(self.folder)
        rocm = amdsmi_stub.build(self.folder / "rocm")
        self.child = Following(self.stack.enter_context(amdsmi_child.start(rocm, self.controls)))
        return {"sysfs_root": str(self.controls.sysfs)}

    def before_open(self) -> None:
        self.controls.clear("gpu0.ticks")

    def show(self) -> None:
        self.controls.set("gpu0.ticks", self.count.counts << 16)  # 2^-16 J each

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.controls.set("count", 0)
            case "denied":
                self.controls.set("init.code", self.NO_PERMISSION)
            case "garbage":
                self.controls.set("gpu0.all.code", self.UNEXPECTED_DATA)
            case "frozen":
                self.controls.set("gpu0.stamp", 1)
            case "sentinel":
                self.controls.set("gpu0.ticks", 2**64 - 1)
            case "flapping":
                self.controls.set("gpu0.all.code", self.FILE_ERROR)

    def repair(self) -> None:
        self.controls.clear_all()


class GaudiChild:
    """The driver of the HLML stub, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._now_ns = 1_000_000_000_000

    def follow(self, clock: Clock) -> None:
        now_ns = clock.now_ns()
        self._ask(do="advance", ns=now_ns - self._now_ns)
        self._now_ns = now_ns

    def open(self, **settings: Any) -> list[Device]:
        return msgspec.convert(self._ask(do="open", settings=settings), list[Device])

    def read(self) -> list[EnergyReading | PowerReading | DeviceStatus]:
        return msgspec.convert(self._ask(do="read"), list[EnergyReading | PowerReading | DeviceStatus])

    def parts(self) -> dict[str, SourceError | None]:
        told = self._ask(do="parts")
        return {name: error and self._error(error) for name, error in told.items()}

    def close(self) -> None:
        self._ask(do="close")

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise self._error(answer["error"])
        return answer

    @staticmethod
    def _error(told: dict[str, Any]) -> SourceError:
        return SourceError(SourceState(told["state"]), told["reason"], told["message"], fatal=told["fatal"])


class GaudiRig(RemoteRig):
    """Two cards by a stub of HLML, whose one fixed path is put over /usr/lib; that needs root."""

    name, collector_type, victim = "gaudi", GaudiCollector, "gaudi1"
    part = "gaudi1"
    LOST, UNKNOWN = 15, 49

    def start(self) -> Mapping[str, object]:
        folder = hlml_stub.build(self.folder / "lib")
        if not hlml_stub.is_possible(folder):
            pytest.skip("pyhlml loads one fixed path: needs root and overlayfs to put the stub there")
        self.controls = nvml_stub.Controls(self.folder / "controls")
        driver = Path(hlml_stub.__file__).with_name("driver.py")
        process = subprocess.Popen(
            [*hlml_stub.over_usr_lib(folder), sys.executable, driver],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HLML_STUB_DIR": str(self.controls.folder)},
        )
        self.stack.enter_context(process)
        assert process.stdin is not None
        self.stack.callback(process.stdin.close)
        self.child = GaudiChild(process)
        return {}

    def show(self) -> None:
        self.controls.set("card0.millijoules", self.count.counts)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.controls.set("count", 0)
            case "garbage":
                self.controls.set("card0.all.code", self.UNKNOWN)
            case "sentinel":
                self.controls.set("card0.millijoules", 2**64 - 1)
            case "flapping":
                self.controls.set("card0.all.code", self.LOST)

    def repair(self) -> None:
        self.controls.clear_all()


class DcgmRig(Rig):
    """The page of an exporter with two GPUs."""

    name, collector_type, victim, part = "dcgm", DcgmCollector, "dcgm-gpu0", "gpu0"
    watts = 612
    strides: ClassVar = {"frozen": 100.0}
    bad_reads: ClassVar = {"frozen": 3, "sentinel": 4, "overflowing": 4}
    patience_seconds = 1.0
    ENERGY, POWER, OTHER_ENERGY = b"455287014021", b"612.482000", b"131858316007"

    def start(self) -> Mapping[str, object]:
        self._mine, self._other = self.ENERGY, 131_858_316_007
        self._power = self.POWER
        self.exporter = self.stack.enter_context(dcgm_exporter.serve())
        return {"url": self.exporter.url, "timeout_seconds": 0.4}

    def show(self) -> None:
        self._mine = str(self.count.counts).encode()

    def show_others(self) -> None:
        self._other += 71_000
        if self.fault != "garbage":
            body = dcgm_exporter.H100.replace(self.ENERGY, self._mine).replace(self.POWER, self._power)
            self.exporter.body = body.replace(self.OTHER_ENERGY, str(self._other).encode())

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.settings = self.convert({"url": f"http://127.0.0.1:{free_port()}/metrics"})
            case "denied":
                self.exporter.status = 401
            case "garbage":
                self.exporter.body = b"<html>\xff\x00 DCGM_FI_"
            case "sentinel":
                self._mine, self._power = b"9223372036854775794", b"140737488355328.000000"
            case "hanging":
                self.exporter.delay_seconds = 0.7
            case "flapping":
                self.exporter.status = 503

    def repair(self) -> None:
        self._power = self.POWER
        self.exporter.status, self.exporter.delay_seconds = 200, 0.0


class SysfsRig(Rig):
    """Files under a /sys of its own. `broken`: what the kernel answers in place of a file's content."""

    file: Path

    def start(self) -> Mapping[str, object]:
        self.root = self.folder / "sys"
        self.broken: dict[str, int] = {}
        real_open, real_pread = os.open, os.pread

        def opened(path: Any, *arguments: Any, **keys: Any) -> int:
            self._fail(str(path))
            return real_open(path, *arguments, **keys)

        def pread(descriptor: int, *arguments: int) -> bytes:
            if self.broken:
                self._fail(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            return real_pread(descriptor, *arguments)

        self.patch.setattr(os, "open", opened)
        self.patch.setattr(os, "pread", pread)
        self.lay_out()
        return {"sysfs_root": str(self.root)}

    def lay_out(self) -> None:
        """Make the files; `file` is the victim's."""
        raise NotImplementedError

    def write(self, content: object) -> None:
        self.file.write_text(f"{content}\n")

    def show(self) -> None:
        self.write(self.count.counts)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                empty = self.folder / "empty"
                empty.mkdir(exist_ok=True)
                self.settings = self.convert({"sysfs_root": str(empty)})
            case "denied":
                self.broken[str(self.file.resolve())] = errno.EACCES
            case "garbage":
                self.write("\x00 none")
            case "sentinel":
                self.write(0xFFFF_FFFF_FFFF_FFFF)
            case "flapping":
                self.broken[str(self.file.resolve())] = errno.ENODEV

    def repair(self) -> None:
        self.broken.clear()

    def _fail(self, path: str) -> None:
        code = self.broken.get(os.path.realpath(path)) if self.broken else None
        if code is not None:
            raise OSError(code, os.strerror(code), path)


class RaplRig(SysfsRig):
    """A package and its memory by powercap."""

    name, collector_type, victim, part = "rapl", RaplCollector, "cpu0", "cpu0"
    unit_uj, range_counts, jump_joules = 1, 262_143_328_850, 150_000

    def lay_out(self) -> None:
        for zone, name in (("", "package-0"), ("intel-rapl:0:0", "dram")):
            folder = self.root / "class" / "powercap" / "intel-rapl:0" / zone
            folder.mkdir(parents=True)
            for file, value in {"name": name, "max_energy_range_uj": self.range_counts, "energy_uj": 7}.items():
                (folder / file).write_text(f"{value}\n")
        self.file = self.root / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
        self.show()


class HwmonRig(SysfsRig):
    """Two sockets of amd_energy, counters of 64 bits, and the node's ACPI meter."""

    name, collector_type, victim, part = "hwmon", HwmonCollector, "amd_energy0", "amd_energy0"
    unit_uj = 1

    def lay_out(self) -> None:
        sockets = {"energy1_label": "Esocket0", "energy1_input": 1, "energy2_label": "Esocket1", "energy2_input": 2}
        self.file = make_chip(self.root, 0, "amd_energy", **sockets) / "energy1_input"
        make_meter(self.root, 1, "", 512_500_000)
        self.show()


class CrayRig(SysfsRig):
    """A node and its CPU by the counters of its controller."""

    name, collector_type, victim, part = "cray", CrayCollector, "cray_node", "cray_node"
    watts, unit_uj = 800, 1_000_000
    strides: ClassVar = {"frozen": 6.0}

    def lay_out(self) -> None:
        folder = self.root / "cray" / "pm_counters"
        folder.mkdir(parents=True)
        (folder / "cpu_energy").write_text("1000 J 1700000000000000 us\n")
        self._freshness = folder / "freshness"
        self._scans = 0
        self.file = folder / "energy"
        self.show()
        self.show_others()

    def show(self) -> None:
        self.write(f"{self.count.counts} J 1700000000000000 us")

    def show_others(self) -> None:
        if self.fault != "frozen":
            self._scans += 1
            self._freshness.write_text(f"{self._scans}\n")


class EstimateRig(Rig):
    """CPU times as the kernel would count them, of a machine at rest."""

    name, collector_type, victim = "estimate", EstimateCollector, "cpu_estimate"
    watts = 150
    bad_reads: ClassVar = {"reset": 1, "jumping": 1}

    def start(self) -> Mapping[str, object]:
        self._seconds = dict.fromkeys(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 1e5)
        self._error: Exception | None = None
        self._last_ns = self.clock.time_ns
        self.patch.setattr(psutil, "cpu_times", self._times)
        return {"idle_watts": 50, "max_watts": 150}

    @property
    def value(self) -> float:
        return 50.0

    def show(self) -> None:
        if self.fault != "frozen":
            self._seconds["idle"] += max(1.0, (self.clock.time_ns - self._last_ns) / 1e9)
            self._last_ns = self.clock.time_ns

    def spoil(self, fault: str) -> None:
        match fault:
            case "denied" | "flapping":
                self._error = PermissionError(errno.EACCES, "Permission denied", "/proc/stat")
            case "garbage":
                self._error = ValueError("could not convert string to float: 'x'")
            case "reset":
                self._seconds = dict.fromkeys(self._seconds, 0.0)
            case "jumping":
                self._seconds["user"] += 1e12

    def repair(self) -> None:
        self._error = None

    def _times(self) -> Any:
        if self._error is not None:
            raise self._error
        return SimpleNamespace(**self._seconds)


class IpmiRig(Rig):
    """The real ipmitool and a BMC that speaks RMCP+."""

    name, collector_type, victim = "ipmi", IpmiCollector, "ipmi-node"
    watts = 1_023
    strides: ClassVar = dict.fromkeys(FAULTS, 2.0)
    bad_reads: ClassVar = {"frozen": 6, "garbage": 1, "sentinel": 1, "jumping": 1}
    CLIPPED, MOST = 0x3FF, 65_000

    def start(self) -> Mapping[str, object]:
        tool("ipmitool")
        self.patch.setattr(ipmi_request, "LAN_RETRIES", ("-N", "1", "-R", "1"))
        self.patch.setattr(ipmi_request, "DEVICE_PATHS", (str(self.folder / "no-device"),))
        self.patch.setattr(ipmi_meter, "TIME_LIMIT_SECONDS", 3.0)
        self.bmc = IpmiBmc(self.folder)
        self.stack.callback(self.bmc.kill)
        self._watts = 812
        return self.bmc.settings(cipher_suite=3, max_watts=3_000.0)

    @property
    def value(self) -> float:
        return float(self._watts)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.settings = self.convert({})
            case "denied":
                wrong = self.folder / "wrong"
                wrong.write_text("not the password\n")
                self.settings = self.convert(self.bmc.settings(cipher_suite=3, password_file=str(wrong)))
            case "garbage":
                self.bmc.answer(group=0)
            case "frozen":
                self._watts = self.CLIPPED
                self.bmc.answer(watts=self._watts)
            case "sentinel":
                self.bmc.answer(watts=0xFFFF)
            case "jumping":
                self._watts = self.MOST
                self.bmc.answer(watts=self._watts)
            case "hanging":
                self.bmc.hang()
            case "flapping":
                self.bmc.answer(code=0xC0)

    def repair(self) -> None:
        self._watts = 812
        self.bmc.answer(watts=self._watts)
        self.bmc._process.send_signal(signal.SIGCONT)


class RedfishRig(Rig):
    """Two BMCs: one counts the node's joules, the other one tells watts."""

    name, collector_type, victim, part = "redfish", RedfishCollector, "bmc1-node", "bmc1"
    watts, unit_uj, patience_seconds = 5_120, 1_000_000, 400.0
    METRICS = "/redfish/v1/Chassis/1/EnvironmentMetrics"

    def start(self) -> Mapping[str, object]:
        self.patch.setattr(redfish_part, "PHASE_SECONDS", 0.0)
        self._told: Any = None
        tree = redfish_trees.supermicro()
        tree[self.METRICS] = self._metrics
        self.bmc = self.stack.enter_context(running(tree, None))
        self._other = self.stack.enter_context(running(redfish_trees.dell(), None))
        self._password = self.folder / "password"
        self._password.write_text(f"{PASSWORD}\n")
        return self._table(self.bmc.url)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.settings = self.convert(self._table(f"http://127.0.0.1:{free_port()}"))
            case "denied":
                self.bmc.login_status = 401
            case "garbage":
                self._told = b"<html>\xff\x00"
            case "sentinel":
                self._told = {"EnergyJoules": {"Reading": 0xFFFF_FFFF}}
            case "hanging":
                self.bmc.hangs = True
            case "flapping":
                self.bmc.statuses[self.METRICS] = 503

    def repair(self) -> None:
        self._told, self.bmc.login_status, self.bmc.hangs = None, 201, False
        self.bmc.statuses.clear()

    def _metrics(self) -> Any:
        from aiohttp import web

        told = self._told or {"EnergyJoules": {"Reading": self._joules}}
        return web.Response(body=told) if isinstance(told, bytes) else told

    def show(self) -> None:
        self._joules = self.count.counts

    def _table(self, url: str) -> Mapping[str, object]:
        self.show()
        login = {"user": USER, "password_file": str(self._password), "insecure": True, "timeout_seconds": 1.0}
        names = {"bmc1": url, "bmc2": self._other.url}
        return {"bmcs": [{"name": name, "url": each, **login} for name, each in names.items()]}


class SnmpPduRig(Rig):
    """Two PDUs: an outlet of one counts, by a profile with a range; an outlet of the other tells watts."""

    name, collector_type, victim, part = "snmp_pdu", SnmpPduCollector, "a-outlet-1", "a"
    watts, unit_uj, range_counts, patience_seconds = 36_000, 100_000_000, 9_999_001, 70.0
    good_reads = 3
    OID = "1.3.6.1.4.1.99999.1.1.2"
    OTHER = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7.1"

    def start(self) -> Mapping[str, object]:
        self.patch.setattr(snmp_pdu_part, "LONGEST_PHASE_SECONDS", 0.0)
        profiles = self.folder / "profiles"
        profiles.mkdir()
        (profiles / "rig.toml").write_text(
            'name = "rig"\nvendor = "Rig"\nsource = "none"\nmatch = ["1.3.6.1.4.1.99999"]\n'
            f'[outlets.power]\noid = "{self.OID}.{{index}}.9"\n'
            f'[outlets.energy]\noid = "{self.OID}.{{index}}"\njoules = 100\nwraps_at = {self.range_counts}\n'
        )
        self.agent = Agent({f"{self.OID}.1": lambda: self._told}, object_id="1.3.6.1.4.1.99999.7")
        self.stack.callback(self.agent.close)
        self._other = Agent({self.OTHER: 455})
        self.stack.callback(self._other.close)
        self._told: Any = self.count.counts
        return self._table(self.agent.port)

    def show(self) -> None:
        self._told = 2**64 - 2 if self.fault == "overflowing" else self.count.counts

    def show_others(self) -> None:
        """A read does not wait for a PDU that failed before: its answer comes with the next one."""
        deadline = time.monotonic() + HEARD_SECONDS
        while self.source is not None and not all(visit.done() for visit in [*self.source._visits.values()]):
            assert time.monotonic() < deadline, "a visit does not end"
            time.sleep(0.002)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.settings = self.convert(self._table(free_port()))
            case "denied":
                self.agent.statuses[f"{self.OID}.1"] = 16  # authorizationError
            case "garbage":
                self._told = "none"
            case "sentinel":
                self._told = 0xFFFF_FFFF
            case "hanging":
                self.agent.is_silent = True
            case "flapping":
                self._told = None

    def repair(self) -> None:
        self.agent.is_silent = False
        self.agent.statuses.clear()
        self.show()

    def _table(self, port: int) -> Mapping[str, object]:
        return {
            "pdus": [
                pdu(self.folder, port, outlets=[1], timeout_seconds=0.3),
                pdu(self.folder, self._other.port, "b", outlets=[1], timeout_seconds=2.0),
            ],
            "profiles_directory": str(self.folder / "profiles"),
            "interval_seconds": 1.0,
        }


class MqttMeterRig(Rig):
    """The real broker, a Shelly that counts and a meter that tells watts."""

    name, collector_type, victim, part = "mqtt_meter", MqttMeterCollector, "plug-a", "plug-a"
    watts, unit_uj, patience_seconds = 720, 3_600_000, 1.0
    strides: ClassVar = dict.fromkeys(("garbage", "sentinel", "overflowing", "hanging"), 200.0)
    bad_reads: ClassVar = {"reset": 3}
    TOPIC, OTHER_TOPIC, WILL = "shelly-1/status/switch:0", "meters/1", "shelly-1/online"

    def start(self) -> Mapping[str, object]:
        self._spoiled: object = None
        self._broker = Mosquitto(self.folder / "broker")
        self.stack.callback(self._broker.kill)
        self._publisher = Publisher(self._broker.port)
        self.stack.callback(self._publisher.close)
        return self._table(self._broker.port)

    def show(self) -> None:
        self._say(self.TOPIC, {"apower": self.watts, "aenergy": {"total": self.count.counts / 1_000}})

    def show_others(self) -> None:
        self._say(self.OTHER_TOPIC, {"p": 900})
        if self._spoiled is not None:
            self._say(self.TOPIC, self._spoiled)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.settings = self.convert(self._table(free_port()))
            case "denied":
                self.settings = self.convert(self._table(self._locked_port(), **self._wrong_login()))
            case "garbage":
                self._spoiled = b'{"apower": \xff'
            case "sentinel":
                self._spoiled = {"apower": 65535, "aenergy": {"total": 65535}}
            case "flapping":
                self._say(self.WILL, b"false")

    def repair(self) -> None:
        self._spoiled = None

    def _say(self, topic: str, payload: object) -> None:
        """Publish, and wait until the source has heard it: the broker's word is not enough."""
        before = self._heard()
        self._publisher.say(topic, payload)
        deadline = time.monotonic() + HEARD_SECONDS
        while self._heard() == before and self.source is not None:
            assert time.monotonic() < deadline, f"not heard: {topic} {payload!r}"
            time.sleep(0.001)

    def _heard(self) -> object:
        meters = self.source._meters if self.source is not None else []
        return [(each._heard_ns, each.faults.total(), each._is_gone) for each in meters]

    def _locked_port(self) -> int:
        directory = self.folder / "locked"
        directory.mkdir(exist_ok=True)
        broker = Mosquitto(directory, "allow_anonymous false", mosquitto.passwords(directory, jouled="right"))
        self.stack.callback(broker.kill)
        return broker.port

    def _wrong_login(self) -> dict[str, object]:
        file = self.folder / "wrong"
        file.write_text("wrong\n")
        return {"user": "jouled", "password_file": str(file)}

    def _table(self, port: int, **login: object) -> Mapping[str, object]:
        meters = [
            {"name": "plug-a", "kind": "shelly", "topic": self.TOPIC},
            {"name": "main", "kind": "json", "topic": self.OTHER_TOPIC, "power_path": "p", "role": "feed"},
        ]
        return {"host": "127.0.0.1", "port": port, "meters": meters, **login}


class ModbusRig(Rig):
    """Two meters behind one gateway: one counts joules in 32 bits, the other one tells watts."""

    name, collector_type, victim, part = "modbus", ModbusCollector, "main", "main"
    watts, unit_uj, range_counts, patience_seconds = 800, 1_000_000, 2**32, 61.0
    from_the_start = Rig.from_the_start | {"garbage"}

    def start(self) -> Mapping[str, object]:
        self.server = ModbusServer(1, 2)
        self.stack.callback(self.server.stop)
        self.server.set(2, 100, "float32", 55.0)
        return self._table(self.server.port)

    def show(self) -> None:
        self.server.set(1, 200, "uint32", self.count.counts)

    def spoil(self, fault: str) -> None:
        match fault:
            case "absent":
                self.settings = self.convert(self._table(free_port()))
            case "denied":
                missing = str(self.folder / "no-such-file")
                self.settings = self.convert({**self._table(self.server.port), "profiles_file": missing})
            case "garbage":
                url = self.stack.enter_context(dcgm_exporter.speak([b"\xff" * 64], stays=True))
                self.settings = self.convert(self._table(urlsplit(url).port))
            case "sentinel":
                self.server.set(1, 200, "uint32", 0xFFFF_FFFF)
            case "hanging":
                self.server.delay_seconds[1] = 0.6
            case "flapping":
                self.server.refuse[1] = ExcCodes.GATEWAY_NO_RESPONSE

    def repair(self) -> None:
        self.server.refuse.clear()
        self.server.delay_seconds.clear()

    def _table(self, port: int) -> Mapping[str, object]:
        counter = {"address": 200, "type": "uint32", "unit": "J"}
        gauge = {"address": 100, "type": "float32", "unit": "W"}
        meters = [
            {"name": "main", "host": "127.0.0.1", "port": port, "unit": 1, "energy": counter},
            {"name": "aux", "host": "127.0.0.1", "port": self.server.port, "unit": 2, "power": gauge},
        ]
        return {"meters": meters, "timeout_seconds": 0.4}


RIGS: Mapping[str, type[Rig]] = {
    rig.name: rig
    for rig in (
        NvmlRig,
        DcgmRig,
        AmdRig,
        GaudiRig,
        RaplRig,
        HwmonRig,
        CrayRig,
        EstimateRig,
        IpmiRig,
        RedfishRig,
        SnmpPduRig,
        MqttMeterRig,
        ModbusRig,
    )
}
