"""Every power source and every fault of its meter, in one table: state and reason, and what is told meanwhile.

Faults are caused below the real client library (tests/support/power_rigs.py). A faulty meter does not disturb the
others of its source, is told by a state and a word, and works again when it is mended. What the ledger is to judge
(wraps, resets, jumps, most frozen counters) is passed on as it is; at the end the ledger gets it.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import pytest
from tests.core.scenario import PARAMETERS
from tests.support.power_rigs import FAULTS, OF_THE_COUNT, RIGS, Rig

from jouled.api import Clock, HasParts, PowerSettings, PowerSource, Reading
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device
from jouled.model.errors import SourceError
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled.testing import hold_to_contract, trial

OK = ("ok", "")


class Row(NamedTuple):
    """What is to be seen. source, part: state and reason. told: what is told of the meter, `raw` (as it shows it),
    `gauge` (its power in place of its counter), `something` or `nothing`; of the others everything, unless `source` is
    not ok.
    """

    source: tuple[str, str] = OK
    part: tuple[str, str] = OK
    told: str = "nothing"


def whole(state: str, reason: str) -> Row:
    """Nothing can be read."""
    return Row(source=(state, reason))


def part(state: str, reason: str) -> Row:
    """This meter cannot be read; the others go on."""
    return Row(part=(state, reason))


RAW, GAUGE, SOMETHING, NOTHING = Row(told="raw"), Row(told="gauge"), Row(told="something"), Row()

NO_SUCH_FAULT = {
    "always_there": "every machine has it",
    "decimal": "a figure of any length; a meter that starts over does not say where: a reset",
    "gauge": "it tells power, which has no counter to wrap or to fall back",
    "kernel": "a file of the kernel: it answers at once, or the whole machine hangs",
    "library": "the library has no code for it",
    "narrow": "its counters have a range, which says what they cannot show",
    "numbers": "the kernel gives plain numbers, none of which stands for something else",
    "process": "the call hangs in the library: the daemon ends its process and starts another",
    "too_wide": "64 bits or more: no device lives so long",
}

TABLE: Mapping[str, Mapping[str, Row | str]] = {
    "nvml": {
        "absent": whole("absent", "library_not_found"),
        "denied": whole("denied", "no_permission"),
        "garbage": part("down", "nvml_999"),
        "frozen": GAUGE,
        "sentinel": part("down", "no_reading"),
        "wrapping": "too_wide",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "no_reading"),
        "hanging": "process",
        "flapping": part("down", "gpu_lost"),
    },
    "dcgm": {
        "absent": whole("down", "unreachable"),
        "denied": whole("denied", "unauthorized"),
        "garbage": whole("down", "no_rows"),
        "frozen": part("down", "frozen"),
        "sentinel": part("down", "gpu_missing"),
        "wrapping": "too_wide",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": GAUGE,
        "hanging": whole("down", "timeout"),
        "flapping": whole("down", "http_status"),
    },
    "amd": {
        "absent": whole("absent", "no_gpu"),
        "denied": whole("denied", "no_permission"),
        "garbage": part("down", "gpu_lost"),
        "frozen": whole("down", "frozen"),
        "sentinel": whole("down", "reading_vanished"),
        "wrapping": "too_wide",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": whole("down", "reading_vanished"),
        "hanging": "process",
        "flapping": part("down", "gpu_lost"),
    },
    "gaudi": {
        "absent": whole("absent", "no_card"),
        "denied": "library",
        "garbage": part("down", "card_lost"),
        "frozen": RAW,
        "sentinel": part("down", "no_reading"),
        "wrapping": "too_wide",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "no_reading"),
        "hanging": "process",
        "flapping": part("down", "card_lost"),
    },
    "rapl": {
        "absent": whole("absent", "no_powercap"),
        "denied": part("denied", "permission"),
        "garbage": part("down", "garbage"),
        "frozen": RAW,
        "sentinel": part("down", "beyond_range"),
        "wrapping": RAW,
        "reset": RAW,
        "jumping": RAW,
        "overflowing": "narrow",
        "hanging": "kernel",
        "flapping": part("down", "unreadable"),
    },
    "hwmon": {
        "absent": whole("absent", "no_meter"),
        "denied": part("denied", "permission"),
        "garbage": part("down", "garbage"),
        "frozen": RAW,
        "sentinel": part("down", "sentinel"),
        "wrapping": "too_wide",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "beyond_range"),
        "hanging": "kernel",
        "flapping": part("down", "unreadable"),
    },
    "cray": {
        "absent": whole("absent", "no_counters"),
        "denied": part("denied", "permission"),
        "garbage": part("down", "garbage"),
        "frozen": whole("down", "frozen"),
        "sentinel": part("down", "sentinel"),
        "wrapping": "too_wide",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "beyond_range"),
        "hanging": "kernel",
        "flapping": part("down", "unreadable"),
    },
    "estimate": {
        "absent": "always_there",
        "denied": whole("denied", "no_cpu_times"),
        "garbage": whole("denied", "no_cpu_times"),
        "frozen": NOTHING,
        "sentinel": "numbers",
        "wrapping": "too_wide",
        "reset": NOTHING,
        "jumping": SOMETHING,
        "overflowing": "gauge",
        "hanging": "kernel",
        "flapping": whole("denied", "no_cpu_times"),
    },
    "ipmi": {
        "absent": whole("absent", "no_device"),
        "denied": whole("denied", "credentials"),
        "garbage": whole("absent", "no_dcmi"),
        "frozen": whole("down", "clipped"),
        "sentinel": whole("down", "sentinel"),
        "wrapping": "gauge",
        "reset": "gauge",
        "jumping": RAW,
        "overflowing": "gauge",
        "hanging": whole("down", "unreachable"),
        "flapping": whole("down", "busy"),
    },
    "redfish": {
        "absent": part("down", "unreachable"),
        "denied": part("denied", "unauthorized"),
        "garbage": part("down", "no_reading"),
        "frozen": RAW,
        "sentinel": part("down", "no_reading"),
        "wrapping": "decimal",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "no_reading"),
        "hanging": part("down", "timeout"),
        "flapping": part("down", "busy"),
    },
    "snmp_pdu": {
        "absent": part("down", "timeout"),
        "denied": part("denied", "no_access"),
        "garbage": part("down", "outlet_missing"),
        "frozen": RAW,
        "sentinel": part("down", "outlet_missing"),
        "wrapping": RAW,
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "outlet_missing"),
        "hanging": part("down", "timeout"),
        "flapping": part("down", "outlet_missing"),
    },
    "mqtt_meter": {
        "absent": whole("down", "unreachable"),
        "denied": whole("denied", "unauthorized"),
        "garbage": part("down", "unreadable"),
        "frozen": RAW,
        "sentinel": part("down", "unreadable"),
        "wrapping": "decimal",
        "reset": RAW,
        "jumping": RAW,
        "overflowing": part("down", "unreadable"),
        "hanging": part("down", "silent"),
        "flapping": part("down", "offline"),
    },
    "modbus": {
        "absent": part("down", "unreachable"),
        "denied": whole("denied", "profiles_file"),
        "garbage": part("down", "no_answer"),
        "frozen": RAW,
        "sentinel": part("down", "sentinel"),
        "wrapping": RAW,
        "reset": RAW,
        "jumping": RAW,
        "overflowing": "narrow",
        "hanging": part("down", "no_answer"),
        "flapping": part("down", "no_answer"),
    },
}

CASES = [(name, fault) for name, rows in TABLE.items() for fault, row in rows.items() if isinstance(row, Row)]
COUNTED = [(name, fault) for name, fault in CASES if fault in OF_THE_COUNT]


class Moment(NamedTuple):
    """One attempt at a read (or to open the source), and what the victim showed then."""

    is_bad: bool
    t_ns: int
    shown: float
    outcome: tuple[str, str] = OK
    readings: Sequence[Reading] = ()
    devices: Sequence[Device] = ()
    parts: Mapping[str, SourceError | None] = {}

    def of(self, device: str) -> EnergyReading | PowerReading | None:
        """What was told of a device last: its counter, or where it has none its power."""
        told = [each for each in self.readings if each.device == device and not isinstance(each, DeviceStatus)]
        return max(told, key=lambda each: (isinstance(each, EnergyReading), each.t_ns), default=None)

    def state_of(self, name: str) -> tuple[str, str]:
        """State and reason of a part."""
        error = self.parts.get(name)
        return OK if error is None else (error.state.value, error.reason)


class Watched:
    """A collector whose every read is noted."""

    def __init__(self, rig: Rig, collector: Any) -> None:
        self.name, self.isolation, self.settings_type = collector.name, collector.isolation, collector.settings_type
        self.moments: list[Moment] = []
        self._rig = rig
        self._collector = collector

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        self._rig.before_open()
        try:
            source = self._collector.open(settings, clock)
        except SourceError as error:
            self._note(outcome=(error.state.value, error.reason))
            raise
        self._rig.source, read, close = source, source.read, source.close

        def noted() -> list[Reading]:
            try:
                readings = read()
            except SourceError as error:
                self._note(outcome=(error.state.value, error.reason))
                raise
            parts = dict(source.parts) if isinstance(source, HasParts) else {}
            self._note(readings=readings, devices=tuple(source.devices), parts=parts)
            return readings

        def closed() -> None:
            self._rig.source = None
            close()

        source.read, source.close = noted, closed
        return source

    def _note(self, **seen: Any) -> None:
        rig = self._rig
        self.moments.append(Moment(bool(rig.fault), rig.clock.time_ns, rig.shown, **seen))


def suffer(rig: Rig, fault: str) -> list[Moment]:
    """Let the fault come and go, twice if it flaps; an ended source is opened again as the daemon does it."""
    watched = Watched(rig, rig.collector())
    good, bad = [""] * rig.good_reads, [fault] * rig.bad_reads.get(fault, 2)
    is_from_the_start = fault in rig.from_the_start
    plan = ([] if is_from_the_start else good) + (bad + good) * (2 if fault == "flapping" else 1)
    rig.begin(fault)
    while plan:
        rig.tick()
        turn(rig, plan[0])
        # What is wrong with where the source looks is mended by opening it anew.
        stage = plan if rig.settings is rig.good_settings else [each for each in plan if each]

        def go_on(number: int) -> None:
            turn(rig, plan[number])  # noqa: B023 - the plan of this trial
            rig.clock.advance(rig.strides.get(fault, 0.0))
            rig.tick()

        done = trial(watched, rig.settings, rig.clock, reads=len(stage), between=go_on)
        assert done.state.value == "ok" or watched.moments[-1].is_bad, f"it fails without a fault: {done.message}"
        plan = plan[len(done.reads) :]
        while plan and plan[0]:
            plan.pop(0)
        turn(rig, "")
    return watched.moments


def turn(rig: Rig, fault: str) -> None:
    """Cause the fault, or mend it, if that is to change."""
    if fault and not rig.fault:
        rig.cause(fault)
    elif not fault and rig.fault:
        rig.mend()
        rig.clock.advance(rig.patience_seconds)


class Stories:
    """What happened to each source under each fault: seen once, looked at by several tests. One rig runs at a time."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._rig: Rig | None = None
        self._seen: dict[tuple[str, str], list[Moment]] = {}

    def rig(self, name: str) -> Rig:
        if self._rig is None or self._rig.name != name:
            self.close()
            self._rig = RIGS[name](self._folders.mktemp(name))
        return self._rig

    def of(self, name: str, fault: str) -> list[Moment]:
        if (name, fault) not in self._seen:
            self._seen[name, fault] = suffer(self.rig(name), fault)
        return self._seen[name, fault]

    def close(self) -> None:
        if self._rig is not None:
            self._rig.close()
            self._rig = None


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    made = Stories(tmp_path_factory)
    yield made
    made.close()


