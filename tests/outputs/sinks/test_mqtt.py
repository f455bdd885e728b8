"""The MQTT sink against the real broker: what subscribers hear, and that nothing counts that they did not."""

import asyncio
import gc
import logging
import signal
import socket

import msgspec
import pytest
from tests.support import mosquitto
from tests.support.mosquitto import Mosquitto, subscriber, until
from tests.support.snapshots import NOW_NS, receipt, snapshot
from tests.support.tools import free_port

from jouled.api import Delivery, RejectedRecord, TakesPoints, TakesReceipts
from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import Family, NumberedReceipt, Points
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.sinks import mqtt
from jouled.outputs.sinks.counts import SinkCounts
from jouled.outputs.sinks.mqtt import MqttSink, outcome
from jouled.outputs.sinks.mqtt_messages import Message, part
from jouled.outputs.sinks.mqtt_settings import MqttSettings
from jouled.outputs.sinks.place import Place, Receiver
from jouled.outputs.sinks.runner import Runner
from jouled.outputs.store import Behind

MOMENT = unpacked(1, packed(snapshot(), "1.0", NOW_NS - 3600 * 10**9))


def moment(number: int) -> Points:
    return msgspec.structs.replace(MOMENT, number=number, t_ns=NOW_NS + number * 10**9)


def receipts(*numbers: int) -> list[NumberedReceipt]:
    return [NumberedReceipt(number, receipt(number)) for number in numbers]


def json(payload) -> dict:
    return msgspec.json.decode(payload)


def on(heard, topic: str) -> list:
    return [message.payload for message in heard if str(message.topic) == topic]


def numbers(heard, topic: str) -> list[int]:
    return [json(payload)["number"] for payload in on(heard, topic)]


@pytest.fixture
def start(tmp_path):
    """Starts brokers; they end with the test."""
    started = []

    def make(*lines: str, tls=None) -> Mosquitto:
        started.append(Mosquitto(tmp_path / f"broker{len(started)}", *lines, tls=tls))
        return started[-1]

    yield make
    for broker in started:
        broker.kill()


@pytest.fixture
async def sink_to():
    """Opens sinks; they are closed with the test."""
    opened = []

    def make(broker: Mosquitto | int, node: str = "node17", **settings):
        port = broker if isinstance(broker, int) else broker.port
        made = {"host": "127.0.0.1", "port": port, "timeout_seconds": 3.0, **settings}
        opened.append(MqttSink().open(MqttSettings(**made), node))
        return opened[-1]

    yield make
    for sink in opened:
        await sink.close()


