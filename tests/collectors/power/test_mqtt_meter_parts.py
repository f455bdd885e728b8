"""What messages of MQTT meters say, and what is made of them: no broker yet."""

import json
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.app.config.load import settings_for
from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import ConfigurationError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.mqtt_meter import MqttMeterCollector
from jouled_collectors.power.mqtt_meter_payload import LARGEST_BYTES, MOST_MICROJOULES, SENTINELS, Said, available, said
from jouled_collectors.power.mqtt_meter_settings import MeterSettings, MqttMeterSettings
from jouled_collectors.power.mqtt_meter_state import MOST_PENDING, MeterState

SECOND = 10**9
KWH = 3_600_000_000_000
TOPICS = {
    "shelly": "shellyplusplugs-a0dd6c/status/switch:0",
    "tasmota": "tele/rack/SENSOR",
    "zigbee2mqtt": "zigbee2mqtt/rack",
    "json": "meters/rack",
}
RPC = "shellyplusplugs-a0dd6c/events/rpc"

SHELLY = (
    b'{"id":0,"source":"init","output":true,"apower":812.4,"voltage":230.1,"current":3.53,"aenergy":{"total":1234.567,'
    b'"by_minute":[13540.1,13539.8,13541.0],"minute_ts":1716400000},"temperature":{"tC":41.2,"tF":106.2}}'
)
SHELLY_RPC = (
    b'{"src":"shellyplusplugs-a0dd6c","dst":"shellyplusplugs-a0dd6c/events","method":"NotifyStatus","params":'
    b'{"ts":1716400060.21,"switch:0":{"id":0,"aenergy":{"by_minute":[1.0,2.0,3.0],"minute_ts":1716400059,'
    b'"total":1248.107}}}}'
)
SHELLY_RPC_POWER = b'{"method":"NotifyStatus","params":{"ts":1716400061.0,"switch:0":{"id":0,"apower":790.0}}}'
TASMOTA = (
    b'{"Time":"2024-05-22T12:00:00","ENERGY":{"TotalStartTime":"2023-01-01T00:00:00","Total":3.185,"Yesterday":0.5,'
    b'"Today":0.2,"Period":1,"Power":812,"ApparentPower":820,"ReactivePower":60,"Factor":0.99,"Voltage":230,'
    b'"Current":3.532}}'
)
ZIGBEE = b'{"current":3.53,"energy":12.34,"linkquality":120,"power":812,"state":"ON","voltage":230}'
KEYS = [
    "ENERGY",
    "Power",
    "Total",
    "power",
    "energy",
    "apower",
    "aenergy",
    "total",
    "a",
    "method",
    "params",
    "switch:0",
]


def meter(kind: str = "tasmota", **keys: object) -> MeterSettings:
    return msgspec.convert({"name": "rack", "kind": kind, "topic": TOPICS[kind], **keys}, MeterSettings)


def read(settings: MeterSettings, payload: bytes, topic: str = "") -> Said:
    return said(settings, topic or settings.topic, payload)