def ends_of_spells(moments: Sequence[Moment], *, is_bad: bool) -> list[Moment]:
    """The last moments of the times in which all was well, or was not."""
    following = [*(each.is_bad for each in moments[1:]), not moments[-1].is_bad]
    return [each for each, after in zip(moments, following, strict=True) if each.is_bad is is_bad is not after]


def value(reading: EnergyReading | PowerReading | None) -> float | None:
    """What it says."""
    return reading.microjoules if isinstance(reading, EnergyReading) else reading.watts if reading else None


def kind(moment: Moment, device: str) -> str:
    """How a device is told of, in the words of the table."""
    reading = moment.of(device)
    if reading is None:
        return "nothing"
    return "raw" if value(reading) == pytest.approx(moment.shown, rel=1e-12) else "something"


def test_the_table_is_complete() -> None:
    installed = {point.name for point in entry_points(group="jouled.power")}
    assert TABLE.keys() == RIGS.keys() == installed - {"twin"}
    for name, rows in TABLE.items():
        assert list(rows) == list(FAULTS), name
        for fault, row in rows.items():
            assert isinstance(row, Row) or row in NO_SUCH_FAULT, (name, fault)
            is_process = RIGS[name].collector_type.isolation == "process"
            assert row != "process" or is_process, f"a hanging {name} is nobody's process"


