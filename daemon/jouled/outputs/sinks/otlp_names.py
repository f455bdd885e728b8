"""What jouled's metrics, labels and receipts are called in OpenTelemetry: the one table of these names.

Sources: the semantic conventions of version `CONVENTIONS_VERSION`, whose status for all names used here is
"development": https://opentelemetry.io/docs/specs/semconv/hardware/common/ and .../hardware/host/ for `hw.*`,
.../general/logs/ for `log.record.uid`. `gen_ai.*` moved to a repository of its own
(https://github.com/open-telemetry/semantic-conventions-genai, read at commit 002c8a6e: no release yet); all names used
here are the same in both.

What has no name there: energy of requests, owners, tiers and SLOs; power limits of GPUs; counters of tokens (the GenAI
conventions count tokens and time requests by histograms of single operations, which jouled does not keep). Not used is
`hw.host.power`, whose `hw.id` is required: the node's power has no label.

Not verified: that receivers make anything of `hw.type="module"` (a value of our own, which the conventions permit), and
of `hw.host.energy` with the boundary's name, `node`, as the required `hw.id`.
"""

from collections.abc import Mapping

from msgspec import Struct

CONVENTIONS_VERSION = "1.44.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{CONVENTIONS_VERSION}"


class Convention(Struct, frozen=True, kw_only=True):
    """A metric that the conventions have a name for.

    unit: as the convention asks, which is the unit of the family too. only: label and value of the series meant; the
    others keep jouled's own name. attributes: labels of this family that are called otherwise than in `ATTRIBUTES`.
    needs_hardware_type: the family has no such label, so that `hw.type` is looked up by its `hw.id`.
    """

    name: str
    unit: str
    only: tuple[str, str] | None = None
    attributes: Mapping[str, str] = {}
    needs_hardware_type: bool = False


HARDWARE_ID, HARDWARE_TYPE = "hw.id", "hw.type"

CONVENTIONS: Mapping[str, Convention] = {
    "device_energy_joules_total": Convention(name="hw.energy", unit="J", attributes={"kind": HARDWARE_TYPE}),
    "device_power_watts": Convention(name="hw.power", unit="W", needs_hardware_type=True),
    # All of a host MUST be `hw.host.energy` only, so that nobody adds it to its parts.
    "boundary_energy_joules_total": Convention(
        name="hw.host.energy", unit="J", only=("boundary", "node"), attributes={"boundary": HARDWARE_ID}
    ),
}
"""By the catalogue's name."""

HARDWARE_TYPES: Mapping[str, str] = {"gpu": "gpu", "cpu_package": "cpu", "dram": "memory", "psu": "power_supply"}
"""Values of `hw.type` by kind of device; a kind without one keeps its own word."""

ATTRIBUTES: Mapping[str, str] = {
    "device": HARDWARE_ID,
    "vendor": "hw.vendor",
    "product": "hw.model",
    "parent": "hw.parent",
    "model_name": "gen_ai.request.model",
    "jouled_source_state": "jouled.state",
}
"""Attributes by label; every other label is `jouled.<label>`."""

RECEIPT_ATTRIBUTES: Mapping[str, str] = {
    "id": "gen_ai.response.id",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_prompt_tokens": "gen_ai.usage.cache_read.input_tokens",
    "generation_tokens": "gen_ai.usage.output_tokens",
}
"""Attributes by field of a receipt; every other field is `jouled.<field>`."""

RECORD_ID = "log.record.uid"
REQUEST_EVENT = "jouled.request"
"""Event name of a receipt, and name of its span."""

MEASURES: Mapping[str, str] = {"joules": "J", "watts": "W", "seconds": "s", "bytes": "By", "grams": "g", "ratio": "1"}
"""UCUM by unit, of those that OpenTelemetry wants beside a name and never in it."""

COUNTS: Mapping[str, str] = {
    "": "",
    "bodies": "{body}",
    "deliveries": "{delivery}",
    "devices": "{device}",
    "errors": "{error}",
    "events": "{event}",
    "meters": "{meter}",
    "receipts": "{receipt}",
    "records": "{record}",
    "requests": "{request}",
    "restarts": "{restart}",
    "series": "{series}",
    "tokens": "{token}",
    "tokens_per_joule": "{token}/J",
    "units of the currency": "{currency}",
}
"""UCUM by unit, of those that are words of the name."""


def own_name(family: str, unit: str) -> str:
    """A family's name where no convention has one: dots, without `_total` and unit, which Prometheus adds again."""
    words = family.removeprefix("jouled_").removesuffix("_total")
    if unit in MEASURES:
        words = words.removesuffix(f"_{unit}")
    return f"jouled.{words.replace('_', '.')}"


def own_unit(unit: str) -> str:
    """UCUM of a family's unit."""
    return MEASURES.get(unit) or COUNTS[unit]
