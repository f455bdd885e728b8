"""How far a receipt may be off (attribution.md section 6): one standard deviation, without the sensor's gain error."""

from math import hypot
from typing import NamedTuple

from jouled.core.attribution.request import Prefix, Request

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


class Doubt(NamedTuple):
    """What the uncertainty of an engine's requests depends on beside themselves.

    shares: energy per channel lately, microjoules, static first. architecture: whether the priors know the model's.
    steps_counted: whether the engine counts its steps. coverage: share of its tokens that events told of.
    means: microjoules per unit of work lately; `None` before anything ran. gauge_seconds: time between readings where
    its power is a gauge, else 0.
    """

    shares: tuple[float, ...]
    architecture: bool
    steps_counted: bool
    coverage: float | None
    means: Prefix | None
    gauge_seconds: float = 0.0


class Bands:
    """The bands of requests that share a doubt; what they have in common is worked out once."""

    def __init__(self, doubt: Doubt, *, idle_guessed: bool) -> None:
        static, step, prefill, attention, decode, kv = doubt.shares
        total = step + prefill + attention + decode + kv
        part = 1.0 / total if total > 0.0 else 0.0
        self._usual = (step * part, prefill * part, attention * part, decode * part, kv * part)
        self._spread = (1e-6 if doubt.architecture else 2e-6) if total > 0.0 else 0.0
        self._static = static / (static + total) if static + total > 0.0 else 1.0
        self._resident = 1e-6 * RESIDENT_SPREAD if static + total > 0.0 else 0.0
        self._floor, self._floor_coarse = FLOOR, FLOOR_COARSE
        if not doubt.steps_counted:
            self._floor = self._floor_coarse = FLOOR_UNCOUNTED + UNCOUNTED_SPREAD * (prefill + attention) * part
        self._unreported = 0.0 if doubt.coverage is None else 1.0 - doubt.coverage
        self._edge_seconds = hypot(EDGE_SECONDS, GAUGE_EDGE * doubt.gauge_seconds)
        self._guessed = GUESSED if idle_guessed or not doubt.architecture else 1.0

    def sigma_joules(self, request: Request, joules: float, unmetered_joules: float) -> float:
        """Standard deviation of a request's joules.

        unmetered_joules: what it may have used while no meter told; as far as that goes nothing is known.
        """
        own_step = request.prefill_step + request.decode_step
        dynamic = own_step + request.prefill + request.attention + request.decode + request.kv
        step, prefill, attention, decode, kv = self._usual
        sd_step, sd_prefill, sd_attention, sd_decode, sd_kv = CHANNEL_SPREAD
        spread = self._spread * hypot(
            sd_step * (own_step - dynamic * step),
            sd_prefill * (request.prefill - dynamic * prefill),
            sd_attention * (request.attention - dynamic * attention),
            sd_decode * (request.decode - dynamic * decode),
            sd_kv * (request.kv - dynamic * kv),
        )
        resident = self._resident * (request.resident - (dynamic + request.resident) * self._static)
        floor = self._floor_coarse if request.work.computed > LONG_PROMPT_TOKENS else self._floor
        edges = self._edge_seconds * hypot(request.start_watts, request.end_watts)
        return hypot(edges, spread, resident, floor * joules, self._unreported * joules, unmetered_joules)

    def sigma_prefill_joules(self, sigma: float, prefill: float, decode: float, resident: float) -> float:
        """Standard deviation of a request's prefill joules, from that of the request and its three request."""
        total = prefill + decode + resident
        reach = PREFILL_REACH * prefill / total if total > 0.0 else 0.0
        exchanged = prefill if prefill < resident else resident
        own = hypot(PREFILL_SPREAD * prefill, PREFILL_STATIC * exchanged)
        return hypot(sigma if reach > 1.0 else reach * sigma, self._guessed * own)

    def sigma_decode_joules(self, sigma: float, decode: float, resident: float) -> float:
        """Standard deviation of a request's decode joules, as `sigma_prefill_joules`."""
        exchanged = decode if decode < resident else resident
        return hypot(sigma, self._guessed * hypot(DECODE_SPREAD * decode, DECODE_STATIC * exchanged))