@pytest.mark.parametrize("name", RIGS)
def test_a_healthy_meter_keeps_the_contract(stories: Stories, name: str) -> None:
    rig = stories.rig(name)
    rig.begin("")
    rig.tick()

    def go_on(_: int) -> None:
        rig.clock.advance(1.0)
        rig.tick()

    first = hold_to_contract(Watched(rig, rig.collector()), rig.settings, go_on)
    assert {reading.device for readings in first.reads for reading in readings} == {each.name for each in first.devices}
    assert rig.victim in {each.name for each in first.devices}


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_each_fault_has_its_state_and_reason(stories: Stories, name: str, fault: str) -> None:
    rig, row, moments = RIGS[name], TABLE[name][fault], stories.of(name, fault)
    assert isinstance(row, Row)
    others = {device.name for each in moments for device in each.devices} - {rig.victim}
    spells = ends_of_spells(moments, is_bad=True)
    assert len(spells) == (2 if fault == "flapping" else 1)
    for bad in spells:
        assert bad.outcome == row.source
        assert bad.state_of(rig.part) == row.part
        assert {each for each in bad.parts if bad.state_of(each) != OK} <= {rig.part}
        if row.told == "gauge":
            assert isinstance(bad.of(rig.victim), PowerReading)
        else:
            assert kind(bad, rig.victim) == row.told
        if row.source == OK:
            assert {each for each in others if bad.of(each) is None} == set()


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_a_meter_that_is_mended_works_again(stories: Stories, name: str, fault: str) -> None:
    moments = stories.of(name, fault)
    devices = {device.name for each in moments for device in each.devices}
    spells = ends_of_spells(moments, is_bad=False)
    assert spells[-1] is moments[-1]
    for good in spells:
        assert good.outcome == OK
        assert {each: good.state_of(each) for each in good.parts} == dict.fromkeys(good.parts, OK)
        assert {each for each in devices if good.of(each) is None} == set()
        if TABLE[name][fault] != GAUGE:
            assert kind(good, RIGS[name].victim) == "raw"
    for moment in moments:
        assert all(each.microjoules < 2**63 for each in moment.readings if isinstance(each, EnergyReading))
        assert all((each.wrap_microjoules or 0) < 2**63 for each in moment.devices)


