"""What a GPU says beside its energy: its power limit and how long it was throttled, by reason."""

import pynvml

from jouled.model.device import DeviceKind
from jouled.model.readings import DeviceStatus
from jouled.model.units import NANOSECONDS_PER_SECOND
from jouled_collectors.power.nvml_errors import UNSUPPORTED
from jouled_collectors.power.nvml_meters import MILLIWATTS_PER_WATT, Handle, field_value, read_field

THROTTLE_REASONS = {
    pynvml.NVML_FI_DEV_PERF_POLICY_POWER: "power",
    pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL: "thermal",
    pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST: "sync_boost",
    pynvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT: "board_limit",
    pynvml.NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION: "low_utilization",
    pynvml.NVML_FI_DEV_PERF_POLICY_RELIABILITY: "reliability",
    pynvml.NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS: "app_clocks",
    pynvml.NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS: "base_clocks",
}
"""Fields 74-81: cumulative nanoseconds under each policy (nvmlDeviceGetViolationStatus is deprecated)."""


class StatusReader:
    """Reads the status of one GPU and forgets for good what that GPU does not support."""

    def __init__(self, kind: DeviceKind) -> None:
        self._kind = kind
        self._has_limit = True
        self._throttle_fields = list(THROTTLE_REASONS)

    def read(self, device: str, handle: Handle, t_ns: int, driver: str) -> DeviceStatus:
        """The status now; what could not be read is absent."""
        return DeviceStatus(
            device=device,
            t_ns=t_ns,
            power_limit_watts=self.power_limit_watts(handle),
            driver=driver,
            throttle_seconds=self._throttle_seconds(handle),
        )

    def power_limit_watts(self, handle: Handle) -> float | None:
        """The enforced limit of what the meter covers: a GPU's limit says nothing about its whole module."""
        if not self._has_limit:
            return None
        try:
            if self._kind is DeviceKind.MODULE:
                milliwatts = read_field(handle, pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT, pynvml.NVML_POWER_SCOPE_MODULE)
            else:
                milliwatts = int(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        except pynvml.NVMLError as error:
            self._has_limit = error.value not in UNSUPPORTED
            return None
        return milliwatts / MILLIWATTS_PER_WATT

    def _throttle_seconds(self, handle: Handle) -> dict[str, float]:
        seconds: dict[str, float] = {}
        if not self._throttle_fields:
            return seconds
        try:
            entries = pynvml.nvmlDeviceGetFieldValues(handle, self._throttle_fields)
        except pynvml.NVMLError as error:
            if error.value in UNSUPPORTED:
                self._throttle_fields.clear()
            return seconds
        for entry in entries:
            try:
                seconds[THROTTLE_REASONS[entry.fieldId]] = field_value(entry) / NANOSECONDS_PER_SECOND
            except pynvml.NVMLError as error:
                if error.value in UNSUPPORTED:
                    self._throttle_fields.remove(entry.fieldId)
        return seconds
