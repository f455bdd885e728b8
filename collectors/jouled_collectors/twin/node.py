"""The node: eight accelerators, two CPU packages with memory, an outlet pair, and two engines on them. Pure.

Every device's true energy is a closed form of elapsed time and of its engine's track, so it is known at any moment of
the last seconds; what its meter shows of that (when it moves, how fine, how far it counts) is the meter's business.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from msgspec import Struct, structs

from jouled.model.device import Device, DeviceKind
from jouled_collectors.twin.load import Lengths, Load, arrivals
from jouled_collectors.twin.physics import FOUR_GPUS, LLAMA_8B, LLAMA_70B, ONE_GPU, seeded
from jouled_collectors.twin.scheduler import EngineSimulation, EngineSpec, Truth

GPU_LIMIT_WATTS = 700.0
PACKAGE_RANGE_MICROJOULES = 262_143_328_850
DRAM_RANGE_MICROJOULES = 65_712_999_613
"""Ranges of two real powercap zones (2^32 units of 61.035 µJ and of 15.3 µJ)."""

_GPU_COUNTER_NS = 100_000_000
_CPU_COUNTER_NS = 1_000_000
_OUTLET_GAUGE_NS = 1_000_000_000
_GPU_UNIT_MICROJOULES = 1000.0
_PACKAGE_UNIT_MICROJOULES = 61.03515625
_DRAM_UNIT_MICROJOULES = 15.3
_OUTLET_UNIT_MICROJOULES = 360_000_000.0
_PSU_EFFICIENCY = 0.945
_OTHER_WATTS = 460.0
_FAN_SHARE = 0.04
_OUTLET_A_SHARE = 0.507
_TOO_MUCH = 40.0
_CALIBRATION_NS = 40_000_000_000


class Part(Struct, frozen=True, kw_only=True):
    """What a device draws: idle watts always, uplift watts while its engine is busy, a share of dynamic joules."""

    idle_watts: float
    uplift_watts: float = 0.0
    engine: str = ""
    share: float = 0.0


class Meter(Struct, frozen=True, kw_only=True):
    """How a device shows its energy, in whole units.

    The counter moves every `period_ns` at its own phase, goes on from `base_microjoules`, and starts anew at
    `range_microjoules` (0: never).
    """

    period_ns: int
    phase_ns: int
    unit_microjoules: float
    base_microjoules: int
    range_microjoules: int = 0

    def moved_ns(self, t_ns: int) -> int:
        """When the counter last moved."""
        return t_ns - (t_ns - self.phase_ns) % self.period_ns

    def show(self, joules: float) -> int:
        """The counter's value for an energy since the twin's start, in microjoules."""
        units = int((joules * 1e6 + self.base_microjoules) / self.unit_microjoules)
        shown = round(units * self.unit_microjoules)
        return shown % self.range_microjoules if self.range_microjoules else shown


class TwinDevice(Struct, frozen=True, kw_only=True):
    """A device of the twin. Outlets have no part of their own: they feed the others."""

    name: str
    kind: DeviceKind
    meter: Meter
    part: Part | None = None
    parent: str = ""
    product: str = ""
    index: int | None = None
    max_watts: float | None = None


class Shown(Struct, frozen=True, kw_only=True):
    """What a meter shows: its counter and when that last moved, and for an outlet the watts of its last second."""

    microjoules: int
    moved_ns: int
    watts: float | None = None


class Node:
    """The whole node under one seed. Times are nanoseconds on whatever axis `start_ns` is on."""

    def __init__(self, seed: object, load: Load, start_ns: int, arrivals_from_ns: int | None = None) -> None:
        self.seed = seed
        self.load = load
        self.start_ns = start_ns
        self.now_ns = start_ns
        self.devices = _devices(seed, start_ns)
        parts = [device.part for device in self.devices.values() if device.part is not None]
        self.engines = {
            spec.name: _engine(spec, load, seed, start_ns, arrivals_from_ns) for spec in _engine_specs(parts)
        }

    @property
    def unused(self) -> list[str]:
        """Accelerators that no engine runs on."""
        return [
            name
            for name, device in self.devices.items()
            if device.kind is DeviceKind.GPU and device.part is not None and not device.part.engine
        ]

    def advance(self, until_ns: int) -> list[Truth]:
        """Move all engines to this moment; the requests that ended on the way, in order of their end."""
        self.now_ns = max(self.now_ns, until_ns)
        ended = []
        for engine in self.engines.values():
            engine.advance(self.now_ns)
            ended += engine.take_ended()
        return sorted(ended, key=lambda truth: truth.request.last_token_ns)

    def describe(self, name: str, *, tell_idle: bool) -> Device:
        """A device as a power source would tell of it.

        With `tell_idle` accelerators know their idle and uplift watts as well as an operator who measured them once
        would: within five per cent.
        """
        device = self.devices[name]
        idle_watts = uplift_watts = None
        if tell_idle and device.kind is DeviceKind.GPU and device.part is not None:
            random = seeded(self.seed, "told", name)
            idle_watts = round(device.part.idle_watts * random.uniform(0.95, 1.05), 1)
            uplift_watts = round(device.part.uplift_watts * random.uniform(0.95, 1.05), 1)
        return Device(
            name=name,
            kind=device.kind,
            parent=device.parent,
            vendor="twin",
            product=device.product,
            index=device.index,
            uuid=str(uuid5(NAMESPACE_OID, f"{self.seed}/{name}")) if device.kind is DeviceKind.GPU else "",
            idle_watts=idle_watts,
            uplift_watts=uplift_watts,
            max_watts=device.max_watts,
            wrap_microjoules=device.meter.range_microjoules or None,
        )

    def joules(self, name: str, t_ns: int) -> float:
        """True energy of a device from the twin's start to a moment of the last seconds."""
        device = self.devices[name]
        if device.part is not None:
            return self._part_joules(device.part, t_ns)
        share = _OUTLET_A_SHARE if name == "outlet_a" else 1 - _OUTLET_A_SHARE
        return share * self._node_joules(t_ns)

    def shown(self, name: str, t_ns: int) -> Shown:
        """What a device's meter shows at a moment not before the last second."""
        device = self.devices[name]
        moved_ns = max(device.meter.moved_ns(t_ns), self.start_ns)
        joules = self.joules(name, moved_ns)
        watts = None
        if device.kind is DeviceKind.OUTLET and moved_ns - _OUTLET_GAUGE_NS >= self.start_ns:
            watts = round(joules - self.joules(name, moved_ns - _OUTLET_GAUGE_NS), 1)
        return Shown(microjoules=device.meter.show(joules), moved_ns=moved_ns, watts=watts)

    def engine_idle_joules(self, engine: EngineSimulation, t_ns: int) -> float:
        """Energy of an engine's accelerators while it served nobody."""
        elapsed = (t_ns - self.start_ns) * 1e-9
        return engine.spec.idle_watts * (elapsed - engine.track.at(t_ns)[1])

    def _part_joules(self, part: Part, t_ns: int) -> float:
        joules = part.idle_watts * (t_ns - self.start_ns) * 1e-9
        if part.engine:
            dynamic, busy = self.engines[part.engine].track.at(t_ns)
            joules += part.uplift_watts * busy + part.share * dynamic
        return joules

    def _node_joules(self, t_ns: int) -> float:
        """Energy at the wall: all parts, fans that follow the accelerators, the rest of the board, the supplies."""
        inside = _OTHER_WATTS * (t_ns - self.start_ns) * 1e-9
        for device in self.devices.values():
            if device.part is not None:
                fans = _FAN_SHARE if device.kind is DeviceKind.GPU else 0.0
                inside += (1 + fans) * self._part_joules(device.part, t_ns)
        return inside / _PSU_EFFICIENCY