class TestPayload:
    @pytest.mark.parametrize(
        ("kind", "topic", "payload", "watts", "microjoules", "step"),
        [
            ("shelly", "", SHELLY, 812.4, 4_444_441_200_000, 3_600_000),
            ("shelly", RPC, SHELLY_RPC, None, 4_493_185_200_000, 3_600_000),
            ("shelly", RPC, SHELLY_RPC_POWER, 790.0, None, 0),
            ("tasmota", "", TASMOTA, 812.0, 11_466_000_000_000, 3_600_000_000),
            ("zigbee2mqtt", "", ZIGBEE, 812.0, 44_424_000_000_000, 36_000_000_000),
        ],
    )
    def test_each_kind_in_its_own_units(self, kind, topic, payload, watts, microjoules, step):
        found = read(meter(kind), payload, topic)
        assert found == Said(watts=watts, microjoules=microjoules, step_microjoules=step)

    @pytest.mark.parametrize(
        "payload",
        [
            b'{"method":"NotifyStatus","params":{"ts":1.0,"switch:1":{"id":1,"apower":5.0}}}',
            b'{"method":"NotifyStatus","params":{"ts":1.0,"switch:0":{"id":0,"output":true}}}',
            b'{"method":"NotifyEvent","params":{"ts":1.0,"events":[{"component":"switch:0","apower":4}]}}',
            b'{"method":"NotifyStatus","params":7}',
            b"[]",
        ],
    )
    def test_what_a_shelly_tells_of_others_is_no_fault(self, payload):
        assert read(meter("shelly"), payload, RPC) == Said()

    @pytest.mark.parametrize(
        ("unit", "amount", "microjoules"),
        [("Wh", "1.5", 5_400_000_000), ("kWh", "1.5", 5_400_000_000_000), ("J", "1.5", 1_500_000), ("J", "0", 0)],
    )
    def test_units_of_plain_json(self, unit, amount, microjoules):
        settings = meter("json", energy_path="e", energy_unit=unit)
        assert read(settings, b'{"e":%s}' % amount.encode()).microjoules == microjoules

    @pytest.mark.parametrize(
        ("path", "payload", "watts"),
        [
            ("a.b", b'{"a":{"b":3}}', 3.0),
            ("a.1.w", b'{"a":[{"w":1},{"w":2}]}', 2.0),
            ("/a.b/0", b'{"a.b":[4]}', 4.0),
            (".", b"812.5", 812.5),
            (".", b'"812.5"', 812.5),
            ("a", b'{"a":" 7e2 "}', 700.0),
        ],
    )
    def test_paths_and_numbers_as_text(self, path, payload, watts):
        assert read(meter("json", power_path=path), payload) == Said(watts=watts)

    @pytest.mark.parametrize(
        ("payload", "fault"),
        [
            (b"", "not_json"),
            (b"N/A", "not_json"),
            (b"\xff\xfe\x00", "not_json"),
            (b"[" * 60_000, "not_json"),
            (b'{"a":1' + b" " * LARGEST_BYTES + b"}", "too_large"),
            (b'{"b":1}', "missing"),
            (b'{"a":null}', "missing"),
            (b'{"a":"N/A"}', "not_a_number"),
            (b'{"a":"812 W"}', "not_a_number"),
            (b'{"a":"1_000"}', "not_a_number"),
            (b'{"a":"1e999"}', "not_a_number"),
            (b'{"a":NaN}', "not_a_number"),
            (b'{"a":Infinity}', "not_a_number"),
            (b'{"a":true}', "not_a_number"),
            (b'{"a":[1]}', "not_a_number"),
            (b'{"a":1%s}' % (b"0" * 400), "implausible"),
            (b'{"a":-1}', "negative"),
            (b'{"a":-812.5}', "negative"),
            *[(b'{"a":%d}' % value, "sentinel") for value in SENTINELS if value.is_integer()],
            (b'{"a":6553.5}', "sentinel"),
            (b'{"a":"4294967295"}', "sentinel"),
        ],
    )
    def test_what_is_no_value_is_absent_and_named(self, payload, fault):
        assert read(meter("json", power_path="a"), payload) == Said(faults=(fault,))

    def test_a_bad_field_leaves_the_good_one(self):
        settings = meter("json", power_path="p", energy_path="e")
        assert read(settings, b'{"p":-40,"e":2}') == Said(
            microjoules=2 * KWH, step_microjoules=KWH, faults=("negative",)
        )
        assert read(settings, b'{"p":40,"e":1e18}') == Said(watts=40.0, faults=("implausible",))

    def test_noise_of_floating_point_is_no_fine_counter(self):
        settings = meter("json", energy_path="e")
        assert read(settings, b'{"e":12.340000000000002}').step_microjoules == KWH // 100

    @pytest.mark.parametrize(
        ("payload", "expected"),
        [
            (b"Offline", False),
            (b"Online", True),
            (b"true", True),
            (b"false", False),
            (b'{"state":"offline"}', False),
            (b'{"state":"online"}', True),
            (b'{"state":', None),
            (b"{" * 9000, None),
            (b"", None),
            (b"\xff", None),
        ],
    )
    def test_availability(self, payload, expected):
        assert available(payload) is expected

    @given(kind=st.sampled_from(sorted(TOPICS)), payload=st.binary(max_size=300), is_rpc=st.booleans())
    def test_any_bytes_are_a_value_or_a_named_fault(self, kind, payload, is_rpc):
        self._check(kind, payload, is_rpc=is_rpc)

    @given(
        kind=st.sampled_from(sorted(TOPICS)),
        is_rpc=st.booleans(),
        content=st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(string.printable, max_size=6),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(KEYS),
                    inner | st.just("NotifyStatus"),
                    max_size=5,
                )
            ),
            max_leaves=12,
        ),
    )
    def test_any_json_is_a_value_or_a_named_fault(self, kind, content, is_rpc):
        self._check(kind, json.dumps(content).encode(), is_rpc=is_rpc)

    @given(payload=st.binary(max_size=100))
    def test_any_bytes_tell_of_availability_or_not(self, payload):
        assert available(payload) in (True, False, None)

    def _check(self, kind, payload, *, is_rpc):
        paths = {"power_path": "a.0", "energy_path": "energy"} if kind == "json" else {}
        found = read(meter(kind, **paths), payload, RPC if is_rpc else "")
        assert found.watts is None or 0 <= found.watts < float("inf")
        assert found.microjoules is None or 0 <= found.microjoules <= MOST_MICROJOULES
        if found.is_empty and not (kind == "shelly" and is_rpc):
            assert found.faults


