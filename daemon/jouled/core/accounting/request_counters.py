"""The counters of one engine's and model's final requests."""

from jouled.core.accounting.components import Components
from jouled.core.accounting.counters import CounterTable
from jouled.core.attribution.roles import counts_generation, counts_prompt
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.snapshot import Labels


class RequestCounters:
    """What every final request adds to; series and labels are looked up once, for there may be thousands a second."""

    def __init__(self, counters: CounterTable, engine: str, model: str) -> None:
        self._outcomes = {outcome: (engine, model, outcome.value) for outcome in Outcome}
        self._computed = (engine, model, "prompt_computed")
        self._cached = (engine, model, "prompt_cached")
        self._generated = (engine, model, "generation")
        self._components = tuple(
            (engine, model, name) for name in ("compute", "host", "residual", "facility_surplus")
        )  # fmt: skip
        self._requests = counters.series("requests_total")
        self._tokens = counters.series("request_tokens_total", self._computed, self._cached, self._generated)
        self._energy = counters.series("attributed_energy_joules_total")
        self._tier_tokens = counters.series("tier_tokens_total")
        self._tier_energy = counters.series("tier_energy_joules_total")
        self._tiers: dict[str, Labels] = {}
        self._engine, self._model = engine, model

    def book(self, event: RequestEvent, components: Components | None, role: str = "") -> None:
        """Count a request: outcome, tokens, and of its energy (`components`; `None`: a guess) what is known.

        Of halves the prompt is counted with the one, the generated tokens and the request with the other; a request
        that ended before it came to a decode pool is counted where it ended.
        """
        requests, tokens, energy = self._requests, self._tokens, self._energy
        if counts_generation(role) or event.outcome is not Outcome.COMPLETED:
            outcome = self._outcomes[event.outcome]
            requests[outcome] = requests.get(outcome, 0) + 1
        if counts_prompt(role):
            computed = event.prompt_tokens
            cached = event.cached_prompt_tokens
            if cached:
                cached = min(cached, computed)
                tokens[self._cached] += cached
                computed -= cached
            tokens[self._computed] += computed
        if counts_generation(role):
            tokens[self._generated] += event.generation_tokens
        if components is None:
            return
        compute, host, residual, surplus = self._components
        energy[compute] = energy.get(compute, 0) + components.compute_uj
        if components.host_uj is not None:
            energy[host] = energy.get(host, 0) + components.host_uj
        if components.residual_uj is not None:
            energy[residual] = energy.get(residual, 0) + components.residual_uj
        if components.facility_surplus_uj is not None:
            energy[surplus] = energy.get(surplus, 0) + components.facility_surplus_uj

    def book_tier(self, tier: str, generation_tokens: int, energy_uj: int) -> None:
        """Count a measured request's tokens and energy with its tier."""
        labels = self._tiers.get(tier)
        if labels is None:
            labels = self._tiers[tier] = (self._engine, self._model, tier)
        self._tier_tokens[labels] = self._tier_tokens.get(labels, 0) + generation_tokens
        self._tier_energy[labels] = self._tier_energy.get(labels, 0) + energy_uj
