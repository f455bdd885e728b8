"""A receipt: one request and the joules it owns."""

from msgspec import Struct

from jouled.model.device import Quality
from jouled.model.requests import Outcome


class Receipt(Struct, frozen=True, gc=False):
    """One request's account, as `GET /api/v1/requests/{id}` shows it.

    joules (of its compute devices) = joules_prefill + joules_decode + joules_resident, to the microjoule.
    joules_host, joules_residual, joules_facility_surplus: its shares beyond the compute devices, `None` where not
    known; cost and co2e_grams are of these and `joules`, at the facility's meter. sigma_joules: one standard deviation
    of `joules` without the sensor's gain error, `None` where nothing is known to tell it from;
    sigma_prefill_joules and sigma_decode_joules: of these parts, which are known less well than their sum.
    good: SLO name -> all its limits held. Times are Unix nanoseconds.
    validity: `ok`, or why not, words joined by `,`: truncated and before_start (its first part was closed without it),
    meter_gap (a meter told nothing for some of its time), no_energy and beyond_end (for all of it), interrupted,
    idle_estimated, shared_device, partition_estimated.
    role: the half of the request that its engine served, `prefill` or `decode`, where pools share requests; the joules
    are of that half, times and tokens of the whole request as far as they were told. Empty: the engine served all.
    """

    id: str
    engine: str
    model: str
    outcome: Outcome
    arrival_ns: int
    first_token_ns: int
    last_token_ns: int
    prompt_tokens: int
    generation_tokens: int
    joules: float
    joules_prefill: float
    joules_decode: float
    joules_resident: float
    quality: Quality
    provisional: bool
    validity: str
    scheduled_ns: int | None = None
    service_start_ns: int | None = None
    cached_prompt_tokens: int | None = None
    joules_host: float | None = None
    joules_residual: float | None = None
    joules_facility_surplus: float | None = None
    sigma_joules: float | None = None
    sigma_prefill_joules: float | None = None
    sigma_decode_joules: float | None = None
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    e2e_seconds: float | None = None
    good: dict[str, bool] = {}
    tier: str = ""
    cost: float | None = None
    currency: str = ""
    co2e_grams: float | None = None
    method: dict[str, str] = {}
    trace_id: str = ""
    span_id: str = ""
    tenant: str = ""
    adapter: str = ""
    preemptions: int = 0
    role: str = ""