def priors(spec: EngineSpec) -> dict[str, Any]:
    """What an operator knows of an engine's model: its sizes, never the physics. Keys as in a recording's engine."""
    architecture = spec.architecture
    return {
        "model": architecture.model,
        "precision": architecture.precision,
        "parameters": architecture.parameters,
        "active_parameters": architecture.parameters,
        "layers": architecture.layers,
        "hidden_size": architecture.hidden_size,
        "weight_bytes": architecture.weight_bytes,
        "kv_bytes_per_token": architecture.kv_bytes_per_token,
    }


def maximum_rate(spec: EngineSpec, load: Load) -> float:
    """Requests per second that an engine can carry: tokens it makes when far too much is asked, over mean length."""
    unburdened = structs.replace(spec, name="", idle_watts=0.0, uplift_watts=0.0, devices=())
    return _tokens_per_second(unburdened, load.lengths) / load.lengths.means()[1]


@cache
def _tokens_per_second(spec: EngineSpec, lengths: Lengths) -> float:
    load = Load(aborted=0.0, lengths=lengths)
    asked = arrivals(load, _TOO_MUCH, 0, seeded("calibration"), seeded("calibration ids"))
    engine = EngineSimulation(spec, asked, seeded("calibration"), 0)
    engine.advance(_CALIBRATION_NS)
    warm = engine.tallies.generation_tokens
    engine.advance(3 * _CALIBRATION_NS)
    return (engine.tallies.generation_tokens - warm) / (2 * _CALIBRATION_NS * 1e-9)


