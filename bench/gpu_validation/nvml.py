"""The GPU's energy counter through NVML: read every 20 ms beside the work, and what a call costs. Changes nothing."""

import statistics
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import pynvml
from bench.gpu_validation.records import CallCost, Move

POLL_SECONDS = 0.02
COST_CALLS = 200
COST_SECONDS = 0.5
"""A call is asked this often, but not for longer than this."""
THROTTLE_FIELDS = (
    pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL,
    pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST,
    pynvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT,
    pynvml.NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION,
    pynvml.NVML_FI_DEV_PERF_POLICY_RELIABILITY,
    pynvml.NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS,
    pynvml.NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS,
)
"""Those that jouled reads with the status of a GPU, in one call."""


class Clock(Protocol):
    """Unix time and waiting."""

    def now_ns(self) -> int:
        """Unix time; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class MachineClock:
    """The machine's: monotonic time on the wall time of the start, so that a step of the wall clock shows nowhere."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Unix time; never goes back."""
        return time.monotonic_ns() + self._offset_ns

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Card:
    """One GPU, found by UUID, since CUDA and NVML number GPUs differently."""

    def __init__(self, uuid: str) -> None:
        pynvml.nvmlInit()
        self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.name = str(pynvml.nvmlDeviceGetName(self.handle))
        self.driver = str(pynvml.nvmlSystemGetDriverVersion())

    def millijoules(self) -> int:
        """The energy counter. Raises `NVMLError`."""
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))

    def limit_watts(self) -> float | None:
        """The enforced power limit, where the driver tells it."""
        try:
            return int(pynvml.nvmlDeviceGetEnforcedPowerLimit(self.handle)) / 1000
        except pynvml.NVMLError:
            return None

    def costs(self) -> list[CallCost]:
        """What each call costs that jouled makes."""
        return [_cost(name, call) for name, call in self._calls().items()]

    def _calls(self) -> dict[str, Callable[[], Any]]:
        def fields(*wanted: int) -> Callable[[], Any]:
            return lambda: _raise_refusals(pynvml.nvmlDeviceGetFieldValues(self.handle, list(wanted)))

        return {
            "nvmlDeviceGetTotalEnergyConsumption": self.millijoules,
            "nvmlDeviceGetPowerUsage": lambda: pynvml.nvmlDeviceGetPowerUsage(self.handle),
            "nvmlDeviceGetEnforcedPowerLimit": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(self.handle),
            "field TOTAL_ENERGY_CONSUMPTION": fields(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
            "field POWER_AVERAGE": fields(pynvml.NVML_FI_DEV_POWER_AVERAGE),
            "field POWER_INSTANT": fields(pynvml.NVML_FI_DEV_POWER_INSTANT),
            "8 fields PERF_POLICY": fields(*THROTTLE_FIELDS),
        }


class Counter:
    """The counter's moves. Between two of them it stands still, so only they are kept."""

    def __init__(self, read: Callable[[], int], clock: Clock) -> None:
        self.moves: list[Move] = []
        self.costs_ns: list[int] = []
        self._read = read
        self._clock = clock

    def poll(self) -> None:
        """Look once."""
        before_ns = self._clock.now_ns()
        value = self._read()
        after_ns = self._clock.now_ns()
        self.costs_ns.append(after_ns - before_ns)
        if not self.moves or value != self.moves[-1].millijoules:
            self.moves.append(Move((before_ns + after_ns) // 2, value))

    def cost_under_load(self) -> CallCost:
        """What the polls cost during the run."""
        return _summary("nvmlDeviceGetTotalEnergyConsumption, polled during the run", self.costs_ns)


class Poller:
    """Polls a counter in a thread, every 20 ms, while the `with` block runs. A failing poll is raised at its end."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="counter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended.wait(POLL_SECONDS):
                self._counter.poll()
        except pynvml.NVMLError as error:
            self._failure = error


def _raise_refusals(entries: Any) -> None:
    """The call succeeds where its fields failed."""
    for entry in entries:
        if entry.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(entry.nvmlReturn)


def _cost(name: str, call: Callable[[], Any]) -> CallCost:
    costs_ns: list[int] = []
    end_ns = time.monotonic_ns() + round(COST_SECONDS * 1e9)
    try:
        while len(costs_ns) < COST_CALLS and (not costs_ns or time.monotonic_ns() < end_ns):
            before_ns = time.monotonic_ns()
            call()
            costs_ns.append(time.monotonic_ns() - before_ns)
    except pynvml.NVMLError as error:
        return CallCost(name, len(costs_ns), None, None, str(error))
    return _summary(name, costs_ns)


def _summary(name: str, costs_ns: list[int]) -> CallCost:
    ordered = sorted(costs_ns)
    if not ordered:
        return CallCost(name, 0, None, None)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return CallCost(name, len(ordered), statistics.median(ordered) / 1000, p99 / 1000)
