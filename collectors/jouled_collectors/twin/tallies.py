"""What an engine counts of itself, in vLLM's families: histograms with its bounds and plain totals. Pure."""

from bisect import bisect_left

from msgspec import Struct, field

LATENCY_BOUNDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STEP_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TOKEN_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
CHOICES_BOUNDS = (1, 2, 5, 10, 20)
PREEMPTION_BOUNDS = (1, 2, 3, 4, 5, 10, 20)
HTTP_BOUNDS = (0.1, 0.5, 1)
HTTP_FINE_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5),
    *(2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
"""Upper bounds of vLLM's histograms (vllm/v1/metrics/buckets.py; seen on a running 0.32.0)."""

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Tally:
    """A histogram in the making: counts per bucket (not cumulative) and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value, `times` times over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Buckets as an exposition wants them: upper bound as text, count up to it."""
        labels = [str(float(bound)) for bound in self.bounds] + ["+Inf"]
        total = 0
        buckets = []
        for label, count in zip(labels, self.counts, strict=True):
            total += count
            buckets.append((label, float(total)))
        return buckets


def _latency() -> Tally:
    return Tally(LATENCY_BOUNDS)


def _tokens() -> Tally:
    return Tally(TOKEN_BOUNDS)


class Tallies(Struct, kw_only=True):
    """Everything vLLM counts of requests and steps.

    Tokens and step figures move per step, HTTP's when a client has its answer or has gone, the rest at a finish.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISH_REASONS, 0))
    iteration_tokens: Tally = field(default_factory=lambda: Tally(STEP_BOUNDS))
    time_to_first_token: Tally = field(default_factory=lambda: Tally(TTFT_BOUNDS))
    inter_token_latency: Tally = field(default_factory=lambda: Tally(ITL_BOUNDS))
    time_per_output_token: Tally = field(default_factory=lambda: Tally(ITL_BOUNDS))
    e2e: Tally = field(default_factory=_latency)
    queue_time: Tally = field(default_factory=_latency)
    inference_time: Tally = field(default_factory=_latency)
    prefill_time: Tally = field(default_factory=_latency)
    decode_time: Tally = field(default_factory=_latency)
    request_prompt_tokens: Tally = field(default_factory=_tokens)
    request_generation_tokens: Tally = field(default_factory=_tokens)
    max_num_generation_tokens: Tally = field(default_factory=_tokens)
    params_max_tokens: Tally = field(default_factory=_tokens)
    prefill_kv_computed_tokens: Tally = field(default_factory=_tokens)
    params_n: Tally = field(default_factory=lambda: Tally(CHOICES_BOUNDS))
    num_preemptions: Tally = field(default_factory=lambda: Tally(PREEMPTION_BOUNDS))
    http: Tally = field(default_factory=lambda: Tally(HTTP_BOUNDS))
    http_fine: Tally = field(default_factory=lambda: Tally(HTTP_FINE_BOUNDS))
