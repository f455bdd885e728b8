"""Who asks what and when: arrival times and lengths of chat-like requests. Pure, repeatable by seed."""

from collections.abc import Iterator
from random import Random

from msgspec import Struct

from jouled_collectors.twin.physics import seeded

_CALIBRATION_DRAWS = 4096


class Lengths(Struct, frozen=True, kw_only=True):
    """Log-normal lengths in tokens: median, spread of the logarithm, and cap."""

    prompt_median: float = 600.0
    prompt_spread: float = 1.0
    prompt_cap: int = 8192
    output_median: float = 200.0
    output_spread: float = 0.8
    output_cap: int = 2048

    def draw(self, random: Random) -> tuple[int, int]:
        """Prompt and output tokens of one request, each at least 1."""
        prompt = self.prompt_median * random.lognormvariate(0.0, self.prompt_spread)
        output = self.output_median * random.lognormvariate(0.0, self.output_spread)
        return min(max(round(prompt), 1), self.prompt_cap), min(max(round(output), 1), self.output_cap)

    def means(self) -> tuple[float, float]:
        """Mean prompt and output tokens, from a fixed sample: the caps make the closed form ugly."""
        random = seeded("lengths", self)
        draws = [self.draw(random) for _ in range(_CALIBRATION_DRAWS)]
        return sum(p for p, _ in draws) / len(draws), sum(g for _, g in draws) / len(draws)


CHAT = Lengths()
SHAPES = {
    "chat": CHAT,
    "long-prompts": Lengths(prompt_median=4000.0, prompt_spread=0.6, prompt_cap=16384),
    "short-answers": Lengths(output_median=12.0, output_spread=0.6, output_cap=64),
    "long-answers": Lengths(output_median=2500.0, output_spread=0.7, output_cap=16384),
}
"""Shapes of load by name; `chat` is the twin's own, the others are for recordings."""


class Load(Struct, frozen=True, kw_only=True):
    """Offered load of one engine.

    share: of the engine's maximum request rate. aborted: fraction of requests whose client leaves in mid-decode.
    burst_seconds: when above 0, arrivals come only in every other stretch of that length, twice as dense.
    """

    share: float = 0.6
    aborted: float = 0.02
    lengths: Lengths = CHAT
    burst_seconds: float = 0.0


class Arrival(Struct, frozen=True, kw_only=True):
    """One request as its client sends it. `leaves_after`: output tokens after which the client goes away."""

    id: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    leaves_after: int | None


def arrivals(load: Load, rate: float, start_ns: int, random: Random, identities: Random) -> Iterator[Arrival]:
    """Requests as they come: Poisson arrivals at `rate` requests per second from `start_ns` on, without end.

    `identities` draws ids alone, so that a twin that is started again repeats its load and none of its ids.
    """
    seconds = 0.0
    while True:
        seconds += random.expovariate(rate)
        prompt, output = load.lengths.draw(random)
        leaves = random.random() < load.aborted and output > 2
        yield Arrival(
            id=f"chatcmpl-{identities.getrandbits(128):032x}",
            trace_id=identities.randbytes(16),
            span_id=identities.randbytes(8),
            parent_span_id=identities.randbytes(8),
            arrival_ns=start_ns + round(_in_bursts(seconds, load.burst_seconds) * 1e9),
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=load.lengths.output_cap,
            leaves_after=random.randint(2, output - 1) if leaves else None,
        )


def _in_bursts(seconds: float, burst_seconds: float) -> float:
    """Squeeze time into every other stretch: dense, then silent, the mean rate unchanged."""
    if burst_seconds <= 0:
        return seconds
    period, within = divmod(seconds, 2 * burst_seconds)
    return period * 2 * burst_seconds + within / 2
