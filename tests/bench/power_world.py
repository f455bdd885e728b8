"""Every kind of meter below its real client library, for `python -m bench power`.

`python -m tests.bench.power_world FOLDER` prints one JSON object when all meters work: by source, the table of its
settings, what a process needs in its environment to meet them, and how many devices there are. It runs until its
standard input ends. A process of its own, so that none of its CPU time is taken for jouled's.
"""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.feeder import count_energy, make_zones
from tests.support import amdsmi_stub, dcgm_exporter, nvml_stub
from tests.support.hwmon_tree import make_meter
from tests.support.ipmi_bmc import IpmiBmc
from tests.support.modbus import ModbusServer
from tests.support.mosquitto import Mosquitto, certificates
from tests.support.mqtt_meter import Publisher
from tests.support.redfish import PASSWORD, USER, running
from tests.support.redfish_trees import DELL, dell
from tests.support.snmp_pdu_servers import Snmpsim

GPUS, SOCKETS, OUTLETS = 8, 2, 48
WATTS, JOULES = 700, 1_000_000
APC = "1.3.6.1.4.1.318.1.3.4.6"
OUTLET_POWER = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7"
POWER_REGISTER = {"address": 100, "type": "float32", "unit": "W"}

NAMES_OF_GPU_0 = re.compile('gpu="0"|0"(?=,pci)|nvidia0"|0(?=:18:)')

Meters = dict[str, Any]


def meters(devices: int, settings: Meters, **environment: str) -> Meters:
    return {"devices": devices, "settings": settings, "environment": environment}


def every(seconds: float, act: Callable[[int], object]) -> None:
    """Call this again and again with a rising number, once before this returns. Ends with the process."""
    act(0)

    def go_on() -> None:
        number = 0
        while True:
            time.sleep(seconds)
            number += 1
            act(number)

    threading.Thread(target=go_on, daemon=True).start()


