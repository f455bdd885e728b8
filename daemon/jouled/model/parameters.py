"""What the operator decides and the core needs to know."""

from enum import StrEnum

from msgspec import Struct

from jouled.model.engine import Latency


class Slo(Struct, frozen=True):
    """A service level objective: all limits given must hold. Milliseconds, as in `vllm bench serve --goodput`.

    ttft: time to first token; tpot: mean time per output token after the first; e2el: end-to-end latency.
    """

    name: str
    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @property
    def limits(self) -> dict[Latency, float]:
        """The limits that are set, in milliseconds."""
        told: dict[Latency, float | None] = {"ttft": self.ttft, "tpot": self.tpot, "e2el": self.e2el}
        return {name: limit for name, limit in told.items() if limit is not None}


class Tier(Struct, frozen=True):
    """A class of service by interactivity: tokens per second and user (1 / TPOT), from this bound up."""

    name: str
    min_tokens_per_second_per_user: float = 0.0


class Price(Struct, frozen=True):
    """What energy and hardware cost. `pue` and `grid_grams_per_kwh` are `None` where nobody said.

    price_per_kwh may be negative: the credit is counted apart. hardware_price_per_hour is of the whole node.
    """

    currency: str = "EUR"
    price_per_kwh: float | None = None
    hardware_price_per_hour: float | None = None
    pue: float | None = None
    grid_grams_per_kwh: float | None = None


class IdlePolicy(StrEnum):
    """Who pays for static power while requests are resident (attribution.md section 5)."""

    RESIDENT = "resident"
    DYNAMIC = "dynamic"
    SEPARATE = "separate"


class Limits(Struct, frozen=True):
    """Bounds on label values that come from outside; overflow goes to `other` and is counted."""

    models: int = 16
    tenants: int = 50
    label_length: int = 128


class DeviceChange(Struct, frozen=True, kw_only=True):
    """What the operator knows better of a device than its source. `None`: as the source says."""

    name: str
    parent: str | None = None
    max_watts: float | None = None
    ignore: bool = False


class Parameters(Struct, frozen=True, kw_only=True):
    """All parameters of the core. node_meters: sources, the one to believe first where two measure the node alike."""

    node: str = ""
    node_meters: tuple[str, ...] = ("redfish", "ipmi", "cray", "hwmon", "rapl")
    device_changes: tuple[DeviceChange, ...] = ()
    slos: tuple[Slo, ...] = ()
    tiers: tuple[Tier, ...] = (Tier("bulk"), Tier("goldilocks", 20.0), Tier("low_latency", 60.0))
    price: Price = Price()
    idle_policy: IdlePolicy = IdlePolicy.RESIDENT
    limits: Limits = Limits()
    by_tenant: bool = False
    keep_receipts: bool = True
    learn_ratios: bool = True
    wait_seconds: float = 15.0
    horizon_min_seconds: float = 120.0
    horizon_max_seconds: float = 1800.0
