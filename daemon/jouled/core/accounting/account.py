"""The account of the node: bookings and finals into counters, receipts and recent ratios."""

from collections import deque

from jouled.core.accounting.components import Components
from jouled.core.accounting.cost import co2e_grams, energy_cost
from jouled.core.accounting.counters import BoundedLabel, CounterTable, HistogramBook
from jouled.core.accounting.deadlines import tokens_in_time
from jouled.core.accounting.request_counters import RequestCounters
from jouled.core.accounting.verdicts import verdict_of
from jouled.core.attribution.roles import counts_generation
from jouled.model.device import Quality
from jouled.model.parameters import Parameters
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.snapshot import Owner
from jouled.model.units import NANOSECONDS_PER_SECOND, joules

RECENT_RECEIPTS = 100
UNMETERED = "before_start"
"""In the validity of receipts of requests that began before the books did."""


class Account:
    """Book-clock counters. Energies are whole microjoules, the same integers as in the receipts.

    good_tokens: by SLO, of requests whose energy was metered in this run; for ratios of the last minute.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.counters = CounterTable()
        self.request_energy: dict[str, HistogramBook] = {}
        self.good_tokens = dict.fromkeys((slo.name for slo in parameters.slos), 0)
        self.recent: deque[Receipt] = deque(maxlen=RECENT_RECEIPTS)
        self._of_requests: dict[tuple[str, str], RequestCounters] = {}
        limits = parameters.limits
        self._models = BoundedLabel("model_name", limits.models, limits, self.counters)
        self._tenants = BoundedLabel("tenant", limits.tenants, limits, self.counters)

    def model(self, name: str) -> str:
        """A model's name as a label value."""
        return self._models.bound(name)

    def book_energy(self, engine: str, model: str, owner: Owner, quality: Quality, energy_uj: int) -> None:
        """Energy has found its owner."""
        model = self.model(model)
        self.counters.add("energy_joules_total", (engine, model, owner.value, owners_quality(quality)), energy_uj)
        if quality is not Quality.ESTIMATED:
            self._book_cost(model, energy_uj)

    def _book_cost(self, model: str, energy_uj: int) -> None:
        price = self.parameters.price
        cost = energy_cost(price, joules(energy_uj))
        if cost is not None:
            name = "energy_cost_total" if cost >= 0 else "energy_credit_total"
            self.counters.add(name, (price.currency, model), abs(cost))
        grams = co2e_grams(price, joules(energy_uj))
        if grams is not None:
            self.counters.add("co2e_grams_total", (model,), grams)

    def book_hardware(self, model: str, hours_of_node: float) -> None:
        """Hardware was there for `hours_of_node` (a share of the node's hours)."""
        price = self.parameters.price
        if price.hardware_price_per_hour is not None:
            amount = hours_of_node * price.hardware_price_per_hour
            self.counters.add("hardware_cost_total", (price.currency, self.model(model)), amount)

    def book_request(self, event: RequestEvent, receipt: Receipt, components: Components) -> None:
        """A request is final. Its compute energy has been booked before; the other components are now.

        A guess stays in its receipt and with its owners: of its request, series without a quality label count only
        what has nothing to do with energy. Energy is counted with both halves of a request, tokens with one.
        """
        model, energy_uj = self.model(receipt.model), components.compute_uj
        generated = event.generation_tokens if counts_generation(receipt.role) else 0
        measured = receipt.quality is not Quality.ESTIMATED
        counters = self._request_counters(receipt.engine, model)
        counters.book(event, components if measured else None, receipt.role)
        keeps = self.parameters.keep_receipts
        if keeps:
            self.recent.append(receipt)
        if components.host_uj or components.residual_uj:
            self._book_cost(model, components.node_uj - energy_uj)
        if self.parameters.slos:
            self._book_slos(event, receipt, model, energy_uj)
        if not measured:
            return
        if receipt.tier:
            counters.book_tier(receipt.tier, generated, energy_uj)
        if self.parameters.by_tenant:
            tenant = self._tenants.bound(event.tenant)
            self.counters.add("tenant_energy_joules_total", (tenant, model), energy_uj)
            self.counters.add("tenant_tokens_total", (tenant, model), generated)
        histogram = self.request_energy.get(model)
        if histogram is None:
            histogram = self.request_energy[model] = HistogramBook()
        trace_id = event.trace_id if keeps else ""
        histogram.observe(receipt.joules, trace_id, receipt.last_token_ns / NANOSECONDS_PER_SECOND)

    def forget(self, tenant: str) -> None:
        """Drop the recent receipts of a tenant; what they were counted into stays."""
        kept = [receipt for receipt in self.recent if receipt.tenant != tenant]
        self.recent.clear()
        self.recent.extend(kept)

    def _request_counters(self, engine: str, model: str) -> RequestCounters:
        found = self._of_requests.get((engine, model))
        if found is None:
            found = self._of_requests[engine, model] = RequestCounters(self.counters, engine, model)
        return found

    def _book_slos(self, event: RequestEvent, receipt: Receipt, model: str, energy_uj: int) -> None:
        engine, add = receipt.engine, self.counters.add
        is_counted = counts_generation(receipt.role)
        for slo in self.parameters.slos:
            labels = (slo.name, engine, model, verdict_of(event.outcome, good=receipt.good[slo.name]).value)
            if is_counted or event.outcome is not Outcome.COMPLETED:
                add("slo_requests_total", labels, 1)
            if receipt.quality is Quality.ESTIMATED:
                continue
            add("slo_energy_joules_total", labels, energy_uj)
            if not is_counted:
                continue
            add("slo_tokens_total", labels, event.generation_tokens)
            if slo.ttft is not None and slo.tpot is not None:
                in_time = tokens_in_time(event, slo.ttft, slo.tpot)
                add("slo_deadline_tokens_total", (slo.name, engine, model), in_time)
            if receipt.good[slo.name] and UNMETERED not in receipt.validity:
                self.good_tokens[slo.name] += event.generation_tokens


def owners_quality(quality: Quality) -> str:
    """The quality of a group's books: a guess, or not."""
    return (Quality.ESTIMATED if quality is Quality.ESTIMATED else Quality.MEASURED).value
