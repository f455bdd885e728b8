"""Power of the whole node, its supplies, its rack's shelves and PDU outlets by Redfish, from BMCs over HTTPS."""

from typing import ClassVar, Literal, cast

from jouled.api import Clock, PowerSettings, PowerSource
from jouled.model.errors import SourceError
from jouled_collectors.power.redfish_patience import Patience
from jouled_collectors.power.redfish_settings import RedfishSettings
from jouled_collectors.power.redfish_source import RedfishSource


class RedfishCollector:
    """Asks BMCs in a thread: what hangs is a socket, and that has a time limit."""

    name: ClassVar[str] = "redfish"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = RedfishSettings

    def __init__(self) -> None:
        self._patience: dict[str, Patience] = {}

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Log in to each BMC and find its meters. Raises `SourceError` when none works."""
        options = cast("RedfishSettings", settings)
        for bmc in options.bmcs:
            self._patience.setdefault(bmc.name, Patience())
        source = RedfishSource(options, clock, self._patience)
        try:
            source.open()
        except SourceError:
            source.close()
            raise
        return source
