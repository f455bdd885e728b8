"""The ways in which a GPU can tell its energy or power, best first, and how to know one that lies."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from jouled.model.device import Quality
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import MICROJOULES_PER_JOULE, seconds
from jouled_collectors.power import amd_values
from jouled_collectors.power.amd_errors import SOURCE_GONE, AmdError
from jouled_collectors.power.amd_library import Handle, Library
from jouled_collectors.power.amd_values import Sample

TRIAL_SECONDS = 0.5
"""Between the two looks at a counter: well above any period in which firmware may bring it up to date."""

LARGEST_DISAGREEMENT = 10.0
"""Counter and gauge may differ by this much in a trial: a GPU's highest power is up to 8 times its idle power, and the
gauge may lag. Counters that stand still or count in other units differ by more (ROCm/amdsmi issues 22, 38)."""


@dataclass(frozen=True, slots=True)
class Meter:
    """One way to read a device: a counter in microjoules, or a gauge in watts."""

    method: str
    counts_energy: bool
    take: Callable[[Library, Handle], Sample | None]

    @property
    def quality(self) -> Quality:
        """Energy that the device counted is measured; energy integrated from its power is derived."""
        return Quality.MEASURED if self.counts_energy else Quality.DERIVED

    def reading(self, device: str, t_ns: int, sample: Sample) -> EnergyReading | PowerReading:
        """What a sample taken at `t_ns` says."""
        if self.counts_energy:
            return EnergyReading(device, t_ns, int(sample.amount))
        return PowerReading(device, t_ns, sample.amount)


def _gauge(key: str) -> Callable[[Library, Handle], Sample | None]:
    return lambda library, handle: amd_values.power(library.call("amdsmi_get_power_info", handle), key)


COUNTER = Meter(
    "amdsmi_energy", True, lambda library, handle: amd_values.energy(library.call("amdsmi_get_energy_count", handle))
)

GAUGES = (
    Meter("amdsmi_power_current", False, _gauge("current_socket_power")),
    # Unshifted: AMD does not say over what time it averages.
    Meter("amdsmi_power_average", False, _gauge("average_socket_power")),
)

METERS = (COUNTER, *GAUGES)
"""In order of preference. amdsmi.h: the current power is of MI300 and later, the average of MI200, Navi and earlier."""


def sample(meter: Meter, library: Library, handle: Handle) -> Sample | None:
    """What a meter says, `None` if nothing. Raises `AmdError` only where the source as a whole is gone."""
    try:
        return meter.take(library, handle)
    except AmdError as error:
        if error.code in SOURCE_GONE:
            raise
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """What is best for a GPU: `None` where nothing answers. refused: answers not to be believed, by method."""

    meter: Meter | None
    refused: Mapping[str, Sample]


def choose(library: Library, handles: Sequence[Handle]) -> list[Choice]:
    """Try all meters of all GPUs, counters twice. Raises `AmdError` where the source as a whole is gone."""
    first = [{meter.method: sample(meter, library, handle) for meter in METERS} for handle in handles]
    begun_ns = time.monotonic_ns()
    if any(answers[COUNTER.method] for answers in first):
        time.sleep(TRIAL_SECONDS)
    choices = []
    for handle, answers in zip(handles, first, strict=True):
        counter = answers[COUNTER.method]
        later = sample(COUNTER, library, handle) if counter else None
        elapsed_seconds = seconds(time.monotonic_ns() - begun_ns)
        choices.append(_choice(answers, later, elapsed_seconds))
    return choices


def _choice(answers: Mapping[str, Sample | None], later: Sample | None, elapsed_seconds: float) -> Choice:
    told = {method: answer for method, answer in answers.items() if answer}
    counter = told.get(COUNTER.method)
    if counter and later:
        if is_frozen(counter, later):
            # All values come in one block, so the gauges stand still with it.
            return Choice(None, told)
        gauge = next((told[meter.method] for meter in GAUGES if meter.method in told), None)
        if gauge and disagree(counter, later, elapsed_seconds, gauge):
            refused = {COUNTER.method: later}
            return Choice(_best(told.keys() - refused.keys()), refused)
    return Choice(_best(told.keys()), {})


def _best(methods: Collection[str]) -> Meter | None:
    return next((meter for meter in METERS if meter.method in methods), None)


def is_frozen(before: Sample, after: Sample) -> bool:
    """Whether the library gives the same block again: not even the driver's time stamp moved."""
    return before.stamp_ns is not None and before == after


def disagree(before: Sample, after: Sample, elapsed_seconds: float, gauge: Sample) -> bool:
    """Whether the counter moved by far more or far less than the gauge says."""
    watts = (after.amount - before.amount) / MICROJOULES_PER_JOULE / elapsed_seconds
    return not gauge.amount / LARGEST_DISAGREEMENT <= watts <= gauge.amount * LARGEST_DISAGREEMENT
