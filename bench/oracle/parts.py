"""What is simulated: accelerators, models, and the physics that a seed draws for them.

Sizes of models are those of their published configurations. Energies per FLOP and byte are orders of magnitude for
an H100-class part (attribution.md section 3.7); throughputs are what serving kernels reach, not data sheet peaks.
"""

import random

from msgspec import Struct
from msgspec.structs import replace


class Accelerator(Struct, frozen=True, kw_only=True):
    """One device. `idle_watts`: model loaded, nobody served; `uplift_watts`: what being busy adds before any work."""

    product: str
    idle_watts: float
    uplift_watts: float
    max_watts: float
    flops_per_second: float
    bytes_per_second: float
    joules_per_flop: float
    joules_per_byte: float


class Model(Struct, frozen=True, kw_only=True):
    """One model. Experts: of how many each token takes `experts_per_token`; their bytes are part of `weight_bytes`."""

    name: str
    parameters: float
    active_parameters: float
    layers: int
    hidden_size: int
    weight_bytes: float
    kv_bytes_per_token: float
    experts: int = 0
    experts_per_token: int = 0

    def bytes_read(self, tokens: int) -> float:
        """Weight bytes that a step of so many tokens reads: experts touched grow with the tokens and saturate."""
        if not self.experts:
            return self.weight_bytes
        untouched = (1.0 - self.experts_per_token / self.experts) ** tokens
        return self.weight_bytes * (self._always_read + (1.0 - self._always_read) * (1.0 - untouched))

    @property
    def _always_read(self) -> float:
        """Share of the weights outside the experts: active = outside + k/E · (all − outside)."""
        taken = self.experts_per_token / self.experts
        return (self.active_parameters / self.parameters - taken) / (1.0 - taken)


class Physics(Struct, frozen=True, kw_only=True):
    """The true parameters of one run: what a seed drew around the priors. Energies are of all devices together."""

    devices: int
    idle_watts: float
    uplift_watts: float
    cap_watts: float
    flops_per_second: float
    bytes_per_second: float
    joules_per_flop: float
    joules_per_byte: float
    launch_seconds: float
    launch_joules: float


H100 = Accelerator(
    product="H100",
    idle_watts=95.0,
    uplift_watts=47.0,
    max_watts=700.0,
    flops_per_second=450e12,
    bytes_per_second=2.6e12,
    joules_per_flop=0.45e-12,
    joules_per_byte=60e-12,
)
NEXT_GENERATION = Accelerator(
    product="B200",
    idle_watts=1.6 * H100.idle_watts,
    uplift_watts=1.6 * H100.uplift_watts,
    max_watts=1000.0,
    flops_per_second=1000e12,
    bytes_per_second=6.0e12,
    joules_per_flop=0.55 * H100.joules_per_flop,
    joules_per_byte=0.67 * H100.joules_per_byte,
)
"""Another generation as section 8 has it: FLOPs × 0.55, bytes × 0.67, idle × 1.6."""

LAUNCH_SECONDS, LAUNCH_JOULES = 2e-3, 0.1
"""Time and energy of launching one step, whatever is in it."""


def _dense(name: str, billions: float, layers: int, hidden_size: int, kv_bytes: float) -> Model:
    parameters = billions * 1e9
    return Model(
        name=name,
        parameters=parameters,
        active_parameters=parameters,
        layers=layers,
        hidden_size=hidden_size,
        weight_bytes=2.0 * parameters,
        kv_bytes_per_token=kv_bytes,
    )


