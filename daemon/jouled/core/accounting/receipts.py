"""From a final account to a receipt."""

from collections.abc import Sequence

from jouled.core.accounting.components import Components, components_of
from jouled.core.accounting.cost import co2e_grams, energy_cost
from jouled.core.accounting.verdicts import Tiers, is_good, tpot_seconds
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.group import Final
from jouled.core.attribution.means import outline
from jouled.core.attribution.request import Prefix, Request
from jouled.core.attribution.roles import HALVES, served
from jouled.core.attribution.uncertainty import Bands, Doubt
from jouled.model.device import Quality
from jouled.model.engine import Engine
from jouled.model.parameters import Parameters, Price
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent
from jouled.model.units import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, microjoules


class Receipts:
    """Makes the receipts of one engine's requests that became final together; what they share is looked up once."""

    def __init__(self, book: EngineBook, parameters: Parameters, quality: Quality, host_idle_source: str) -> None:
        self._book = book
        self._parameters = parameters
        self._quality = quality
        self._host_idle_source = host_idle_source
        self._tiers = Tiers(parameters.tiers)
        self._methods: dict[tuple[str, bool], dict[str, str]] = {}
        self._bands: tuple[Doubt, str, Bands] | None = None

    def final(self, final: Final, components: Components, wall_offset_ns: int) -> Receipt:
        """The receipt of a request whose last cell has closed; times become Unix time by `wall_offset_ns`."""
        request = final.request
        idle_source = final.idle_source
        total = components.compute_uj / MICROJOULES_PER_JOULE
        prefill, decode = final.prefill_uj / MICROJOULES_PER_JOULE, final.decode_uj / MICROJOULES_PER_JOULE
        resident = final.resident_uj / MICROJOULES_PER_JOULE
        unmetered = _unmetered_joules(request, self._book, final.doubt.means) if request.unmetered_ns > 0 else 0.0
        sigma = sigma_prefill = sigma_decode = None
        if unmetered is not None:
            bands = self._bands_of(final.doubt, idle_source)
            sigma = bands.sigma_joules(request, total, unmetered)
            sigma_prefill = bands.sigma_prefill_joules(sigma, prefill, decode, resident)
            sigma_decode = bands.sigma_decode_joules(sigma, decode, resident)
        flags = (*request.flags, *final.flags) if final.flags else request.flags
        if idle_source == "estimated":
            flags = (*flags, "idle_estimated")
        return _receipt(
            request,
            self._book.engine,
            self._parameters,
            self._tiers,
            total,
            prefill,
            decode,
            resident,
            components,
            self._quality,
            wall_offset_ns,
            flags,
            self._method(idle_source, host=components.host_uj is not None),
            sigma,
            sigma_prefill,
            sigma_decode,
        )

    def _bands_of(self, doubt: Doubt, idle_source: str) -> Bands:
        known = self._bands
        if known is not None and known[0] is doubt and known[1] == idle_source:
            return known[2]
        bands = Bands(doubt, idle_guessed=idle_source == "estimated")
        self._bands = (doubt, idle_source, bands)
        return bands

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
    means = book.lately.rates()
    if means is None:
        return None
    request = outline(served(event, book.engine.role), means)
    amounts = [1e-6 * part for part in (request.prefill_total, request.decode_total, request.resident)]
    prefill, decode, resident = (round(amount, 6) for amount in amounts)
    total = round(prefill + decode + resident, 6)
    return _receipt(
        request,
        book.engine,
        parameters,
        Tiers(parameters.tiers),
        total,
        prefill,
        decode,
        resident,
        components_of(parameters.price, microjoules(total), None, None),
        quality,
        wall_offset_ns,
        ("provisional",),
        method_of(book, parameters, "", None),
    )


def _receipt(
    request: Request,
    engine: Engine,
    parameters: Parameters,
    tiers: Tiers,
    total: float,
    prefill: float,
    decode: float,
    resident: float,
    components: Components,
    quality: Quality,
    wall_offset_ns: int,
    flags: Sequence[str],
    method: dict[str, str],
    sigma: float | None = None,
    sigma_prefill: float | None = None,
    sigma_decode: float | None = None,
) -> Receipt:
    event, slos = request.event, parameters.slos
    host_uj, residual_uj, surplus_uj = components.host_uj, components.residual_uj, components.facility_surplus_uj
    arrival_ns, first_ns, last_ns = event.arrival_ns, event.first_token_ns, event.last_token_ns
    tpot = tpot_seconds(event)
    cost, currency, grams = _priced(parameters.price, components)
    # In the order of the fields: by name, so many cost more than the whole sum of a request.
    return Receipt(
        event.id,
        event.engine,
        engine.model,
        event.outcome,
        arrival_ns + wall_offset_ns,
        first_ns + wall_offset_ns,
        last_ns + wall_offset_ns,
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
        None if host_uj is None else host_uj / MICROJOULES_PER_JOULE,
        None if residual_uj is None else residual_uj / MICROJOULES_PER_JOULE,
        None if surplus_uj is None else surplus_uj / MICROJOULES_PER_JOULE,
        sigma,
        sigma_prefill,
        sigma_decode,
        (first_ns - arrival_ns) / NANOSECONDS_PER_SECOND,
        tpot,
        (last_ns - arrival_ns) / NANOSECONDS_PER_SECOND,
        {slo.name: is_good(slo, event) for slo in slos} if slos else _NO_SLOS,
        tiers.of(tpot),
        cost,
        currency,
        grams,
        method,
        event.trace_id,
        event.span_id,
        event.tenant,
        event.adapter,
        event.preemptions,
        engine.role if engine.role in HALVES else "",
    )


_NO_SLOS: dict[str, bool] = {}
_FREE = (None, "", None)


def _priced(price: Price, components: Components) -> tuple[float | None, str, float | None]:
    """Cost, its currency and grams of CO2 equivalent of what is known inside the node."""
    if price.price_per_kwh is None and price.grid_grams_per_kwh is None:
        return _FREE
    node = components.node_uj / MICROJOULES_PER_JOULE
    currency = "" if price.price_per_kwh is None else price.currency
    return energy_cost(price, node), currency, co2e_grams(price, node)


def _unmetered_joules(request: Request, book: EngineBook, means: Prefix | None) -> float | None:
    """What a request may have used while no meter told, at the engine's recent means; `None` before anything ran."""
    if means is None:
        return None
    whole = outline(served(request.event, book.engine.role), means)
    work = whole.work
    share = min(request.unmetered_ns / max(work.last_ns - work.start_ns, 1), 1.0)
    return 1e-6 * share * whole.total


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
