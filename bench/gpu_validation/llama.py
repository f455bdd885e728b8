"""A Llama-like decoder in plain torch that executes one continuous-batching step at a time.

It has its own KV cache of slots and reads of it exactly what the members' contexts ask for, which padded batches would
not. Weights are random; nothing is downloaded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from bench.gpu_validation.sizes import Sizes
from torch.nn import functional

WEIGHT_SD = 0.02
NORM_EPSILON = 1e-5
ROPE_BASE = 500_000.0
TOLERANCE = 0.02
"""Relative difference at which two attention kernels in bfloat16 still agree."""

Tensor = Any


class Layer:
    """Weights of one layer; query, key and value are one matrix, so are gate and up."""

    def __init__(self, sizes: Sizes, new: Any) -> None:
        width = sizes.head_dim
        self.qkv = new(sizes.hidden, width * (sizes.heads + 2 * sizes.kv_heads))
        self.out = new(width * sizes.heads, sizes.hidden)
        self.gate_up = new(sizes.hidden, 2 * sizes.intermediate)
        self.down = new(sizes.intermediate, sizes.hidden)
        self.norm_attention = torch.ones(sizes.hidden, device=self.qkv.device, dtype=self.qkv.dtype)
        self.norm_mlp = torch.ones_like(self.norm_attention)


class Llama:
    """The model with its slots. `attention` says which kernel decodes: `varlen`, or `per member` where that fails."""

    def __init__(self, sizes: Sizes, device: str, dtype: Any = torch.bfloat16, seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.sizes, self.slots, self.max_context = sizes, sizes.slots, sizes.max_context
        self._device = device

        def new(inputs: int, outputs: int) -> Tensor:
            return torch.empty(outputs, inputs, device=device, dtype=dtype).normal_(0, WEIGHT_SD)

        self.embedding = new(sizes.hidden, sizes.vocabulary)
        self.head = new(sizes.hidden, sizes.vocabulary)
        self.layers = [Layer(sizes, new) for _ in range(sizes.layers)]
        self.norm = torch.ones(sizes.hidden, device=device, dtype=dtype)
        cache = (sizes.layers, sizes.slots * sizes.max_context, sizes.kv_heads, sizes.head_dim)
        self.keys = torch.empty(cache, device=device, dtype=dtype).normal_()
        self.values = torch.empty(cache, device=device, dtype=dtype).normal_()
        self.tokens = torch.randint(sizes.vocabulary, (sizes.slots,), device=device)
        self.prompt = torch.randint(sizes.vocabulary, (sizes.max_context,), device=device)
        frequencies = ROPE_BASE ** -(torch.arange(0, sizes.head_dim, 2, dtype=torch.float32) / sizes.head_dim)
        angles = torch.outer(torch.arange(sizes.max_context, dtype=torch.float32), frequencies)
        angles = torch.cat((angles, angles), -1)[:, None, :]
        self._cosines, self._sines = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
        self._attend, self.attention = self._choose_attention()

    def step(self, decode: Sequence[tuple[int, int]], prompt: tuple[int, int] | None) -> None:
        """One step, to its end on the device.

        decode: (slot, context) of each member, the context including the token that is computed now; prompt: (slot,
        tokens) of the one whose prompt is computed. The next token of each lands in `tokens`.
        """
        with torch.inference_mode():
            slots, logits = self._forward(sorted(decode), prompt)
            self.tokens[slots] = logits.argmax(-1)
            # An engine sends its tokens to the host after each step, and so waits for the device.
            self.tokens.cpu()

    def _forward(self, decode: Sequence[tuple[int, int]], prompt: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Slots and logits of everyone's last token."""
        slot, length = prompt or (0, 0)
        members = _Members(decode, self.max_context, self.slots, self._device)
        positions = torch.cat((members.positions, torch.arange(length, device=self._device)))
        rows = torch.cat((members.rows, slot * self.max_context + torch.arange(length, device=self._device)))
        tokens = torch.cat((self.tokens[members.slots], self.prompt[:length]))
        cosines, sines = self._cosines[positions], self._sines[positions]
        x = functional.embedding(tokens, self.embedding)
        for number, layer in enumerate(self.layers):
            x = x + functional.linear(self._attention(number, x, cosines, sines, rows, members), layer.out)
            normed = functional.rms_norm(x, (self.sizes.hidden,), layer.norm_mlp, NORM_EPSILON)
            gate, up = functional.linear(normed, layer.gate_up).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer.down)
        last, slots = x[: members.count], members.slots
        if prompt:
            last = torch.cat((last, x[-1:]))
            slots = torch.cat((slots, torch.tensor([slot], device=self._device)))
        return slots, functional.linear(
            functional.rms_norm(last, (self.sizes.hidden,), self.norm, NORM_EPSILON), self.head
        )

    def _attention(
        self, number: int, x: Tensor, cosines: Tensor, sines: Tensor, rows: Tensor, members: "_Members"
    ) -> Tensor:
        """All heads of one layer, before the output projection; writes the new keys and values to the cache."""
        sizes, layer = self.sizes, self.layers[number]
        normed = functional.rms_norm(x, (sizes.hidden,), layer.norm_attention, NORM_EPSILON)
        heads = functional.linear(normed, layer.qkv).view(len(x), -1, sizes.head_dim)
        turned = _rotate(heads[:, : sizes.heads + sizes.kv_heads], cosines, sines)
        query, key, value = turned[:, : sizes.heads], turned[:, sizes.heads :], heads[:, sizes.heads + sizes.kv_heads :]
        keys, values = self.keys[number], self.values[number]
        keys.index_copy_(0, rows, key)
        values.index_copy_(0, rows, value)
        count = members.count
        parts = []
        if count:
            parts.append(self._attend(query[:count], keys, values, members))
        if count < len(x):
            q, k, v = (part[count:].transpose(0, 1)[None] for part in (query, key, value))
            own = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            parts.append(own[0].transpose(0, 1))
        return torch.cat(parts).flatten(1)

    def _choose_attention(self) -> tuple[Any, str]:
        """The varlen kernel where it gives what the plain one gives, else the plain one, member by member."""
        if not str(self._device).startswith("cuda"):
            return _per_member, "per member (no CUDA)"
        lengths = [1 + (i * 37) % self.max_context for i in range(self.slots)]
        members = _Members([*enumerate(lengths)][::2], self.max_context, self.slots, self._device)
        query = torch.randn(
            members.count, self.sizes.heads, self.sizes.head_dim, device=self._device, dtype=self.keys.dtype
        )
        try:
            fast = _varlen(query, self.keys[0], self.values[0], members)
        except (RuntimeError, TypeError, AttributeError) as error:
            return _per_member, f"per member (varlen: {str(error).splitlines()[0][:120]})"
        plain = _per_member(query, self.keys[0], self.values[0], members)
        off = ((fast - plain).float().norm() / plain.float().norm()).item()
        return (_varlen, "varlen") if off < TOLERANCE else (_per_member, f"per member (varlen is off by {off:.3g})")


