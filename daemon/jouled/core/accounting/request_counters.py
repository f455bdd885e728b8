"""The counters of one engine's and model's final requests."""

from jouled.core.accounting.components import Components
from jouled.core.accounting.counters import CounterTable
from jouled.model.requests import Outcome, RequestEvent


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

    def book(self, event: RequestEvent, components: Components | None) -> None:
        """Count a request: outcome, tokens, and of its energy (`components`; `None`: a guess) what is known."""
        requests, tokens, energy = self._requests, self._tokens, self._energy
        outcome = self._outcomes[event.outcome]
        requests[outcome] = requests.get(outcome, 0) + 1
        cached = event.cached_prompt_tokens or 0
        if cached:
            cached = min(cached, event.prompt_tokens)
            tokens[self._cached] += cached
        tokens[self._computed] += event.prompt_tokens - cached
        tokens[self._generated] += event.generation_tokens
        if components is None:
            return
        for labels, microjoules in zip(self._components, components, strict=True):
            if microjoules is not None:
                energy[labels] = energy.get(labels, 0) + microjoules
