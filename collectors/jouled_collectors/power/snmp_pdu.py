"""Outlets and inlets of metered PDUs, by SNMP."""

from typing import ClassVar, Literal, cast

from jouled.api import Clock, PowerSettings, PowerSource
from jouled_collectors.power.snmp_pdu_errors import library_missing
from jouled_collectors.power.snmp_pdu_settings import SnmpPduSettings


class SnmpPduCollector:
    """Reads PDUs. Runs in a child process: pysnmp takes some 25 MB and its parsing holds the interpreter."""

    name: ClassVar[str] = "snmp_pdu"
    isolation: ClassVar[Literal["thread", "process"]] = "process"
    holds_devices: ClassVar[bool] = False
    settings_type: ClassVar[type[PowerSettings]] = SnmpPduSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find out what each PDU is and read it once. Raises `SourceError` when none of them works."""
        try:
            from jouled_collectors.power.snmp_pdu_source import open_source
        except ModuleNotFoundError as error:
            raise library_missing(f"PDUs are read with pysnmp, which is not installed ({error.name})") from error
        return open_source(cast("SnmpPduSettings", settings), clock)
