"""From a final account to a receipt."""

from collections.abc import Sequence

from jouled.core.accounting.components import Components, components_of
from jouled.core.accounting.cost import co2e_grams, energy_cost
from jouled.core.accounting.verdicts import e2e_seconds, is_good, tier_of, tpot_seconds, ttft_seconds
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.group import Final
from jouled.core.attribution.request import Prefix, Request
from jouled.core.attribution.uncertainty import sigma_decode_joules, sigma_joules, sigma_prefill_joules
from jouled.model.device import Quality
from jouled.model.parameters import Parameters
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent
from jouled.model.units import joules, microjoules


class Receipts:
    """Makes the receipts of one engine's requests that became final together; what they share is looked up once."""

    def __init__(self, book: EngineBook, parameters: Parameters, quality: Quality, host_idle_source: str) -> None:
        self._book = book
        self._parameters = parameters
        self._quality = quality
        self._host_idle_source = host_idle_source
        self._methods: dict[tuple[str, bool], dict[str, str]] = {}

    def final(self, final: Final, components: Components, wall_offset_ns: int) -> Receipt:
        """The receipt of a request whose last cell has closed; times become Unix time by `wall_offset_ns`."""
        request, doubt = final.request, final.doubt
        prefill, decode, resident = joules(final.prefill_uj), joules(final.decode_uj), joules(final.resident_uj)
        total = joules(components.compute_uj)
        unmetered_joules = _unmetered_joules(request, self._book, doubt.means) if request.unmetered_ns > 0 else 0.0
        sigma = sigma_prefill = sigma_decode = None
        if unmetered_joules is not None:
            sigma = sigma_joules(
                request,
                total,
                doubt.shares,
                architecture=doubt.architecture,
                steps_counted=doubt.steps_counted,
                coverage=doubt.coverage,
                gauge_seconds=doubt.gauge_seconds,
                unmetered_joules=unmetered_joules,
            )
            guessed = not doubt.architecture or final.idle_source == "estimated"
            sigma_prefill = sigma_prefill_joules(sigma, prefill, decode, resident, guessed=guessed)
            sigma_decode = sigma_decode_joules(sigma, decode, resident, guessed=guessed)
        flags = (*request.flags, *final.flags) if final.flags else request.flags
        if final.idle_source == "estimated":
            flags = (*flags, "idle_estimated")
        return _receipt(
            request,
            self._book,
            self._parameters,
            (total, prefill, decode, resident),
            components,
            self._quality,
            wall_offset_ns,
            flags=flags,
            sigma=(sigma, sigma_prefill, sigma_decode),
            method=self._method(final.idle_source, host=components.host_uj is not None),
        )

    def _method(self, idle_source: str, *, host: bool) -> dict[str, str]:
        """How the figures came about; receipts share it, for nobody changes it."""
        found = self._methods.get((idle_source, host))
        if found is None:
            found = method_of(self._book, self._parameters, idle_source, self._host_idle_source if host else None)
            self._methods[idle_source, host] = found
        return found


def provisional_receipt(
    event: RequestEvent, book: EngineBook, parameters: Parameters, quality: Quality, wall_offset_ns: int
) -> Receipt | None:
    """A receipt before the cells have closed: the request's work at the engine's recent mean joules per unit."""
    means = book.mean_rates()
    if means is None:
        return None
    request = book.outline(event, means)
    parts = request.parts
    amounts = [1e-6 * part for part in (parts.prefill_total, parts.decode_total, parts.resident)]
    prefill, decode, resident = (round(amount, 6) for amount in amounts)
    total = round(prefill + decode + resident, 6)
    return _receipt(
        request,
        book,
        parameters,
        (total, prefill, decode, resident),
        components_of(parameters.price, microjoules(total), None, None),
        quality,
        wall_offset_ns,
        flags=["provisional"],
        sigma=(None, None, None),
        method=method_of(book, parameters, "", None),
    )


def _receipt(
    request: Request,
    book: EngineBook,
    parameters: Parameters,
    amounts: tuple[float, float, float, float],
    components: Components,
    quality: Quality,
    wall_offset_ns: int,
    *,
    flags: Sequence[str],
    sigma: tuple[float | None, float | None, float | None],
    method: dict[str, str],
) -> Receipt:
    event, price = request.event, parameters.price
    total, prefill, decode, resident = amounts
    sigma_total, sigma_prefill, sigma_decode = sigma
    _, host_uj, residual_uj, surplus_uj = components
    node = joules(components.node_uj)
    # In the order of the fields: by name, so many cost more than the whole sum of a request.
    return Receipt(
        event.id,
        event.engine,
        book.engine.model,
        event.outcome,
        event.arrival_ns + wall_offset_ns,
        event.first_token_ns + wall_offset_ns,
        event.last_token_ns + wall_offset_ns,
        event.prompt_tokens,
        event.generation_tokens,
        total,
        prefill,
        decode,
        resident,
        quality,
        "provisional" in flags,
        _validity(flags) if flags else "ok",
        None if event.scheduled_ns is None else event.scheduled_ns + wall_offset_ns,
        request.work.start_ns + wall_offset_ns,
        event.cached_prompt_tokens,
        None if host_uj is None else joules(host_uj),
        None if residual_uj is None else joules(residual_uj),
        None if surplus_uj is None else joules(surplus_uj),
        sigma_total,
        sigma_prefill,
        sigma_decode,
        ttft_seconds(event),
        tpot_seconds(event),
        e2e_seconds(event),
        {slo.name: is_good(slo, event) for slo in parameters.slos},
        tier_of(parameters.tiers, event) if parameters.tiers else "",
        energy_cost(price, node),
        "" if price.price_per_kwh is None else price.currency,
        co2e_grams(price, node),
        method,
        event.trace_id,
        event.span_id,
        event.tenant,
        event.adapter,
        event.preemptions,
    )


def _unmetered_joules(request: Request, book: EngineBook, means: Prefix | None) -> float | None:
    """What a request may have used while no meter told, at the engine's recent means; `None` before anything ran."""
    if means is None:
        return None
    outline = book.outline(request.event, means)
    parts, work = outline.parts, outline.work
    share = min(request.unmetered_ns / max(work.last_ns - work.start_ns, 1), 1.0)
    return 1e-6 * share * (parts.resident + parts.prefill_total + parts.decode_total)


def _validity(flags: Sequence[str]) -> str:
    return ",".join(flag for flag in flags if flag != "provisional") or "ok"


def method_of(
    book: EngineBook, parameters: Parameters, idle_source: str, host_idle_source: str | None
) -> dict[str, str]:
    """How the figures came about: attribution by channels, priors, idle power and PUE from where."""
    method = {"attribution": "channels", "priors": book.betas.source}
    if idle_source:
        method["idle_power"] = idle_source
    if host_idle_source is not None:
        method["host_idle_power"] = host_idle_source
    if parameters.price.pue is not None:
        method["pue"] = "configured"
    return method