DENSE = (
    _dense("Qwen2.5-3B-Instruct", 3.09, 36, 2048, 36_864.0),
    _dense("Llama-3.1-8B-Instruct", 8.03, 32, 4096, 131_072.0),
    _dense("Mistral-Nemo-Instruct-2407-12B", 12.2, 40, 5120, 163_840.0),
    _dense("Qwen2.5-14B-Instruct", 14.8, 48, 5120, 196_608.0),
)
LARGE = (
    _dense("Qwen2.5-32B-Instruct", 32.8, 64, 5120, 262_144.0),
    _dense("Llama-3.1-70B-Instruct", 70.6, 80, 8192, 327_680.0),
)
MIXTURES = (
    Model(
        name="Qwen3-30B-A3B",
        parameters=30.5e9,
        active_parameters=3.3e9,
        layers=48,
        hidden_size=2048,
        weight_bytes=61e9,
        kv_bytes_per_token=98_304.0,
        experts=128,
        experts_per_token=8,
    ),
    Model(
        name="Mixtral-8x7B-Instruct-v0.1",
        parameters=46.7e9,
        active_parameters=12.9e9,
        layers=32,
        hidden_size=4096,
        weight_bytes=93.4e9,
        kv_bytes_per_token=131_072.0,
        experts=8,
        experts_per_token=2,
    ),
    Model(
        name="DeepSeek-V2-Lite",
        parameters=15.7e9,
        active_parameters=2.4e9,
        layers=27,
        hidden_size=2048,
        weight_bytes=31.4e9,
        kv_bytes_per_token=31_104.0,
        experts=64,
        experts_per_token=6,
    ),
)


def unknown_mixture(dice: random.Random) -> Model:
    """A mixture of experts that no table knows: its name tells sizes, rounded, and nothing else."""
    billions, active_billions = dice.uniform(14.0, 80.0), dice.uniform(1.8, 6.0)
    return Model(
        name=f"in-house-{billions:.0f}B-A{active_billions:.0f}B-chat",
        parameters=billions * 1e9,
        active_parameters=active_billions * 1e9,
        layers=dice.choice((24, 32, 40, 48)),
        hidden_size=dice.choice((2048, 3072, 4096)),
        weight_bytes=2e9 * billions,
        kv_bytes_per_token=dice.choice((49_152.0, 65_536.0, 98_304.0)),
        experts=128,
        experts_per_token=4,
    )


def draw(accelerator: Accelerator, devices: int, dice: random.Random, *, mismatch: float = 1.0) -> Physics:
    """True parameters: each within ± 30 % of the priors; or one energy exactly a factor `mismatch` off them.

    A mismatch moves either FLOPs or bytes, up or down: only their ratio matters to a split.
    """
    per_flop, per_byte = _mismatch(mismatch, dice) if mismatch != 1.0 else (_around(dice), _around(dice))
    return Physics(
        devices=devices,
        idle_watts=devices * accelerator.idle_watts * _around(dice),
        uplift_watts=devices * accelerator.uplift_watts * _around(dice),
        cap_watts=devices * accelerator.max_watts,
        flops_per_second=devices * accelerator.flops_per_second * dice.uniform(0.85, 1.15) / _slowdown(devices),
        bytes_per_second=devices * accelerator.bytes_per_second * dice.uniform(0.85, 1.15) / _slowdown(devices),
        joules_per_flop=accelerator.joules_per_flop * per_flop,
        joules_per_byte=accelerator.joules_per_byte * per_byte,
        launch_seconds=LAUNCH_SECONDS * _around(dice),
        launch_joules=devices * LAUNCH_JOULES * _around(dice),
    )


def capped(physics: Physics, share: float) -> Physics:
    """The same part under a limit at `share` of the dynamic power that compute-bound steps would draw."""
    static = physics.idle_watts + physics.uplift_watts
    dynamic = physics.joules_per_flop * physics.flops_per_second
    return replace(physics, cap_watts=static + share * dynamic)


def _around(dice: random.Random) -> float:
    return dice.uniform(0.7, 1.3)


def _mismatch(factor: float, dice: random.Random) -> tuple[float, float]:
    return dice.choice(((factor, 1.0), (1.0 / factor, 1.0), (1.0, factor), (1.0, 1.0 / factor)))


def _slowdown(devices: int) -> float:
    """Devices of a tensor-parallel group wait for one another."""
    return 1.0 + 0.08 * (devices - 1)
