"""Sizes of the Llama-like models of a run; the largest that fits the free memory is taken."""

from dataclasses import dataclass

BYTES = 2
"""bfloat16."""
HEADROOM = 1.15
"""For activations, the logits and what the libraries take for themselves."""


@dataclass(frozen=True)
class Sizes:
    """A dense decoder with grouped-query attention, and how many requests it serves at once."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    slots: int
    max_context: int

    @property
    def parameters(self) -> int:
        """All weights, embedding and head apart."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + 2 * self.vocabulary * self.hidden + self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * self.kv_heads * self.head_dim * 2 * BYTES

    @property
    def memory_bytes(self) -> int:
        """Weights and the whole KV cache, with headroom."""
        return round(HEADROOM * (BYTES * self.parameters + self.slots * self.max_context * self.kv_bytes_per_token))


MODELS = (
    Sizes("random-8B", 4096, 32, 32, 8, 128, 14336, 128256, 64, 4096),
    Sizes("random-3B", 3072, 28, 24, 8, 128, 8192, 128256, 32, 4096),
    Sizes("random-1B", 2048, 16, 32, 8, 64, 8192, 128256, 32, 2048),
)
"""Shapes of Llama 3 with random weights. A parameter count in a name is what jouled reads sizes from."""


def choose(free_bytes: int) -> Sizes:
    """The largest model that fits. Raises `ValueError` when none does."""
    for sizes in MODELS:
        if sizes.memory_bytes <= free_bytes:
            return sizes
    raise ValueError(
        f"{free_bytes / 1e9:.1f} GB are free on the GPU, the smallest model needs "
        f"{MODELS[-1].memory_bytes / 1e9:.1f} GB: "
        "end other processes on it (nvidia-smi lists them)"
    )
