"""How far a receipt may be off (attribution.md section 6): one standard deviation, without the sensor's gain error."""

from collections.abc import Sequence
from math import hypot

from jouled.core.attribution.request import Request

EDGE_SECONDS = 0.011
"""Error of service start and last token against the meter's clock, as a share of a second of power per member."""
GAUGE_EDGE = 0.1
"""Of the time between a power gauge's readings, the same: what power did between them nobody knows."""
CHANNEL_SPREAD = (0.12, 0.1, 0.18, 0.1, 0.12)
"""Relative error of the ratios: step, prefill, attention, decode, KV; doubled where the architecture is not known."""
RESIDENT_SPREAD = 0.3
"""Relative error of what is resident: the uplift of being busy is weakly identifiable, idle power often a guess."""
FLOOR = 0.002
FLOOR_COARSE = 0.012
FLOOR_UNCOUNTED, UNCOUNTED_SPREAD = 0.012, 0.27
"""Without a step counter nobody knows which tokens were made beside a prompt: the worse the more prompts cost."""
"""Spreads and floors are calibrated on simulated engines (docs/attribution.md, uncertainty)."""
LONG_PROMPT_TOKENS = 2000
PREFILL_SPREAD, PREFILL_STATIC, PREFILL_REACH = 0.13, 0.13, 3.0
DECODE_SPREAD, DECODE_STATIC = 0.1, 0.18
GUESSED = 2.0
"""Of a part's own joules, and of what it may have exchanged with the static power of its time: the borders between
prefill, decode and what is resident are weakly identifiable. A prefill has at most so many times its share of the
request's own error. `GUESSED`: where the architecture or idle power is a guess."""


def sigma_joules(
    request: Request,
    joules: float,
    shares: Sequence[float],
    *,
    architecture: bool,
    steps_counted: bool,
    coverage: float | None,
    gauge_seconds: float,
    unmetered_joules: float,
) -> float:
    """Standard deviation of a request's joules. `shares`: the engine's energy per channel lately (static first).

    unmetered_joules: what it may have used while no meter told; as far as that goes nothing is known.
    """
    parts = request.parts
    static, step, prefill, attention, decode, kv = shares
    total = step + prefill + attention + decode + kv
    own_step = parts.prefill_step + parts.decode_step
    dynamic = own_step + parts.prefill + parts.attention + parts.decode + parts.kv
    spread = resident = 0.0
    if total > 0.0:
        mean = dynamic / total
        sd_step, sd_prefill, sd_attention, sd_decode, sd_kv = CHANNEL_SPREAD
        spread = (1e-6 if architecture else 2e-6) * hypot(
            sd_step * (own_step - mean * step),
            sd_prefill * (parts.prefill - mean * prefill),
            sd_attention * (parts.attention - mean * attention),
            sd_decode * (parts.decode - mean * decode),
            sd_kv * (parts.kv - mean * kv),
        )
    if static + total > 0.0:
        mean_resident = (dynamic + parts.resident) * static / (static + total)
        resident = 1e-6 * RESIDENT_SPREAD * (parts.resident - mean_resident)
    floor = (FLOOR_COARSE if request.work.computed > LONG_PROMPT_TOKENS else FLOOR) * joules
    if not steps_counted:
        prompts = (prefill + attention) / total if total > 0.0 else 0.0
        floor = (FLOOR_UNCOUNTED + UNCOUNTED_SPREAD * prompts) * joules
    unreported = 0.0 if coverage is None else (1.0 - coverage) * joules
    edge_seconds = hypot(EDGE_SECONDS, GAUGE_EDGE * gauge_seconds) if gauge_seconds else EDGE_SECONDS
    edges = edge_seconds * hypot(*request.edge_watts)
    return hypot(edges, spread, resident, floor, unreported, unmetered_joules)


def sigma_prefill_joules(sigma: float, prefill: float, decode: float, resident: float, *, guessed: bool) -> float:
    """Standard deviation of a request's prefill joules, from that of the request and its three parts.

    guessed: the model's architecture or the device's idle power is a guess.
    """
    total = prefill + decode + resident
    reach = min(PREFILL_REACH * prefill / total, 1.0) if total > 0.0 else 0.0
    own = hypot(PREFILL_SPREAD * prefill, PREFILL_STATIC * min(prefill, resident))
    return hypot(reach * sigma, GUESSED * own if guessed else own)


def sigma_decode_joules(sigma: float, decode: float, resident: float, *, guessed: bool) -> float:
    """Standard deviation of a request's decode joules, as `sigma_prefill_joules`."""
    own = hypot(DECODE_SPREAD * decode, DECODE_STATIC * min(decode, resident))
    return hypot(sigma, GUESSED * own if guessed else own)