def energy_uj(pipeline: Pipeline, device: str, t_ns: int) -> float:
    """All energy of a device, in whichever family of counters it stands."""
    counters = pipeline.snapshot(t_ns).counters
    return sum(
        energy
        for family in ("device_energy_joules_total", "meter_energy_joules_total")
        for labels, energy in counters.get(family, {}).items()
        if labels[0] == device
    )


@pytest.mark.parametrize(("name", "fault"), COUNTED)
def test_in_the_ledger_no_total_goes_down_and_nothing_appears_twice(stories: Stories, name: str, fault: str) -> None:
    rig = RIGS[name]
    moments = [each for each in stories.of(name, fault) if each.outcome == OK]
    first = moments[0].of(rig.victim)
    assert first is not None
    pipeline = Pipeline(PARAMETERS)
    seen: dict[tuple[str, tuple[str, ...]], float] = {}
    totals_uj: list[float] = []
    for moment in moments:
        for device in moment.devices:
            pipeline.feed(device)
        pipeline.feed_readings(moment.readings)
        pipeline.advance(moment.t_ns)
        for family, series in pipeline.snapshot(moment.t_ns).counters.items():
            for labels, amount in series.items():
                assert amount >= seen.get((family, labels), 0), (family, labels)
                seen[family, labels] = amount
        totals_uj.append(energy_uj(pipeline, rig.victim, moment.t_ns))
        assert totals_uj[-1] <= rig.watts * (moment.t_ns - first.t_ns) / 1000 + rig.unit_uj
    before, last = moments[-2:]
    assert totals_uj[-1] > 0 or name == "estimate"  # a guess is in no device's total
    if isinstance(last.of(rig.victim), EnergyReading):
        assert totals_uj[-1] - totals_uj[-2] == last.shown - before.shown
    if fault == "wrapping":
        assert rig.range_counts is not None
        assert totals_uj[-1] == (last.shown - moments[0].shown) % (rig.range_counts * rig.unit_uj)