def _engine(
    spec: EngineSpec, load: Load, seed: object, start_ns: int, arrivals_from_ns: int | None
) -> EngineSimulation:
    rate = load.share * maximum_rate(spec, load)
    first_ns = start_ns if arrivals_from_ns is None else arrivals_from_ns
    identities = seeded(seed, spec.name, start_ns, "ids")
    asked = arrivals(load, rate, first_ns, seeded(seed, spec.name, "arrivals"), identities)
    return EngineSimulation(spec, asked, seeded(seed, spec.name, "steps"), start_ns)


def _engine_specs(parts: list[Part]) -> list[EngineSpec]:
    """The two engines, with the static watts of the accelerators they run on."""
    placed = (
        ("llama-70b", LLAMA_70B, FOUR_GPUS, ("gpu0", "gpu1", "gpu2", "gpu3")),
        ("llama-8b", LLAMA_8B, ONE_GPU, ("gpu4",)),
    )
    return [
        EngineSpec(
            name=name,
            architecture=architecture,
            machine=machine,
            devices=devices,
            idle_watts=sum(part.idle_watts for part in parts if part.engine == name and part.share > 0),
            uplift_watts=sum(part.uplift_watts for part in parts if part.engine == name and part.share > 0),
        )
        for name, architecture, machine, devices in placed
    ]


def _devices(seed: object, start_ns: int) -> Mapping[str, TwinDevice]:
    """All devices of the node, no two alike: idle watts, shares and counter phases vary with the seed."""
    random = seeded(seed, "devices")
    tilt = [random.uniform(0.97, 1.03) for _ in range(4)]
    devices = []
    for index in range(8):
        engine = "llama-70b" if index < 4 else "llama-8b" if index == 4 else ""
        part = Part(
            idle_watts=round(random.uniform(88, 98) if engine else random.uniform(66, 72), 2),
            uplift_watts=round(random.uniform(58, 66), 2) if engine else 0.0,
            engine=engine,
            share=tilt[index] / sum(tilt) if index < 4 else 1.0 if engine else 0.0,
        )
        meter = Meter(
            period_ns=_GPU_COUNTER_NS,
            phase_ns=start_ns + random.randrange(_GPU_COUNTER_NS),
            unit_microjoules=_GPU_UNIT_MICROJOULES,
            base_microjoules=random.randrange(10**9, 10**13),
        )
        name, product = f"gpu{index}", "twin accelerator 80GB"
        devices.append(
            TwinDevice(
                name=name,
                kind=DeviceKind.GPU,
                meter=meter,
                part=part,
                product=product,
                index=index,
                max_watts=GPU_LIMIT_WATTS,
            )
        )
    for socket, engine in enumerate(("llama-70b", "llama-8b")):
        devices += _socket(socket, engine, random.random())
    devices += [_outlet(name, start_ns + random.randrange(_OUTLET_GAUGE_NS)) for name in ("outlet_a", "outlet_b")]
    return {device.name: device for device in devices}


def _socket(index: int, engine: str, position: float) -> list[TwinDevice]:
    """A CPU package and its memory; the counters stand at `position` of their range when the twin starts.

    The package that hosts the tensor-parallel engine's four busy-polling workers draws more.
    """
    busy_watts = 62.0 if engine == "llama-70b" else 24.0
    package = Meter(
        period_ns=_CPU_COUNTER_NS,
        phase_ns=0,
        unit_microjoules=_PACKAGE_UNIT_MICROJOULES,
        base_microjoules=int(position * PACKAGE_RANGE_MICROJOULES),
        range_microjoules=PACKAGE_RANGE_MICROJOULES,
    )
    memory = Meter(
        period_ns=_CPU_COUNTER_NS,
        phase_ns=0,
        unit_microjoules=_DRAM_UNIT_MICROJOULES,
        base_microjoules=int(position * DRAM_RANGE_MICROJOULES),
        range_microjoules=DRAM_RANGE_MICROJOULES,
    )
    return [
        TwinDevice(
            name=f"cpu{index}",
            kind=DeviceKind.CPU_PACKAGE,
            meter=package,
            part=Part(idle_watts=92.0, uplift_watts=busy_watts, engine=engine),
            product="twin processor",
            index=index,
            max_watts=350.0,
        ),
        TwinDevice(
            name=f"dram{index}",
            kind=DeviceKind.DRAM,
            meter=memory,
            part=Part(idle_watts=14.0, uplift_watts=5.0, engine=engine),
            index=index,
            max_watts=80.0,
        ),
    ]


def _outlet(name: str, phase_ns: int) -> TwinDevice:
    meter = Meter(
        period_ns=_OUTLET_GAUGE_NS,
        phase_ns=phase_ns,
        unit_microjoules=_OUTLET_UNIT_MICROJOULES,
        base_microjoules=0,
    )
    return TwinDevice(
        name=name, kind=DeviceKind.OUTLET, meter=meter, parent="feed", product="twin PDU", max_watts=7360.0
    )
