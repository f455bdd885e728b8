"""From a final account to a receipt."""

from collections.abc import Sequence

from jouled.core.accounting.components import Components, components_of
from jouled.core.accounting.cost import co2e_grams, energy_cost
from jouled.core.accounting.verdicts import e2e_seconds, is_good, tier_of, tpot_seconds, ttft_seconds
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.group import Final
from jouled.core.attribution.request import Request
from jouled.core.attribution.uncertainty import sigma_joules, sigma_split_joules
from jouled.model.device import Quality
from jouled.model.parameters import Parameters
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent
from jouled.model.units import joules, microjoules


def final_receipt(
    final: Final,
    components: Components,
    book: EngineBook,
    parameters: Parameters,
    quality: Quality,
    wall_offset_ns: int,
    *,
    host_idle_source: str,
) -> Receipt:
    """The receipt of a request whose last cell has closed; times become Unix time by `wall_offset_ns`."""
    prefill, decode, resident = joules(final.prefill_uj), joules(final.decode_uj), joules(final.resident_uj)
    total = joules(components.compute_uj)
    sigma = sigma_joules(
        final.request,
        total,
        book.spent_shares(),
        architecture=book.betas.knows_architecture,
        steps_counted=book.census.counts_steps,
        coverage=book.lost.coverage,
    )
    flags = [*final.request.flags]
    if final.idle_source == "estimated":
        flags.append("idle_estimated")
    return _receipt(
        final.request,
        book,
        parameters,
        (total, prefill, decode, resident),
        components,
        quality,
        wall_offset_ns,
        flags=flags,
        sigma=(sigma, sigma_split_joules(sigma, prefill, decode)),
        method=method_of(book, final.idle_source)
        | ({} if components.host_uj is None else {"host_idle_power": host_idle_source}),
    )


def provisional_receipt(
    event: RequestEvent, book: EngineBook, parameters: Parameters, quality: Quality, wall_offset_ns: int
) -> Receipt | None:
    """A receipt before the cells have closed: the request's work at the engine's recent mean joules per unit."""
    request = book.outline(event)
    if request is None:
        return None
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
        sigma=(None, None),
        method=method_of(book, ""),
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
    sigma: tuple[float | None, float | None],
    method: dict[str, str],
) -> Receipt:
    event, price = request.event, parameters.price
    total, prefill, decode, resident = amounts
    sigma_total, sigma_split = sigma
    return Receipt(
        id=event.id,
        engine=event.engine,
        model=book.engine.model,
        outcome=event.outcome,
        arrival_ns=event.arrival_ns + wall_offset_ns,
        scheduled_ns=None if event.scheduled_ns is None else event.scheduled_ns + wall_offset_ns,
        service_start_ns=request.work.start_ns + wall_offset_ns,
        first_token_ns=event.first_token_ns + wall_offset_ns,
        last_token_ns=event.last_token_ns + wall_offset_ns,
        prompt_tokens=event.prompt_tokens,
        cached_prompt_tokens=event.cached_prompt_tokens,
        generation_tokens=event.generation_tokens,
        joules=total,
        joules_prefill=prefill,
        joules_decode=decode,
        joules_resident=resident,
        joules_host=_joules(components.host_uj),
        joules_residual=_joules(components.residual_uj),
        joules_facility_surplus=_joules(components.facility_surplus_uj),
        quality=quality,
        provisional="provisional" in flags,
        validity=",".join(flag for flag in flags if flag != "provisional") or "ok",
        sigma_joules=sigma_total,
        sigma_split_joules=sigma_split,
        ttft_seconds=ttft_seconds(event),
        tpot_seconds=tpot_seconds(event),
        e2e_seconds=e2e_seconds(event),
        good={slo.name: is_good(slo, event) for slo in parameters.slos},
        tier=tier_of(parameters.tiers, event),
        cost=energy_cost(price, joules(components.node_uj)),
        currency="" if price.price_per_kwh is None else price.currency,
        co2e_grams=co2e_grams(price, joules(components.node_uj)),
        method=method if price.pue is None else method | {"pue": "configured"},
        trace_id=event.trace_id,
        span_id=event.span_id,
        tenant=event.tenant,
        adapter=event.adapter,
        preemptions=event.preemptions,
    )


def _joules(known_uj: int | None) -> float | None:
    return None if known_uj is None else joules(known_uj)


def method_of(book: EngineBook, idle_source: str) -> dict[str, str]:
    """How the figures came about: attribution by channels, priors from where, idle power from where."""
    method = {"attribution": "channels", "priors": book.betas.source}
    if idle_source:
        method["idle_power"] = idle_source
    return method
