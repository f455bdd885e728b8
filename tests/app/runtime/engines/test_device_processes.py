"""Devices of an engine by the processes that compute on them."""

import os
import subprocess
import sys

from jouled.app.runtime.engines.device_processes import DeviceProcesses, family_of
from jouled.model.device import Device, DeviceKind
from jouled.model.readings import DeviceStatus, EnergyReading


def told(**by_device: tuple[int, ...]) -> list:
    return [DeviceStatus(device=name, t_ns=1, processes=pids) for name, pids in by_device.items()]


def test_an_engine_has_the_devices_on_which_one_of_its_processes_computes() -> None:
    processes = DeviceProcesses()
    processes.note([*told(gpu0=(10, 11), gpu1=(11,), gpu2=(20,), gpu3=()), EnergyReading("gpu0", 1, 5)])
    assert processes.devices_of({10, 11}) == ("gpu0", "gpu1")
    assert processes.devices_of({20}) == ("gpu2",)
    assert processes.devices_of({99}) == ()
    processes.note(told(gpu2=()))
    assert processes.devices_of({20}) == ()


def test_a_family_is_a_process_and_all_that_it_started() -> None:
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '30']); print(c.pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        grandchild = int(parent.stdout.readline())
        assert {parent.pid, grandchild} <= family_of(os.getpid())
        assert family_of(parent.pid) == {parent.pid, grandchild}
        os.kill(grandchild, 9)
        parent.stdin.close()
    assert family_of(parent.pid) == frozenset()


def test_where_no_driver_tells_the_environment_of_the_server_does() -> None:
    processes = DeviceProcesses()
    processes.note_devices(
        Device(name=f"gpu{n}", kind=DeviceKind.GPU, vendor="amd", product="MI300X", pci_bus_id=f"0{n}")
        for n in range(3)
    )
    processes.note_environments({10: ({"HIP_VISIBLE_DEVICES": "1,2"}, False), 20: ({"HIP_VISIBLE_DEVICES": "0"}, True)})
    assert processes.devices_of({10, 11}) == ("gpu1", "gpu2")
    assert processes.devices_of({20}) == (), "in a container numbers count among what it was given"
    processes.note(told(gpu0=(11,)))
    assert processes.devices_of({10, 11}) == ("gpu0",), "what the driver tells goes before what may be used"
    assert processes.by_device == {"gpu0": frozenset({11})}
