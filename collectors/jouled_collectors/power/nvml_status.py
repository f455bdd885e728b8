"""What a GPU says beside its energy: its power limit and how long it was throttled, by reason."""

import pynvml

from jouled.model.device import DeviceKind
from jouled.model.readings import DeviceStatus
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds
from jouled_collectors.power.nvml_errors import UNSUPPORTED
from jouled_collectors.power.nvml_meters import MILLIWATTS_PER_WATT, Handle, field_value, read_field, usable_milliwatts

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
"""Fields 74-81: cumulative nanoseconds under each policy (nvmlDeviceGetViolationStatus is deprecated).

Fields from 251 on (slowdown by reason, power smoothing) are left alone: their numbers changed between headers of NVML
(SW_THERM_SLOWDOWN was 251 and is 269), so what a driver means by them is not known from the number.
"""

SUPPORT_AGAIN_NS = nanoseconds(3600)
"""After so long what was not supported is asked again."""


class StatusReader:
    """Reads the status of one GPU; what that GPU does not support is not asked again for an hour."""

    def __init__(self, kind: DeviceKind) -> None:
        self._kind = kind
        self._has_limit = True
        self._has_processes = True
        self._throttle_fields = list(THROTTLE_REASONS)
        self._all_at_ns: int | None = None

    def read(self, device: str, handle: Handle, t_ns: int, driver: str) -> DeviceStatus:
        """The status now; what could not be read is absent."""
        if self._all_at_ns is None or t_ns >= self._all_at_ns:
            self._all_at_ns = t_ns + SUPPORT_AGAIN_NS
            self._has_limit, self._throttle_fields = True, list(THROTTLE_REASONS)
        return DeviceStatus(
            device=device,
            t_ns=t_ns,
            power_limit_watts=self.power_limit_watts(handle),
            driver=driver,
            throttle_seconds=self._throttle_seconds(handle),
            processes=self._processes(handle),
        )

    def power_limit_watts(self, handle: Handle) -> float | None:
        """The enforced limit of what the meter covers: a GPU's limit says nothing about its whole module. 0 is none."""
        if not self._has_limit:
            return None
        try:
            if self._kind is DeviceKind.MODULE:
                milliwatts = read_field(handle, pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT, pynvml.NVML_POWER_SCOPE_MODULE)
            else:
                milliwatts = int(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
            milliwatts = usable_milliwatts(milliwatts)
        except pynvml.NVMLError as error:
            self._has_limit = error.value not in UNSUPPORTED
            return None
        return milliwatts / MILLIWATTS_PER_WATT or None

    def _processes(self, handle: Handle) -> tuple[int, ...]:
        """Host process ids; none where they are not told, as inside a container without the host's process space."""
        if not self._has_processes:
            return ()
        try:
            # The unversioned call raises what is no NVMLError where the library is older than the binding.
            found = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
        except pynvml.NVMLError as error:
            self._has_processes = error.value not in UNSUPPORTED
            return ()
        return tuple(sorted({int(process.pid) for process in found}))

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
