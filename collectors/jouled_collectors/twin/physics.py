"""What an engine step costs in time and joules: roofline time, energy affine in FLOPs and bytes. Pure.

A step's energy is static power while it runs, plus joules per FLOP and per byte moved, plus a fixed cost of launching
it. The energy constants differ on purpose by a quarter to two fifths from the priors that a meter would assume for
such a part (0.45 pJ/FLOP, 60 pJ/byte): whoever grades an attribution against this twin grades what it does not know.
"""

from random import Random

from msgspec import Struct


class Architecture(Struct, frozen=True, kw_only=True):
    """A dense model as its configuration file tells it. Bytes of all weights; bytes of KV cache per token."""

    model: str
    precision: str
    parameters: float
    layers: int
    hidden_size: int
    weight_bytes: float
    kv_bytes_per_token: float


class Machine(Struct, frozen=True, kw_only=True):
    """The accelerators of one engine together: sustained rates, and energy on top of static power.

    launch_seconds, launch_joules: the fixed part of a step (kernel launches, all-reduces, sampling).
    kv_capacity_tokens: tokens whose KV cache fits beside the weights.
    """

    flops_per_second: float
    bytes_per_second: float
    joules_per_flop: float
    joules_per_byte: float
    launch_seconds: float
    launch_joules: float
    kv_capacity_tokens: int


class Work(Struct, frozen=True):
    """FLOPs and bytes of memory traffic."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


LLAMA_70B = Architecture(
    model="meta-llama/Llama-3.1-70B-Instruct",
    precision="bf16",
    parameters=70.55e9,
    layers=80,
    hidden_size=8192,
    weight_bytes=141.1e9,
    kv_bytes_per_token=327_680.0,
)
LLAMA_8B = Architecture(
    model="meta-llama/Llama-3.1-8B-Instruct",
    precision="bf16",
    parameters=8.03e9,
    layers=32,
    hidden_size=4096,
    weight_bytes=16.06e9,
    kv_bytes_per_token=131_072.0,
)

FOUR_GPUS = Machine(
    flops_per_second=4 * 5.4e14,
    bytes_per_second=4 * 2.5e12,
    joules_per_flop=0.56e-12,
    joules_per_byte=44e-12,
    launch_seconds=9e-3,
    launch_joules=1.2,
    kv_capacity_tokens=400_000,
)
"""H100-class parts at 55 % of peak FLOPs and 75 % of peak bandwidth; a tensor-parallel launch waits for all four."""

ONE_GPU = Machine(
    flops_per_second=5.4e14,
    bytes_per_second=2.5e12,
    joules_per_flop=0.56e-12,
    joules_per_byte=44e-12,
    launch_seconds=4e-3,
    launch_joules=0.2,
    kv_capacity_tokens=420_000,
)


def prefill_work(architecture: Architecture, tokens: int, context: int) -> Work:
    """Work of computing `tokens` prompt tokens after `context` earlier ones, without the weights."""
    attended = tokens * (context + tokens / 2)
    return Work(
        2 * architecture.parameters * tokens + 4 * architecture.layers * architecture.hidden_size * attended,
        architecture.kv_bytes_per_token * (context + tokens),
    )


def decode_work(architecture: Architecture, tokens: int, contexts: int) -> Work:
    """Work of `tokens` decode tokens whose context lengths add up to `contexts`, without the weights."""
    return Work(
        2 * architecture.parameters * tokens + 4 * architecture.layers * architecture.hidden_size * contexts,
        architecture.kv_bytes_per_token * contexts,
    )


def joules(machine: Machine, work: Work) -> float:
    """Energy of some work on top of static power, in joules."""
    return machine.joules_per_flop * work.flops + machine.joules_per_byte * work.bytes


def shared_joules(architecture: Architecture, machine: Machine) -> float:
    """Energy that a step costs whoever is in it: weights read once and the launch, in joules."""
    return machine.joules_per_byte * architecture.weight_bytes + machine.launch_joules


def step_seconds(architecture: Architecture, machine: Machine, work: Work) -> float:
    """Roofline time of a step with this work of its members: the slower of compute and memory, plus the launch."""
    compute = work.flops / machine.flops_per_second
    memory = (work.bytes + architecture.weight_bytes) / machine.bytes_per_second
    return max(compute, memory) + machine.launch_seconds


def seeded(*names: object) -> Random:
    """A generator whose numbers depend on the names alone, the same on every machine."""
    return Random("/".join(str(name) for name in names))  # noqa: S311 - a simulation must repeat itself
