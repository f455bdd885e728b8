"""A sensor of the BMC in place of DCMI, for BMCs that have no DCMI: `ipmitool sdr get`, read as its CSV."""

import re
import shutil
import tempfile
import weakref
from pathlib import Path

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.ipmi_faults import fault
from jouled_collectors.power.ipmi_process import Process
from jouled_collectors.power.ipmi_request import Request

FETCH_SECONDS = 30.0
"""Some 300 questions for 100 sensors, of 5 to 30 ms each over KCS."""

_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class SensorRecords:
    """What the BMC's sensors are and how their values are scaled, fetched once: it takes as long as 100 readings."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._where = ""

    def path(self, request: Request, process: Process) -> Path:
        """The file of this BMC's records. Raises `SourceError` if they cannot be fetched."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="jouled-ipmi-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        records = self._folder / "records"
        if self._where != request.where:
            records.unlink(missing_ok=True)
            output = process.run(request, ("-v", "sdr", "dump", str(records)), FETCH_SECONDS)
            if output.is_stopped or not records.exists() or not records.stat().st_size:
                raise fault(output, request.where)
            self._where = request.where
        return records

    def forget(self) -> None:
        """Fetch them anew next time."""
        self._where = ""


def sensor_watts(text: str, name: str) -> float | None:
    """The value of this sensor in the CSV; `None` if it does not stand there. Raises `SourceError` for no watts."""
    line = next((line for line in text.splitlines() if line.startswith(f"{name},")), None)
    if line is None:
        return None
    number, unit, status = [*line.removeprefix(f"{name},").split(","), "", "", ""][:3]
    if not number or status == "ns":
        raise SourceError(
            SourceState.DOWN, "not_measuring", f"The sensor {name} has no value", mend="See `ipmitool sdr list full`"
        )
    if unit != "Watts" or _NUMBER.fullmatch(number) is None:
        raise SourceError(
            SourceState.DOWN,
            "unreadable",
            f"The sensor {name} measures no watts ({number[:20]} {unit[:20]})",
            mend="Set sensor of [power.ipmi] to one that does, see `ipmitool sdr list full`",
        )
    if float(number) == 0:
        raise SourceError(
            SourceState.DOWN,
            "zero",
            f"The sensor {name} says 0 W for a node that runs",
            mend="Set sensor of [power.ipmi] to another one, see `ipmitool sdr list full`",
        )
    return float(number)


def no_sensor(name: str, where: str) -> SourceError:
    """The BMC has no sensor of this name."""
    return SourceError(
        SourceState.ABSENT,
        "no_sensor",
        f"{where} has no sensor {name}",
        mend="Set sensor of [power.ipmi] to a name that `ipmitool sdr list full` tells",
    )
