"""When the daemon closes, commits and publishes: every second, and sooner where somebody waits for it."""

import asyncio
import contextlib

SHORTEST_TICK_SECONDS = 0.2
"""Between two commits where senders wait for them."""

_SECOND_NS = 1_000_000_000
_PHASE_NS = 150_000_000
"""A tick comes this long after the full second: the samplers' batches of that second are in by then."""


async def until_next_tick(now_ns: int, news: asyncio.Event, crowd: asyncio.Event) -> None:
    """Wait for the next tick, for a crowd of senders, or for the first readings: nobody waits for those longer."""
    due_ns = ((now_ns - _PHASE_NS) // _SECOND_NS + 1) * _SECOND_NS + _PHASE_NS
    left_seconds = (due_ns - now_ns) / _SECOND_NS
    pause_seconds = min(left_seconds, SHORTEST_TICK_SECONDS) if news.is_set() else 0.0
    await asyncio.sleep(pause_seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(left_seconds - pause_seconds):
            await (crowd if news.is_set() else news).wait()