class TestSettings:
    @pytest.mark.parametrize(
        "keys",
        [
            {"topic": "tele/+/SENSOR"},
            {"topic": "#"},
            {"topic": ""},
            {"topic": "tele/rack/STATE"},
            {"kind": "shelly", "topic": "shellyplug-1"},
            {"kind": "json", "topic": "a"},
            {"kind": "json", "topic": "a", "power_path": "w", "reading": "energy"},
            {"power_path": "a"},
            {"availability_topic": "a/#"},
            {"role": "gpu"},
            {"period_seconds": 0},
            {"name": ""},
            {"topc": "a"},
        ],
    )
    def test_meters_that_make_no_sense_are_refused(self, keys):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"name": "a", "kind": "tasmota", "topic": "tele/a/SENSOR", **keys}, MeterSettings)

    @pytest.mark.parametrize(
        "keys",
        [
            {"meters": []},
            {"meters": [{"name": "a", "kind": "tasmota", "topic": "tele/a/SENSOR"}] * 2},
            {"password_file": "/p"},
            {"ca_file": "/c"},
            {"port": 70_000},
            {"host": ""},
        ],
    )
    def test_brokers_that_make_no_sense_are_refused(self, keys):
        table = {"host": "h", "meters": [{"name": "a", "kind": "tasmota", "topic": "tele/a/SENSOR"}], **keys}
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(table, MqttMeterSettings)

    def test_what_the_operator_writes(self):
        table = {"host": "h", "tls": True, "meters": [{"name": "a", "kind": "shelly", "topic": "x/status/switch:0"}]}
        settings = settings_for(MqttMeterCollector, table)
        assert (settings.port_number, settings.meters[0].usual_seconds) == (8883, 60.0)
        with pytest.raises(ConfigurationError, match=r"meters\[0\].*topc"):
            settings_for(MqttMeterCollector, {"host": "h", "meters": [{"name": "a", "kind": "shelly", "topc": "x"}]})
        with pytest.raises(ConfigurationError, match="ends with /status"):
            settings_for(MqttMeterCollector, {"host": "h", "meters": [{"name": "a", "kind": "shelly", "topic": "x"}]})

    def test_a_source_that_must_be_told_its_broker_is_not_found_by_itself(self):
        with pytest.raises(TypeError):
            MqttMeterSettings()


