"""What is asked of the engine: when requests arrive and how long they are."""

import random
from collections.abc import Iterator

from msgspec import Struct

CACHE_BLOCK_TOKENS = 16


class Job(Struct, frozen=True, gc=False):
    """One request: seconds from the start, tokens; `told`: its event reaches the daemon (not so after an abort)."""

    seconds: float
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    told: bool = True


class Lengths(Struct, frozen=True, kw_only=True):
    """Log-normal lengths (median, sigma, most), and how many prompts find a part of themselves in the prefix cache.

    `generation_between`: generated tokens are log-uniform between two bounds instead.
    """

    prompt: tuple[float, float, int]
    generation: tuple[float, float, int]
    generation_between: tuple[float, float] | None = None
    hit_share: float = 0.3

    def draw(self, dice: random.Random) -> tuple[int, int, int]:
        """Prompt, cached and generated tokens."""
        prompt = _log_normal(dice, self.prompt)
        generation = self._generation(dice)
        cached = 0
        if dice.random() < self.hit_share:
            cached = int(dice.uniform(0.2, 0.95) * prompt) // CACHE_BLOCK_TOKENS * CACHE_BLOCK_TOKENS
        return prompt, min(cached, prompt - 1), generation

    def _generation(self, dice: random.Random) -> int:
        if self.generation_between is None:
            return _log_normal(dice, self.generation)
        return max(round(log_uniform(dice, *self.generation_between)), 2)


CHAT = Lengths(prompt=(500.0, 1.0, 16_384), generation=(150.0, 0.8, 2_048))
LONG_PROMPTS = Lengths(prompt=(4_000.0, 0.6, 32_768), generation=(150.0, 0.8, 1_024))
SHORT_ANSWERS = Lengths(prompt=(1_000.0, 0.8, 16_384), generation=(6.0, 0.7, 64))


def poisson(count: int, rate: float, lengths: Lengths, dice: random.Random) -> list[Job]:
    """Independent arrivals at a constant rate per second."""
    return list(_jobs(count, lengths, dice, (dice.expovariate(rate) for _ in range(count))))


def bursty(count: int, rate: float, lengths: Lengths, dice: random.Random, gap_seconds: float) -> list[Job]:
    """Bursts of a few seconds, then silence that is long enough for the engine to run empty."""
    return list(_jobs(count, lengths, dice, _burst_waits(count, rate, dice, gap_seconds)))


def _burst_waits(count: int, rate: float, dice: random.Random, gap_seconds: float) -> Iterator[float]:
    left = 0
    for _ in range(count):
        wait = dice.expovariate(rate)
        if left == 0:
            left = max(1, round(rate * dice.uniform(3.0, 20.0)))
            wait += gap_seconds * dice.uniform(0.5, 1.5)
        left -= 1
        yield wait


def _jobs(count: int, lengths: Lengths, dice: random.Random, waits: Iterator[float]) -> Iterator[Job]:
    seconds = 0.0
    for _, wait in zip(range(count), waits, strict=False):
        seconds += wait
        yield Job(seconds, *lengths.draw(dice))


def log_uniform(dice: random.Random, least: float, most: float) -> float:
    """Every factor between the bounds is as likely as any other."""
    return float(least * (most / least) ** dice.random())


def _log_normal(dice: random.Random, shape: tuple[float, float, int]) -> int:
    median, sigma, most = shape
    return min(max(round(median * dice.lognormvariate(0.0, sigma)), 1), most)
