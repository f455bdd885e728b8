"""Power meters that publish over MQTT: Shelly, Tasmota, Zigbee2MQTT, and others that send JSON.

Readings are stamped when their message arrives. What the broker had retained is old, nobody knows how old: it is never
taken as a reading; only its word that a device is offline counts.
"""

import ssl
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.mqtt_meter_client import Broker, Subscription
from jouled_collectors.power.mqtt_meter_payload import available, said
from jouled_collectors.power.mqtt_meter_settings import MeterSettings, MqttMeterSettings
from jouled_collectors.power.mqtt_meter_state import MeterState
from jouled_collectors.power.secret_file import read_secret

DEFAULT_INTERVAL_SECONDS = 1.0
"""A read only hands over what has arrived; no meter publishes more often than about once a second."""


class MqttMeterCollector:
    """Hears the broker in a thread of its own."""

    name: ClassVar[str] = "mqtt_meter"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = MqttMeterSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Connect and subscribe. Raises `SourceError`."""
        options = cast("MqttMeterSettings", settings)
        source = MqttMeterSource(options, clock, _broker(options))
        source.open()
        return source


class MqttMeterSource:
    """The meters of one broker.

    A lost connection is raised by `read`. That all meters are silent is not: to hear them the connection must stay.
    """

    def __init__(self, settings: MqttMeterSettings, clock: Clock, broker: Broker) -> None:
        self.parts: Mapping[str, SourceError | None] = {}
        self.interval_seconds = settings.interval_seconds or DEFAULT_INTERVAL_SECONDS
        self._clock = clock
        self._lock = threading.Lock()
        self._meters = [MeterState(meter, clock.now_ns()) for meter in settings.meters]
        # Those too that were never heard: without them a feed of two would look whole with one.
        self.devices: Sequence[Device] = tuple(meter.device for meter in self._meters)
        self._by_topic: dict[str, list[MeterState]] = {}
        self._by_availability: dict[str, list[MeterState]] = {}
        for meter in self._meters:
            for topic in data_topics(meter.settings):
                self._by_topic.setdefault(topic, []).append(meter)
            if topic := availability_topic(meter.settings):
                self._by_availability.setdefault(topic, []).append(meter)
        topics = sorted(self._by_topic.keys() | self._by_availability.keys())
        self._subscription = Subscription(broker, topics, self._hear)

    def open(self) -> None:
        """Connect and subscribe. Raises `SourceError`, also where the broker lets us hear no meter at all."""
        self._subscription.open()
        refused = self._subscription.refused
        for meter in self._meters:
            if all(topic in refused for topic in data_topics(meter.settings)):
                meter.refused = _not_let_read(meter.settings, refused[meter.settings.topic])
        errors = [meter.refused for meter in self._meters if meter.refused is not None]
        if len(errors) == len(self._meters):
            self.close()
            raise errors[0]

    def read(self) -> list[Reading]:
        """What arrived since the last read. Raises `SourceError` when the connection is lost."""
        if self._subscription.error is not None:
            raise self._subscription.error
        now_ns = self._clock.now_ns()
        with self._lock:
            self.devices = tuple(meter.device for meter in self._meters)
            self.parts = {meter.settings.name: meter.trouble(now_ns) for meter in self._meters}
            return [reading for meter in self._meters for reading in meter.take()]

    def close(self) -> None:
        """Disconnect."""
        self._subscription.close()

    def _hear(self, topic: str, payload: bytes, is_retained: bool) -> None:
        now_ns = self._clock.now_ns()
        with self._lock:
            is_available = available(payload) if topic in self._by_availability else None
            if is_available is not None:
                for meter in self._by_availability[topic]:
                    meter.tell_available(is_available)
            if is_retained:
                return
            for meter in self._by_topic.get(topic, ()):
                meter.hear(said(meter.settings, topic, payload), now_ns)


def data_topics(meter: MeterSettings) -> tuple[str, ...]:
    """Where its values come. A Shelly publishes on the first if `status_ntf` is on, on the second if `rpc_ntf` is."""
    if meter.kind == "shelly":
        return (meter.topic, f"{_shelly_prefix(meter)}/events/rpc")
    return (meter.topic,)


def availability_topic(meter: MeterSettings) -> str:
    """Where it is told whether it is there; empty: nowhere."""
    if meter.availability_topic or meter.kind == "json":
        return meter.availability_topic
    if meter.kind == "shelly":
        return f"{_shelly_prefix(meter)}/online"
    if meter.kind == "tasmota":
        return meter.topic.removesuffix("SENSOR") + "LWT"
    return f"{meter.topic}/availability"


def _shelly_prefix(meter: MeterSettings) -> str:
    return meter.topic.rpartition("/status/")[0]


def _not_let_read(meter: MeterSettings, code: int) -> SourceError:
    message = f"The broker does not let this user read {meter.topic} (reason code {code})"
    mend = f"Allow it in the broker's access list: topic read {meter.topic}"
    return SourceError(SourceState.DENIED, "not_authorized", message, mend=mend)


def _broker(settings: MqttMeterSettings) -> Broker:
    return Broker(
        host=settings.host,
        port=settings.port_number,
        tls=_tls(settings) if settings.tls else None,
        user=settings.user,
        password=read_secret(settings.password_file, "password_file", "[power.mqtt_meter]")
        if settings.password_file
        else "",
        client_id=settings.client_id,
        keepalive_seconds=settings.keepalive_seconds,
    )


def _tls(settings: MqttMeterSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        mend = f"Let ca_file {settings.ca_file} be a readable file of certificates (PEM)"
        raise SourceError(SourceState.DENIED, "ca_file", f"ca_file cannot be used: {error}", mend=mend) from error
    context.sslsocket_class = _TlsSocket
    return context


class _TlsSocket(ssl.SSLSocket):
    """Closes itself where the handshake fails: paho forgets to."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise
