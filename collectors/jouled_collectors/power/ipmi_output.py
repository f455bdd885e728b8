"""Reads what `ipmitool dcmi power reading` prints (1.8.19; older ones and look-alikes differ in spacing)."""

import re
from typing import NamedTuple

from jouled.model.errors import SourceError, SourceState

NO_VALUE_WATTS = 0xFFFF
"""What a BMC says that has no value; more does not fit into the answer (DCMI 1.5, 6.6.1)."""

_GAP = r"\s{0,80}:?\s{0,80}"
"""Bounded: the time of a search stays in proportion to the text, whatever it is."""

_WATTS = re.compile(rf"instantaneous\s+power\s+reading{_GAP}(\S{{1,40}})\s{{0,80}}W(?:atts?)?\b", re.IGNORECASE)
_STATISTICS = re.compile(
    r"(minimum\s+during|maximum\s+during|average\s+power\s+reading\s+over)\s+sampl(?:ing|e)\s+period"
    rf"{_GAP}([0-9]{{1,9}})\s{{0,80}}W",
    re.IGNORECASE,
)
_NO_PERIOD = re.compile(rf"sampling\s+period{_GAP}0{{1,40}}\s{{0,80}}(?:milli)?seconds", re.IGNORECASE)
_STATE = re.compile(rf"power\s+reading\s+state\s+is{_GAP}(\w{{1,40}})", re.IGNORECASE)
_ACTIVE = frozenset({"activated", "active"})


class Readout(NamedTuple):
    """What a BMC tells. most_watts: the highest of its sampling period, where it tells that."""

    watts: int
    most_watts: int | None


def readout(text: str) -> Readout | None:
    """The power in this output; `None` if it holds none. Raises `SourceError` for a value that is no measurement."""
    told, state = _WATTS.search(text), _STATE.search(text)
    if told is None or state is None:
        return None
    number = told[1]
    if re.fullmatch(r"[0-9]{1,9}", number) is None:
        raise _no_measurement("unreadable", f"The BMC's power is no whole number of watts ({number!r})")
    watts = int(number)
    statistics = {kind.split()[0].lower(): int(value) for kind, value in _STATISTICS.findall(text)}
    if watts >= NO_VALUE_WATTS:
        raise _no_measurement("sentinel", f"The BMC says {watts} W, which stands for no value")
    if state[1].lower() not in _ACTIVE and not _is_read_live(text, watts, statistics):
        raise _no_measurement("not_measuring", f"The BMC does not measure now: its power reading is {state[1]}")
    if watts == 0:
        raise _no_measurement("zero", "The BMC says 0 W for a node that runs")
    return Readout(watts, statistics.get("maximum"))


def _is_read_live(text: str, watts: int, statistics: dict[str, int]) -> bool:
    """OpenBMC reads its sensor when asked and keeps no statistics: it never sets the state (openbmc/openbmc#3257)."""
    return watts > 0 and _NO_PERIOD.search(text) is not None and list(statistics.values()) == [watts] * 3


def _no_measurement(reason: str, message: str) -> SourceError:
    return SourceError(
        SourceState.DOWN,
        reason,
        message,
        mend="Turn on power monitoring in the BMC, look for newer firmware, or use [power.redfish]; a BMC that just"
        " started needs a minute",
    )
