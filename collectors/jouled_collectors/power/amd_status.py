"""What is known of a GPU beside its energy: its power limit, how long it was throttled and why, who computes on it."""

from collections.abc import Sequence
from pathlib import Path

from jouled.model.readings import DeviceStatus
from jouled.model.units import seconds
from jouled_collectors.power.amd_library import Handle, Library
from jouled_collectors.power.amd_processes import processes
from jouled_collectors.power.amd_values import cap_watts, count

THROTTLE_REASONS = {
    "ppt_residency_acc": "power",
    "socket_thm_residency_acc": "thermal",
    "hbm_thm_residency_acc": "memory_thermal",
    "vr_thm_residency_acc": "vr_thermal",
    "prochot_residency_acc": "prochot",
}
"""Accumulators of gpu_metrics 1.5 and later (MI300): of so many rounds of the firmware, in how many it held back."""

_ROUNDS = "accumulation_counter"


def power_limit_watts(library: Library, handle: Handle) -> float | None:
    """The enforced limit."""
    caps = library.ask("amdsmi_get_power_cap_info", handle)
    return cap_watts(caps.get("power_cap")) if isinstance(caps, dict) else None


class StatusReader:
    """Reads the status of one GPU.

    AMD does not say how long a round of the firmware is, so seconds are the share of throttled rounds of the time
    between two looks, added up since the source was opened.
    """

    def __init__(self, handle: Handle, sysfs: Path, kfd_ids: Sequence[int]) -> None:
        """kfd_ids: the compute driver's numbers of the GPU and its partitions."""
        self._handle = handle
        self._sysfs = sysfs
        self._kfd_ids = kfd_ids
        self._counts: dict[str, int] = {}
        self._seen_ns = 0
        self._seconds: dict[str, float] = {}

    def read(self, library: Library, device: str, t_ns: int, driver: str) -> DeviceStatus:
        """The status now; what could not be read is absent."""
        return DeviceStatus(
            device=device,
            t_ns=t_ns,
            power_limit_watts=power_limit_watts(library, self._handle),
            driver=driver,
            throttle_seconds=self._throttle_seconds(library, t_ns),
            processes=processes(self._sysfs, self._kfd_ids),
        )

    def _throttle_seconds(self, library: Library, t_ns: int) -> dict[str, float]:
        metrics = library.ask("amdsmi_get_gpu_metrics_info", self._handle)
        if not isinstance(metrics, dict):
            return {}
        told = {key: number for key in (_ROUNDS, *THROTTLE_REASONS) if (number := count(metrics.get(key))) is not None}
        if _ROUNDS not in told:
            return {}
        elapsed_seconds = seconds(t_ns - self._seen_ns)
        rounds = told[_ROUNDS] - self._counts.get(_ROUNDS, told[_ROUNDS])
        for key in told.keys() & THROTTLE_REASONS.keys():
            held_back = told[key] - self._counts.get(key, told[key])
            # Counters that fell began anew with the driver; the span across that is left out.
            share = min(1.0, held_back / rounds) if rounds > 0 and held_back > 0 else 0.0
            reason = THROTTLE_REASONS[key]
            self._seconds[reason] = self._seconds.get(reason, 0.0) + share * elapsed_seconds
        self._counts, self._seen_ns = told, t_ns
        return {reason: self._seconds[reason] for key, reason in THROTTLE_REASONS.items() if key in told}
