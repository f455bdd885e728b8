"""Intel Gaudi cards by HLML, the management library that comes with their driver."""

from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource
from jouled_collectors.power.settings import IntervalSeconds, Watts


class GaudiSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.gaudi]`."""

    interval_seconds: Annotated[IntervalSeconds | None, Meta(description="Time between two reads. Unset: 1.")] = None
    idle_watts: Annotated[Watts | None, Meta(description="Of each card, idle. Unset: learned.")] = None
    uplift_watts: Annotated[Watts | None, Meta(description="Of each card, what being busy adds. Unset: learned.")] = (
        None
    )


class GaudiCollector:
    """Reads Gaudi cards. Runs in a child process: the library may hang, crash and outlive its driver."""

    name: ClassVar[str] = "gaudi"
    isolation: ClassVar[Literal["thread", "process"]] = "process"
    settings_type: ClassVar[type[PowerSettings]] = GaudiSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Load HLML and open every card. Raises `SourceError`."""
        from jouled_collectors.power.gaudi_source import open_source

        return open_source(clock, cast("GaudiSettings", settings))
