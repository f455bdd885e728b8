"""One request as the channels see it: its times, its tokens, and the rates that follow from them."""

from jouled.model.units import NANOSECONDS_PER_MILLISECOND, NANOSECONDS_PER_SECOND

SHORTEST_DECODE_NS = NANOSECONDS_PER_MILLISECOND
"""No engine decodes faster; rates of shorter spans would only lose the sums' precision."""


class Work:
    """One request as the channels see it, times in core nanoseconds; start ≥ 1 ms before first token.

    `from_ns`: the request's cells before this were closed without it; its rates apply from here on, or from its start
    (`begin_ns`) to its end (`end_ns`), and it turns to decode in between (`turn_ns`).
    `prefill_rate`: computed prompt tokens per second of prefill; `attention_rate`: query-key pairs per second of
    prefill, for a computed token attends the cached and, on average, half the rest; `decode_rate`: output tokens per
    second after the first, 0 where there are none or all came at once.
    """

    __slots__ = (
        "attention_rate",
        "begin_ns",
        "cached",
        "computed",
        "decode_rate",
        "end_ns",
        "first_ns",
        "from_ns",
        "generated",
        "last_ns",
        "prefill_rate",
        "prompt",
        "start_ns",
        "turn_ns",
    )

    def __init__(
        self,
        start_ns: int,
        first_ns: int,
        last_ns: int,
        computed: int,
        cached: int,
        prompt: int,
        generated: int,
        from_ns: int,
    ) -> None:
        self.start_ns, self.first_ns, self.last_ns = start_ns, first_ns, last_ns
        self.computed, self.cached, self.prompt, self.generated = computed, cached, prompt, generated
        self.from_ns = from_ns
        self.begin_ns = start_ns if start_ns > from_ns else from_ns
        self.turn_ns = first_ns if first_ns > self.begin_ns else self.begin_ns
        self.end_ns = last_ns if last_ns > self.turn_ns else self.turn_ns
        self.prefill_rate = self.attention_rate = self.decode_rate = 0.0
        prefill_ns, decode_ns = first_ns - start_ns, last_ns - first_ns
        if computed and prefill_ns > 0:
            self.prefill_rate = computed * NANOSECONDS_PER_SECOND / prefill_ns
            self.attention_rate = computed * (cached + computed / 2) * NANOSECONDS_PER_SECOND / prefill_ns
        if generated > 1 and decode_ns >= SHORTEST_DECODE_NS:
            self.decode_rate = (generated - 1) * NANOSECONDS_PER_SECOND / decode_ns
