"""One BMC's power, asked no more often than every 2 s, and what a BMC says instead of it."""

from collections.abc import Sequence

from jouled.api import Clock
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.ipmi_faults import fault
from jouled_collectors.power.ipmi_output import Readout, readout
from jouled_collectors.power.ipmi_process import Output, Process
from jouled_collectors.power.ipmi_request import Request
from jouled_collectors.power.ipmi_sensor import SensorRecords, no_sensor, sensor_watts

DEVICE_NAME = "ipmi-node"

DCMI = ("-v", "dcmi", "power", "reading")
CSV = ("-v", "-c")
"""`-v`, as otherwise a refused password looks like a BMC that is off."""

NO_SENSOR = "Unable to find sensor id"

TIME_LIMIT_SECONDS = 5.0
SHORTEST_NS = nanoseconds(1.9)
"""Two seconds, the least a BMC should be left alone, less the jitter of a schedule of two seconds."""

CLIPPED_WATTS = frozenset({0xFF, 0x3FF})
"""The most that 8 and 10 bits hold: some BMCs keep the power in a register that narrow."""

CLIPPED_READS = 6
"""So many equal readings at such a limit are no measurement: at 10 s, a minute without a watt of change."""


class Meter:
    """Asks the BMC. It outlives an opened source, which ends at each failure and is soon opened again."""

    def __init__(self) -> None:
        self._process = Process()
        self._records = SensorRecords()
        self._asked_ns: int | None = None
        self._failure: SourceError | None = None
        self._clipped_reads = 0

    def ask(self, request: Request, sensor: str, clock: Clock) -> PowerReading | None:
        """The power now, by DCMI or by this sensor; where the BMC was asked just before, `None` or the same failure.

        Raises `SourceError`.
        """
        now_ns = clock.now_ns()
        if self._asked_ns is not None and now_ns - self._asked_ns < SHORTEST_NS:
            if self._failure is not None:
                raise self._failure
            return None
        self._asked_ns = now_ns
        self._failure = None
        try:
            return self._sensor_reading(request, sensor, clock) if sensor else self._dcmi_reading(request, clock)
        except SourceError as error:
            self._failure = error
            raise

    def _dcmi_reading(self, request: Request, clock: Clock) -> PowerReading:
        output, t_ns = self._run(request, DCMI, clock)
        told = None if output.is_stopped else readout(output.text)
        if told is None:
            raise fault(output, request.where)
        if self._is_clipped(told):
            raise SourceError(
                SourceState.DOWN,
                "clipped",
                f"{request.where} says {told.watts} W each time, the most that its register holds",
                mend="Update the BMC's firmware, or use [power.redfish]",
            )
        return PowerReading(DEVICE_NAME, t_ns, float(told.watts))

    def _sensor_reading(self, request: Request, sensor: str, clock: Clock) -> PowerReading:
        records = self._records.path(request, self._process)
        output, t_ns = self._run(request, (*CSV, "-S", str(records), "sdr", "get", sensor), clock)
        watts = None if output.is_stopped else sensor_watts(output.text, sensor)
        if watts is None:
            self._records.forget()  # the BMC that comes back may have new firmware, and its sensors other numbers
            raise no_sensor(sensor, request.where) if NO_SENSOR in output.text else fault(output, request.where)
        return PowerReading(DEVICE_NAME, t_ns, watts)

    def _run(self, request: Request, words: Sequence[str], clock: Clock) -> tuple[Output, int]:
        """What ipmitool printed, and the middle of its run."""
        before_ns = clock.now_ns()
        output = self._process.run(request, words, TIME_LIMIT_SECONDS)
        return output, (before_ns + clock.now_ns()) // 2

    def _is_clipped(self, told: Readout) -> bool:
        """A register at its limit never shows more as the highest of its period either."""
        is_at_limit = told.watts in CLIPPED_WATTS and told.most_watts == told.watts
        self._clipped_reads = self._clipped_reads + 1 if is_at_limit else 0
        return self._clipped_reads >= CLIPPED_READS