def write(path: Path, text: str) -> None:
    """Whole, in one call: no reader finds half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def nvml(_stack: ExitStack, folder: Path) -> Meters:
    """The stub without a folder of controls, so that it reads no file."""
    return meters(GPUS, {}, LD_LIBRARY_PATH=str(nvml_stub.build(folder)), NVML_STUB_GPUS=str(GPUS))


def amd(_stack: ExitStack, folder: Path) -> Meters:
    """The stub looks for its controls at each call, which costs more than the call itself."""
    rocm = amdsmi_stub.build(folder / "rocm")
    controls = amdsmi_stub.Controls(folder)
    controls.set("count", GPUS)
    return meters(GPUS, {"sysfs_root": str(controls.sysfs)}, **controls.environment(rocm))


def rapl(_stack: ExitStack, folder: Path) -> Meters:
    zones = folder / "class" / "powercap"
    make_zones(zones)
    threading.Thread(target=lambda: asyncio.run(count_energy(zones)), daemon=True).start()
    return meters(4, {"sysfs_root": str(folder)})


def hwmon(_stack: ExitStack, folder: Path) -> Meters:
    """Two Grace CPUs, which tell of each socket its whole, its cores and its fabric."""
    whole = []
    for socket in range(SOCKETS):
        for place, part in enumerate(("Grace", "CPU", "SysIO")):
            of_part = make_meter(
                folder, 3 * socket + place, f"{part} Power Socket {socket}", 1, power1_average_interval=1000
            )
            whole.append(of_part / "power1_average")
    every(1.0, lambda number: [path.write_text(f"{200_000_000 + number % 1000}\n") for path in whole])
    return meters(SOCKETS, {"sysfs_root": str(folder)})


def cray(_stack: ExitStack, folder: Path) -> Meters:
    """A node with two CPUs, memory and four accelerators; its controller fills the counters at 10 Hz."""
    counters = folder / "cray" / "pm_counters"
    counters.mkdir(parents=True)
    names = ["", "cpu0_", "cpu1_", "memory_", *(f"accel{number}_" for number in range(4))]

    def scan(number: int) -> None:
        stamp = f"{time.time_ns() // 1000} us"
        for name in names:
            write(counters / f"{name}energy", f"{JOULES + number} J {stamp}\n")
            write(counters / f"{name}power", f"{WATTS} W {stamp}\n")
        write(counters / "freshness", f"{number}\n")

    every(0.1, scan)
    return meters(len(names), {"sysfs_root": str(folder)})


def ipmi(stack: ExitStack, folder: Path) -> Meters:
    bmc = IpmiBmc(folder)
    stack.callback(bmc.kill)
    return meters(1, bmc.settings())


def redfish(stack: ExitStack, folder: Path) -> Meters:
    """An iDRAC over TLS, with a session."""
    tree = dell()
    power = tree[f"{DELL}/Power"]

    def moving() -> Meters:
        power["PowerControl"][0]["PowerConsumedWatts"] = WATTS + time.monotonic_ns() % 100
        return power

    tree[f"{DELL}/Power"] = moving
    authority = certificates(folder / "tls")
    bmc = stack.enter_context(running(tree, authority))
    password = folder / "password"
    password.write_text(f"{PASSWORD}\n")
    login = {"user": USER, "password_file": str(password), "ca_file": str(authority / "ca.crt")}
    return meters(1, {"bmcs": [{"name": "bmc", "url": bmc.url, **login}]})


def snmp_pdu(stack: ExitStack, folder: Path) -> Meters:
    """snmpsim as an APC PDU of 48 metered outlets."""
    outlets = range(1, OUTLETS + 1)
    lines = [f"1.3.6.1.2.1.1.2.0|6|{APC}", *(f"{OUTLET_POWER}.{outlet}|66|{100 + outlet}" for outlet in outlets)]
    agent = Snmpsim(folder, {"public": lines})
    agent.start()
    stack.callback(agent.kill)
    community = folder / "community"
    community.write_text("public\n")
    where = {"name": "pdu", "host": "127.0.0.1", "port": agent.port, "community_file": str(community)}
    return meters(OUTLETS, {"pdus": [{**where, "outlets": list(outlets)}]})


def mqtt_meter(stack: ExitStack, folder: Path) -> Meters:
    """Two Shellys at a mosquitto, each telling its state every second."""
    broker = Mosquitto(folder)
    stack.callback(broker.kill)
    publisher = Publisher(broker.port)
    stack.callback(publisher.close)
    topics = [f"shelly-{number}/status/switch:0" for number in (1, 2)]

    def tell(number: int) -> None:
        state = {"id": 0, "apower": WATTS + number % 7, "aenergy": {"total": 1000.0 + number * WATTS / 3600}}
        for topic in topics:
            publisher.say(topic, state)

    every(1.0, tell)
    plugs = [
        {"name": f"plug{number}", "kind": "shelly", "topic": topic, "feed": "plugs"}
        for number, topic in enumerate(topics, 1)
    ]
    return meters(len(plugs), {"host": "127.0.0.1", "port": broker.port, "meters": plugs})


def modbus(stack: ExitStack, _folder: Path) -> Meters:
    """Two meters behind one gateway."""
    server = ModbusServer(1, 2)
    stack.callback(server.stop)
    for unit in (1, 2):
        server.set(unit, POWER_REGISTER["address"], "float32", WATTS)
    feeds = [
        {"name": f"feed{unit}", "host": "127.0.0.1", "port": server.port, "unit": unit, "power": POWER_REGISTER}
        for unit in (1, 2)
    ]
    return meters(len(feeds), {"meters": feeds})


def dcgm(stack: ExitStack, _folder: Path) -> Meters:
    """The page of a dcgm-exporter with eight GPUs whose counters move every second."""
    exporter = stack.enter_context(dcgm_exporter.serve())
    lines = dcgm_exporter.H100.decode().splitlines()
    first = [line for line in lines if line.startswith("#") or 'gpu="0"' in line]

    def page(number: int) -> str:
        told = []
        for line in first:
            moved = re.sub(r"(ENERGY.*\} )\d+$", rf"\g<1>{JOULES * 1000 + number}", line)
            gpus = range(1 if line.startswith("#") else GPUS)
            told += [NAMES_OF_GPU_0.sub(lambda found, gpu=gpu: found[0].replace("0", str(gpu)), moved) for gpu in gpus]
        return "\n".join(told) + "\n"

    every(1.0, lambda number: setattr(exporter, "body", page(number).encode()))
    return meters(GPUS, {"url": exporter.url})


def estimate(_stack: ExitStack, _folder: Path) -> Meters:
    """The load of this machine."""
    return meters(1, {})


WORLD = (nvml, rapl, redfish, snmp_pdu, mqtt_meter, amd, hwmon, cray, ipmi, modbus, dcgm, estimate)


def main() -> None:
    with ExitStack() as stack:
        world = {}
        for make in WORLD:
            folder = Path(sys.argv[1], make.__name__)
            folder.mkdir(parents=True)
            world[make.__name__] = make(stack, folder)
        sys.stdout.write(json.dumps(world) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