class Heard:
    """A meter and the time."""

    def __init__(self, settings: MeterSettings):
        self.state, self.t_ns = MeterState(settings, 0), 0

    def hear(self, watts=None, kwh=None, *, step=KWH // 1000, after=10.0, faults=()):
        self.t_ns += round(after * SECOND)
        microjoules = None if kwh is None else round(kwh * KWH)
        self.state.hear(Said(watts=watts, microjoules=microjoules, step_microjoules=step, faults=faults), self.t_ns)
        return self.state.take()

    def trouble(self, after: float = 0.0):
        error = self.state.trouble(self.t_ns + round(after * SECOND))
        return None if error is None else (error.state, error.reason)


class TestBetterMeter:
    @pytest.mark.parametrize(
        ("watts", "period", "step", "method", "quality"),
        [
            (800.0, 10.0, KWH // 1000, "mqtt_tasmota_power", Quality.DERIVED),  # a step is 4.5 s of 10 s
            (800.0, 300.0, KWH // 1000, "mqtt_tasmota_energy", Quality.MEASURED),  # 1.5 % of 240 kJ
            (100.0, 300.0, KWH // 1000, "mqtt_tasmota_power", Quality.DERIVED),  # 12 %
            (100.0, 300.0, KWH // 100_000, "mqtt_tasmota_energy", Quality.MEASURED),
            (0.0, 300.0, KWH // 1000, "mqtt_tasmota_power", Quality.DERIVED),
        ],
    )
    def test_the_counter_if_its_step_is_small(self, watts, period, step, method, quality):
        heard = Heard(meter("tasmota"))
        for number in range(6):
            heard.hear(watts, 1 + number, step=step, after=period)
        device = heard.state.device
        assert (device.method, device.quality) == (method, quality)
        kind = EnergyReading if quality is Quality.MEASURED else PowerReading
        assert [type(reading) for reading in heard.hear(watts, 8, after=period)] == [kind]

    def test_one_or_the_other_never_both_and_no_way_back(self):
        heard = Heard(meter("tasmota"))
        kinds = [type(*heard.hear(800.0, 1 + number * 0.07, after=300)) for number in range(6)]
        assert kinds == [PowerReading] * 4 + [EnergyReading] * 2
        kinds = [type(*heard.hear(5.0, 2 + number * 0.001, after=10)) for number in range(20)]
        assert kinds == [EnergyReading] * 20

    def test_a_finest_digit_seen_once_is_the_step(self):
        heard = Heard(meter("json", power_path="p", energy_path="e"))
        for number in range(5):
            heard.hear(800.0, 1 + number, step=KWH // 100 if number else KWH // 100_000, after=10)
        assert heard.state.device.method == "mqtt_json_energy"

    def test_a_shelly_is_its_counter_from_the_first_message_on(self):
        heard = Heard(meter("shelly"))
        assert heard.hear(800.0) == []
        assert heard.hear(800.0, 1.0) == [EnergyReading("rack", 20 * SECOND, KWH)]

    @pytest.mark.parametrize("of", ["shelly", "tasmota"])
    @pytest.mark.parametrize(("reading", "kind"), [("energy", EnergyReading), ("power", PowerReading)])
    def test_what_the_operator_wants(self, of, reading, kind):
        heard = Heard(meter(of, reading=reading))
        kinds = {type(*heard.hear(800.0, 1 + number * 0.07, after=300)) for number in range(6)}
        assert kinds == {kind}

    def test_only_a_counter(self):
        heard = Heard(meter("json", energy_path="e"))
        assert heard.hear(kwh=0.5) == [EnergyReading("rack", 10 * SECOND, KWH // 2)]

    def test_a_power_is_stamped_at_the_middle_of_what_it_averages_over(self):
        heard = Heard(meter("tasmota", average_seconds=3.0))
        assert heard.hear(800.0) == [PowerReading("rack", 8_500_000_000, 800.0)]

    def test_the_device_says_what_it_is(self):
        device = MeterState(meter("tasmota", role="feed", feed="utility", max_watts=3600), 0).device
        assert (device.name, device.kind, device.parent) == ("rack", DeviceKind.FEED, "utility")
        assert (device.source, device.max_watts, device.wrap_microjoules) == ("mqtt_meter", 3600.0, None)


class TestCounter:
    @pytest.mark.parametrize(
        ("amounts", "told"),
        [
            ([1, 2, 3], [1, 2, 3]),
            ([5, 5, 5], [5, 5, 5]),  # frozen: the core's business
            ([5, 4, 6], [5, 6]),  # 4 came late
            ([5, 0, 0.5, 1], [5, 0.5, 1]),  # reset by the user
            ([5, 0, 0, 0.5], [5, 0, 0.5]),  # reset, and nothing drawn
            ([5, 3, 1, 2], [5, 2]),  # reset while 3 was late
            ([5, 5, 4, 6, 5, 7], [5, 5, 6, 7]),  # a second copy of each, one late
        ],
    )
    def test_a_fall_is_a_reset_only_if_the_next_message_confirms_it(self, amounts, told):
        heard = Heard(meter("json", energy_path="e"))
        readings = [reading for amount in amounts for reading in heard.hear(kwh=amount)]
        assert [reading.microjoules / KWH for reading in readings] == told

    def test_a_flood_is_bounded_and_the_newest_stay(self):
        state = MeterState(meter("json", energy_path="e"), 0)
        for number in range(3 * MOST_PENDING):
            state.hear(Said(microjoules=number, step_microjoules=1), number)
        readings = state.take()
        assert len(readings) == MOST_PENDING
        assert readings[-1].microjoules == 3 * MOST_PENDING - 1


class TestTrouble:
    DOWN = SourceState.DOWN

    def test_it_works(self):
        heard = Heard(meter("tasmota"))
        heard.hear(800.0, 1.0)
        assert heard.trouble() is None

    def test_silent_after_three_usual_periods_and_back(self):
        heard = Heard(meter("tasmota"))
        for number in range(5):
            heard.hear(800.0, 1 + number)
        assert heard.trouble(after=29.9) is None
        assert heard.trouble(after=30.1) == (self.DOWN, "silent")
        assert heard.state.take() == []
        for number in range(9):
            heard.hear(800.0, 9.0 + number, after=3600)
            assert heard.trouble() is None
        assert heard.trouble(after=30.1) == (self.DOWN, "silent"), "an outage is no usual period"

    def test_another_period_is_learned(self):
        heard = Heard(meter("tasmota"))
        for number in range(50):
            heard.hear(800.0, 1 + number, after=10 if number < 30 else 25)
        assert heard.trouble(after=74) is None
        assert heard.trouble(after=76) == (self.DOWN, "silent")

    def test_before_periods_are_learned_the_default_holds(self):
        heard = Heard(meter("tasmota"))
        assert heard.trouble(after=899) == (self.DOWN, "waiting")
        assert heard.trouble(after=901) == (self.DOWN, "silent")
        heard.hear(800.0)
        assert heard.trouble(after=899) is None
        assert heard.trouble(after=901) == (self.DOWN, "silent")

    def test_quick_reports_are_waited_for_as_long_as_the_core_waits(self):
        heard = Heard(meter("json", power_path="p"))
        for _ in range(6):
            heard.hear(800.0, after=1)
        assert heard.trouble(after=14.9) is None
        assert heard.trouble(after=15.1) == (self.DOWN, "silent")

    def test_a_burst_of_changes_does_not_make_a_shelly_silent(self):
        heard = Heard(meter("shelly"))
        for number in range(20):
            heard.hear(800.0, 1 + number, after=1)
        assert heard.trouble(after=60) is None
        assert heard.trouble(after=181) == (self.DOWN, "silent")

    def test_the_operator_knows_the_period(self):
        heard = Heard(meter("json", power_path="p", period_seconds=100))
        for _ in range(6):
            heard.hear(800.0, after=1)
        assert heard.trouble(after=299) is None
        assert heard.trouble(after=301) == (self.DOWN, "silent")

    def test_offline_at_once_and_alive_with_the_next_message(self):
        heard = Heard(meter("tasmota"))
        heard.hear(800.0)
        heard.state.tell_available(False)
        assert heard.trouble() == (self.DOWN, "offline")
        heard.state.tell_available(True)
        assert heard.trouble() is None
        heard.state.tell_available(False)
        heard.hear(800.0)
        assert heard.trouble() is None

    def test_messages_that_cannot_be_used(self):
        heard = Heard(meter("tasmota"))
        heard.hear(faults=("not_json",))
        assert heard.trouble() == (self.DOWN, "unreadable")
        assert "not_json" in heard.state.trouble(0).message
        assert heard.state.faults == {"not_json": 1}
        heard.hear(800.0)
        assert heard.trouble() is None
        heard.hear(faults=("missing",))
        assert heard.trouble() is None, "one odd message among good ones"
        assert heard.trouble(after=901) == (self.DOWN, "unreadable")

    def test_a_counter_that_vanishes_is_told_though_the_meter_speaks(self):
        heard = Heard(meter("tasmota", reading="energy", period_seconds=10))
        heard.hear(800.0, 1.0)
        for _ in range(4):
            assert heard.hear(800.0) == []
        assert heard.trouble() == (self.DOWN, "silent")
        assert "No energy" in heard.state.trouble(heard.t_ns).message
        assert heard.hear(800.0, 1.1) == [EnergyReading("rack", heard.t_ns, round(1.1 * KWH))]
        assert heard.trouble() is None