async def test_moments_and_receipts_are_heard_in_order_with_their_numbers(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    assert isinstance(sink, TakesPoints)
    assert isinstance(sink, TakesReceipts)
    async with subscriber(broker.port) as heard:
        assert await sink.points([moment(4), moment(5), moment(6)]) == Delivery(3)
        assert await sink.receipts(receipts(*range(11, 61))) == Delivery(50)  # more than may be in flight at once
        await until(lambda: len(on(heard, "jouled/node17/receipts")) == 50, "50 receipts")
    assert numbers(heard, "jouled/node17/metrics") == [4, 5, 6]
    assert numbers(heard, "jouled/node17/state") == [6]  # the newest one only
    assert numbers(heard, "jouled/node17/receipts") == list(range(11, 61))
    assert on(heard, "jouled/node17/status") == [b"online"]
    assert {message.qos for message in heard} == {1}


async def test_metrics_hold_every_series_with_its_labels(start, sink_to):
    broker = start()
    async with subscriber(broker.port) as heard:
        await sink_to(broker).points([moment(4)])
        await until(lambda: on(heard, "jouled/node17/metrics"), "metrics")
    whole = json(on(heard, "jouled/node17/metrics")[0])
    assert (whole["t_ns"], whole["since_ns"], whole["node"]) == (NOW_NS + 4 * 10**9, MOMENT.since_ns, "node17")
    families = {family["name"]: family for family in whole["families"]}
    assert list(families) == [family.name for family in MOMENT.families]
    for family in MOMENT.families:
        shown = families[family.name]
        assert (shown["type"], shown["unit"]) == (family.type, family.unit)
        got = {tuple(series["labels"][name] for name in family.labels): series for series in shown["series"]}
        assert {labels: series["value"] for labels, series in got.items() if "value" in series} == family.values
        assert family.histograms.keys() == {labels for labels, series in got.items() if "buckets" in series}
    histogram = families["jouled_request_energy_joules"]["series"][0]
    assert list(histogram["buckets"].items())[::12] == [("1.0", 5), ("+Inf", 125)]
    assert (histogram["count"], histogram["sum"]) == (125, 12345.5)


async def test_a_receipt_has_all_its_fields_and_its_number(start, sink_to):
    broker = start()
    async with subscriber(broker.port) as heard:
        await sink_to(broker).receipts(receipts(12))
        await until(lambda: on(heard, "jouled/node17/receipts"), "a receipt")
    fields = json(on(heard, "jouled/node17/receipts")[0])
    assert fields.pop("number") == 12
    assert msgspec.convert(fields, type(receipt())) == receipt(12)
    assert fields.keys() == set(receipt().__struct_fields__)


async def test_a_late_subscriber_finds_the_newest_state_and_nothing_else(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    await sink.points([moment(4), moment(5)])
    await sink.receipts(receipts(1))
    async with subscriber(broker.port) as heard:
        await until(lambda: len(heard) == 2, "the retained messages")
    assert all(message.retain for message in heard)
    assert {str(message.topic) for message in heard} == {"jouled/node17/status", "jouled/node17/state"}
    state = json(on(heard, "jouled/node17/state")[0])
    assert (state["number"], state["node"]) == (5, "node17")
    assert state["devices"]["gpu0"] == {"kind": "gpu", "energy_joules": 900000.000001, "power_watts": 310.0}
    assert state["devices"]["gpu7"] == {"kind": "gpu", "energy_joules": 900000.000001}  # silent: no power
    assert state["meters"]["feed"] == {"kind": "feed", "energy_joules": 2_000_000.0, "power_watts": 4300.0}
    assert state["engines"]["vllm-8000"]["tokens"]["generation"] == 1_000_000
    assert state["engines"]["vllm-8000"]["joules"]["decode"] == 640.000002
    assert state["boundaries"]["compute"] == {"energy_joules": MOMENT_COMPUTE_JOULES, "tokens_per_joule": 0.94}


MOMENT_COMPUTE_JOULES = snapshot().boundaries_uj["compute"] / 1e6


async def test_the_state_adds_up_models_and_keeps_guesses_and_devices_without_engine_apart(start, sink_to):
    broker = start()
    rows = {
        ("e", "m1", "decode", "measured"): 0.1,
        ("e", "m2", "decode", "measured"): 0.2,
        ("e", "m2", "decode", "estimated"): 7.0,
        ("", "", "idle", "measured"): 3.0,
    }
    labels = ("engine", "model_name", "owner", "quality")
    energy = Family(name="jouled_energy_joules_total", type="counter", labels=labels, values=rows)
    await sink_to(broker).points([msgspec.structs.replace(MOMENT, families=(energy,))])
    async with subscriber(broker.port) as heard:
        await until(lambda: on(heard, "jouled/node17/state"), "the state")
    state = json(on(heard, "jouled/node17/state")[0])
    assert state["engines"] == {"e": {"joules": {"decode": 0.3}, "estimated_joules": {"decode": 7.0}}}
    assert state["no_engine"] == {"joules": {"idle": 3.0}}


async def test_one_connection_serves_many_deliveries_of_both_streams(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    for number in range(1, 6):
        await asyncio.gather(sink.points([moment(number)]), sink.receipts(receipts(number)))
    assert broker.log().count("as jouled-node17") == 1


async def test_receipts_can_be_left_out(sink_to):
    assert sink_to(1883, receipts=False).most.keys() == {"points"}
    assert sink_to(1883).most.keys() == {"points", "receipts"}


async def test_topic_and_client_id_as_configured(start, sink_to):
    broker = start()
    await sink_to(broker, topic="lab/power", client_id="me").points([moment(1)])
    async with subscriber(broker.port) as heard:
        await until(lambda: len(heard) == 2, "the retained messages")
    assert {str(message.topic) for message in heard} == {"lab/power/status", "lab/power/state"}
    assert "as me (" in broker.log()


async def test_a_node_name_cannot_make_topics(start, sink_to):
    broker = start()
    await sink_to(broker, node="rack/1+\n#").points([moment(1)])
    async with subscriber(broker.port, "jouled/+/status") as heard:
        await until(lambda: heard, "the status")
    assert str(heard[0].topic) == "jouled/{}/status".format(part("rack/1+\n#"))
    assert part("gpu-0.rack") == "gpu-0.rack"
    assert part("a/b") != part("a+b") != part("a_b")
    assert not set("/+#\n") & set(part("rack/1+\n#"))


# --- who is let in ---


@pytest.fixture
def certificates(tmp_path):
    return mosquitto.certificates(tmp_path / "certificates")


async def test_tls_with_an_own_authority(start, sink_to, certificates):
    broker = start(tls=certificates)
    assert await sink_to(broker, tls=True, ca_file=str(certificates / "ca.crt")).points([moment(1)]) == Delivery(1)


async def test_a_broker_of_an_unknown_authority_is_not_trusted(start, sink_to, certificates, tmp_path):
    broker = start(tls=certificates)
    other = mosquitto.certificates(tmp_path / "others")
    for ca_file in ("", str(other / "ca.crt")):
        with pytest.raises(SinkError, match=r"certificate verify failed.*Check ca_file") as caught:
            await sink_to(broker, tls=True, ca_file=ca_file).points([moment(1)])
        assert caught.value.reason == "unreachable"


async def test_a_client_certificate_is_shown_where_the_broker_asks_for_one(start, sink_to, certificates):
    broker = start("require_certificate true", tls=certificates)
    tls = {"tls": True, "ca_file": str(certificates / "ca.crt")}
    with pytest.raises(SinkError) as caught:
        await sink_to(broker, **tls).points([moment(1)])
    assert caught.value.reason == "unreachable"
    files = {"cert_file": str(certificates / "client.crt"), "key_file": str(certificates / "client.key")}
    assert await sink_to(broker, **tls, **files).points([moment(1)]) == Delivery(1)


async def test_a_broker_that_hangs_up_is_told_at_once(start, sink_to, certificates):
    broker = start(tls=certificates)
    sink = sink_to(broker, timeout_seconds=1000.0)  # no TLS spoken: the broker hangs up
    async with asyncio.timeout(5):
        with pytest.raises(SinkError, match="hung up before it answered"):
            await sink.points([moment(1)])


async def test_the_password_opens_and_a_wrong_one_is_told_without_showing_it(start, sink_to, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    broker = start("allow_anonymous false", mosquitto.passwords(tmp_path, meter="s3cret"))
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("s3cret\n")
    wrong.write_text("gu3ss\n")
    assert await sink_to(broker, user="meter", password_file=str(right)).points([moment(1)]) == Delivery(1)
    with pytest.raises(SinkError, match=r"refuses the connection.*Check user") as caught:
        await sink_to(broker, user="meter", password_file=str(wrong)).points([moment(1)])
    assert caught.value.reason == "unauthorized"
    assert "gu3ss" not in str(caught.value) + caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("allowed", ["jouled/node17/state", "jouled/node17/metrics", "elsewhere/#"])
async def test_a_message_that_the_access_list_forbids_is_noticed_and_nothing_counts(start, sink_to, tmp_path, allowed):
    lines = ["topic read #", f"topic write {allowed}", "topic write jouled/node17/status"]
    sink = sink_to(start(mosquitto.access(tmp_path, *(lines if allowed != "elsewhere/#" else lines[:2]))))
    made, counts = carry(sink.points, "points", [moment(number) for number in range(1, 4)])
    await made.step()
    assert counts.failures == {"denied": 1}
    assert (made.place.taken, counts.records) == (0, {})
    assert "refuses messages to jouled/node17/" in made.trouble
    assert "access list" in made.trouble
    with pytest.raises(SinkError, match="jouled/node17/") as caught:
        await sink.receipts(receipts(1))
    assert caught.value.reason == "denied"


async def test_a_mended_access_list_needs_no_new_connection(start, sink_to, tmp_path):
    broker = start(mosquitto.access(tmp_path, "topic read #"))
    sink = sink_to(broker)
    with pytest.raises(SinkError):
        await sink.points([moment(1)])
    mosquitto.access(tmp_path, "topic readwrite #")
    broker.signal(signal.SIGHUP)

    async def taken() -> bool:
        try:
            return await sink.points([moment(1)]) == Delivery(1)
        except SinkError:
            return False

    async with asyncio.timeout(5):
        while not await taken():
            pass
    assert broker.log().count("as jouled-node17") == 1


# --- what breaks ---


def carry(send, kind, spool, position: int = 0) -> tuple[Runner, SinkCounts]:
    """The real runner, with a list as spool and a sleep that does not."""

    async def read(after: int, most: int):
        return Behind([record for record in spool if record.number > after][:most], [])

    async def no_sleep(_seconds: float) -> None:
        await asyncio.sleep(0)

    counts = SinkCounts()
    made = Runner(
        "mqtt",
        kind,
        read=read,
        send=send,
        most=3,
        timeout_seconds=3.0,
        place=Place(position, position, 0.0),
        receiver=Receiver(),
        counts=counts,
        wall_ns=lambda: NOW_NS,
        sleep=no_sleep,
    )
    return made, counts


async def test_nobody_listens(sink_to):
    with pytest.raises(SinkError, match=r"127\.0\.0\.1:\d+ cannot be reached.*refused") as caught:
        await sink_to(free_port()).points([moment(1)])
    assert caught.value.reason == "unreachable"


async def test_a_broker_killed_and_started_again_misses_nothing(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    spool = [moment(number) for number in range(1, 14)]
    made, counts = carry(sink.points, "points", spool)
    async with subscriber(broker.port) as before:
        await made.step()
        await made.step()
        await until(lambda: len(on(before, "jouled/node17/metrics")) == 6, "the first two deliveries")
        broker.kill()
        await made.step()
        assert made.place.taken == 6
        assert counts.failures == {"unreachable": 1}
    broker.start()
    async with subscriber(broker.port) as after:
        running = asyncio.create_task(made.run())
        await until(lambda: made.place.taken == 13, "the rest")
        running.cancel()
        await until(lambda: len(on(after, "jouled/node17/metrics")) == 7, "the rest")
    heard = numbers(before, "jouled/node17/metrics") + numbers(after, "jouled/node17/metrics")
    assert heard == list(range(1, 14))
    assert on(after, "jouled/node17/status") == [b"online"]
    assert counts.records == {"points": {"accepted": 13}}


@pytest.fixture
def complaints(caplog):
    """Tells what asyncio and the MQTT library have logged, of exceptions that nobody looked at among other things."""
    gc.collect()  # those of other tests
    caplog.clear()

    def logged() -> list[str]:
        gc.collect()
        return [record.getMessage() for record in caplog.records if record.name in {"asyncio", "mqtt"}]

    return logged


async def test_a_broker_that_is_lost_and_found_again_leaves_no_traceback(start, sink_to, complaints):
    broker = start()
    sink = sink_to(broker)
    for number in range(1, 6):
        assert await sink.points([moment(number)]) == Delivery(1)
        broker.kill()
        with pytest.raises(SinkError):  # a task of its own: the loop sees the end and sends in the same turn
            await asyncio.create_task(sink.points([moment(number + 1)]))
        broker.start()
        assert await sink.points([moment(number + 1)]) == Delivery(1)
        broker.kill()
        await until(lambda: not sink._client.is_up, "the end is seen")
        broker.start()
    assert await sink.points([moment(7)]) == Delivery(1)
    assert complaints() == []


async def test_a_broker_that_sleeps_when_asked_to_connect_gets_no_connection_that_stays(start, sink_to, complaints):
    broker = start()
    broker.signal(signal.SIGSTOP)
    with pytest.raises(SinkError, match="cannot be reached: Operation timed out"):
        await sink_to(broker, timeout_seconds=0.5).points([moment(1)])
    broker.signal(signal.SIGCONT)
    await until(lambda: "Client jouled-node17 disconnected." in broker.log(), "it has left")
    assert complaints() == []


async def test_a_broker_killed_in_a_delivery_is_noticed_long_before_the_time_is_up(start, sink_to):
    broker = start()
    sink = sink_to(broker, timeout_seconds=1000.0)
    await sink.points([moment(1)])
    broker.signal(signal.SIGSTOP)
    delivery = asyncio.create_task(sink.receipts([NumberedReceipt(2, receipt(2))]))
    await asyncio.sleep(0)
    broker.kill()
    async with asyncio.timeout(5):
        with pytest.raises(SinkError, match="ended the connection") as caught:
            await delivery
    assert caught.value.reason == "unreachable"


async def test_a_broker_that_does_not_answer_costs_one_time_limit_and_a_new_connection(start, sink_to):
    broker = start()
    sink = sink_to(broker, timeout_seconds=0.5)
    await sink.points([moment(1)])
    broker.signal(signal.SIGSTOP)
    async with asyncio.timeout(0.5):  # as the runner does
        with pytest.raises(SinkError, match="does not confirm in time") as caught:
            await sink.points([moment(2)])
    assert caught.value.reason == "timeout"
    broker.signal(signal.SIGCONT)
    assert await sink.points([moment(2)]) == Delivery(1)
    assert broker.log().count("as jouled-node17") == 2


async def test_repeats_after_a_crash_are_told_by_their_number(start, sink_to):
    broker = start()
    spool = receipts(*range(1, 8))
    async with subscriber(broker.port) as heard:
        first, _ = carry(sink_to(broker).receipts, "receipts", spool)
        await first.step()
        second, _ = carry(sink_to(broker).receipts, "receipts", spool)  # nothing of it was committed
        await second.drain()
        await until(lambda: len(on(heard, "jouled/node17/receipts")) == 10, "the receipts")
    payloads = on(heard, "jouled/node17/receipts")
    assert numbers(heard, "jouled/node17/receipts") == [1, 2, 3, 1, 2, 3, 4, 5, 6, 7]
    assert payloads[:3] == payloads[3:6]
    assert len({json(payload)["id"] for payload in payloads}) == 7


async def test_the_last_will_speaks_for_a_connection_that_broke(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    await sink.points([moment(1)])
    async with subscriber(broker.port, "jouled/node17/status") as heard:
        sink._client._client.socket().shutdown(socket.SHUT_RDWR)
        await until(lambda: len(heard) == 2, "the last will")
        assert [message.payload for message in heard] == [b"online", b"offline"]
        assert await sink.points([moment(2)]) == Delivery(1)
        await until(lambda: len(heard) == 3, "it is back")
        assert heard[2].payload == b"online"


async def test_a_connection_that_is_given_up_leaves_its_last_will(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    await sink.points([moment(1)])
    async with subscriber(broker.port, "jouled/node17/status") as heard:
        sink._client.drop()
        await until(lambda: len(heard) == 2, "the last will")
    assert heard[1].payload == b"offline"


async def test_close_says_offline_and_leaves_properly(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    async with subscriber(broker.port, "jouled/node17/status") as heard:
        await sink.points([moment(1)])
        await sink.close()
        await until(lambda: "Client jouled-node17 disconnected." in broker.log(), "a proper goodbye")
        await sink_to(broker).points([moment(2)])
        await until(lambda: len(heard) == 3, "the next one")
    assert [message.payload for message in heard] == [b"online", b"offline", b"online"]  # no last will in between


async def test_close_does_not_wait_for_a_broker_that_sleeps(start, sink_to, monkeypatch):
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 0.2)
    broker = start()
    sink = sink_to(broker)
    await sink.points([moment(1)])
    broker.signal(signal.SIGSTOP)
    async with asyncio.timeout(1):
        await sink.close()


async def test_a_delivery_cancelled_while_it_connects_leaves_no_connection_behind(start, sink_to):
    broker = start()
    sink = sink_to(broker)
    delivery = asyncio.create_task(sink.receipts([NumberedReceipt(1, receipt(1))]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # its thread is connecting now
    delivery.cancel()
    await asyncio.gather(delivery, return_exceptions=True)
    await until(lambda: "New client connected" in broker.log() or "disconnect" in broker.log(), "the thread is through")
    await until(lambda: broker.log().count("New connection") == 1 + broker.log().count("isconnected"), "it has left")


# --- what the broker does not take ---


async def test_a_message_larger_than_the_broker_takes_is_given_up_and_the_others_go_on(start, sink_to):
    broker = start("max_packet_size 1500")
    small = [NumberedReceipt(number, receipt(number)) for number in (1, 3)]
    large = NumberedReceipt(2, receipt(2, method={"why": "x" * 2000}))
    sink = sink_to(broker)
    async with subscriber(broker.port) as heard:
        delivery = await sink.receipts([small[0], large, small[1]])
        await until(lambda: len(on(heard, "jouled/node17/receipts")) == 2, "the small ones")
    assert delivery.taken == 3
    assert [(refused.index, refused.reason) for refused in delivery.rejected] == [(1, "too_large")]
    assert numbers(heard, "jouled/node17/receipts") == [1, 3]


async def test_no_more_messages_are_in_flight_than_the_broker_allows(start, sink_to):
    broker = start("max_inflight_messages 3")
    sink = sink_to(broker)
    await sink.points([moment(1)])
    broker.signal(signal.SIGSTOP)
    delivery = asyncio.create_task(sink.receipts(receipts(*range(1, 41))))
    paho = sink._client._client
    await until(lambda: len(paho._out_messages) == 40, "all are with the library")
    assert paho._inflight_messages == 3
    broker.signal(signal.SIGCONT)
    assert await delivery == Delivery(40)


def test_what_was_confirmed_before_the_trouble_counts():
    head, records = [Message("t/state", b"")], [Message("t/metrics", b"")] * 4
    assert outcome(head, records, [0, 16, 0, 0, 0]) == (Delivery(4), None)
    assert outcome(head, records, [0, 0, 0]) == (Delivery(2), None)
    assert outcome(head, records, []) == (Delivery(0), None)
    delivery, failure = outcome(head, records, [0, 0, 0, 151, 0])
    assert (delivery, failure.reason) == (Delivery(2), "throttled")
    delivery, failure = outcome(head, records, [135, 0, 0, 0, 0])
    assert (delivery, failure.reason) == (Delivery(0), "denied")
    delivery, failure = outcome(head, records, [0, 153, 0, 135, 0])
    assert (delivery.taken, [r.index for r in delivery.rejected], failure.reason) == (2, [0], "denied")
    assert isinstance(delivery.rejected[0], RejectedRecord)


# --- Home Assistant ---


async def test_home_assistant_finds_power_and_energy_of_every_device(start, sink_to):
    broker = start()
    await sink_to(broker, discovery=True).points([moment(1)])
    async with subscriber(broker.port, "homeassistant/#") as heard:
        await until(lambda: len(heard) == 29, "the configurations")
        for message in heard:
            check_config(str(message.topic), json(message.payload))
    assert all(message.retain for message in heard)
    ids = {json(message.payload)["unique_id"] for message in heard}
    assert len(ids) == 29  # 12 devices and 3 meters, one of them silent since the start
    assert {"jouled_node17_gpu0_power", "jouled_node17_gpu7_energy", "jouled_node17_feed_power"} <= ids


def check_config(topic: str, config: dict) -> None:
    """Home Assistant's rules: "MQTT" (discovery topic), "MQTT sensor" (fields), "Sensor" (units of a device class)."""
    assert topic == f"homeassistant/sensor/{config['unique_id']}/config"
    assert set(config["unique_id"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert config["state_topic"] == "jouled/node17/state"
    assert config["availability_topic"] == "jouled/node17/status"
    assert config["device"]["identifiers"] == ["jouled_node17"]
    assert config["origin"]["name"] == "jouled"
    expected = {"power": ("W", "measurement"), "energy": ("kWh", "total_increasing")}
    assert (config["unit_of_measurement"], config["state_class"]) == expected[config["device_class"]]
    assert config["name"]
    assert "value_json." in config["value_template"]


async def test_configurations_are_sent_once_a_connection_and_for_new_devices(start, sink_to):
    broker = start()
    sink = sink_to(broker, discovery=True, discovery_prefix="ha")
    async with subscriber(broker.port, "ha/#") as heard:
        await sink.points([moment(1)])
        await sink.points([moment(2)])
        await until(lambda: len(heard) == 29, "the configurations")
        await sink.points([with_device(moment(3), 'odd/"gpu"')])
        await until(lambda: len(heard) == 30, "one more device")
        assert json(heard[-1].payload)["name"] == 'odd/"gpu" power'
        assert str(heard[-1].topic).count("/") == 3
        assert r'value_json.devices.get("odd/\"gpu\"", {})' in json(heard[-1].payload)["value_template"]
        sink._client.drop()
        await sink.points([moment(4)])
        await until(lambda: len(heard) == 59, "all of them on a new connection")


def with_device(made: Points, name: str) -> Points:
    families = tuple(
        msgspec.structs.replace(family, values={**family.values, (name,): 10.0})
        if family.name == "jouled_device_power_watts"
        else family
        for family in made.families
    )
    return msgspec.structs.replace(made, families=families)


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": ""}, "host"),
        ({"port": 0}, "port 0"),
        ({"port": 70000}, "port 70000"),
        ({"topic": "a/#"}, "topic"),
        ({"topic": "a/+/b"}, "topic"),
        ({"topic": "$SYS"}, "topic"),
        ({"topic": "a/"}, "topic"),
        ({"topic": "a\n"}, "topic"),
        ({"discovery_prefix": ""}, "discovery_prefix"),
        ({"keepalive_seconds": 0}, "keepalive_seconds"),
        ({"password_file": "/nowhere"}, "without user"),
        ({"user": "me", "password_file": "/nowhere"}, "/nowhere cannot be read"),
        ({"tls": True, "ca_file": "/nowhere"}, "/nowhere cannot be used"),
        ({"tls": True, "key_file": "/nowhere"}, "without cert_file"),
        ({"ca_file": "/nowhere"}, "without tls"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        MqttSink().open(MqttSettings(**settings), "node17")