class _Members:
    """Who decodes in a step, as the kernels want it; sorted by slot."""

    def __init__(self, decode: Sequence[tuple[int, int]], max_context: int, slots: int, device: str) -> None:
        self.count = len(decode)
        self.spans = [(slot * max_context, slot * max_context + context) for slot, context in decode]
        self.longest = max((context for _, context in decode), default=0)
        self.slots = torch.tensor([slot for slot, _ in decode], device=device, dtype=torch.int64)
        self.positions = torch.tensor([context - 1 for _, context in decode], device=device, dtype=torch.int64)
        self.rows = self.slots * max_context + self.positions
        starts = [*(start for start, _ in self.spans), slots * max_context]
        self.starts = torch.tensor(starts, device=device, dtype=torch.int32)
        self.lengths = (self.positions + 1).to(torch.int32)
        self.queries = torch.arange(self.count + 1, device=device, dtype=torch.int32)


def _varlen(query: Tensor, keys: Tensor, values: Tensor, members: _Members) -> Tensor:
    """One call for all members: each slot is a sequence of the cache, of which only the used length is read."""
    # The public torch.nn.attention.varlen takes a used length only in later releases than this operator does.
    return torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - an operator, not an attribute of ours
        query,
        keys,
        values,
        members.queries,
        members.starts,
        1,
        members.longest,
        0.0,
        False,
        False,
        seqused_k=members.lengths,
    )[0]


def _per_member(query: Tensor, keys: Tensor, values: Tensor, members: _Members) -> Tensor:
    """One call for each member."""
    outs = []
    for number, (start, end) in enumerate(members.spans):
        q = query[number][None, :, None]
        k, v = (cache[start:end].transpose(0, 1)[None] for cache in (keys, values))
        outs.append(functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0, :, 0])
    return torch.stack(outs)


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary position embedding, halves apart."""
    first, second = heads.chunk(2, -1)
    return heads * cosines + torch.cat((-second, first), -1) * sines
