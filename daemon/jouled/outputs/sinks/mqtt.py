"""MQTT: each moment and receipt as a JSON message, and a retained state for dashboards and home automation.

Needs a broker that speaks MQTT 5 (Eclipse Mosquitto from 1.6 on, EMQX, HiveMQ, VerneMQ, RabbitMQ from 3.13 on): only
there does it say that it refused a message. Messages go with QoS 1.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from jouled.api import Delivery, OpenSink, RejectedRecord, SinkSettings
from jouled.model.errors import SinkError
from jouled.model.points import Kind, NumberedReceipt, Points
from jouled.outputs.secret_file import secret
from jouled.outputs.sinks import mqtt_discovery
from jouled.outputs.sinks.mqtt_messages import Message, Topics, part
from jouled.outputs.sinks.mqtt_settings import MqttSettings, check, port_of, tls_of

if TYPE_CHECKING:
    from jouled.outputs.sinks.mqtt_client import Client

MOST_POINTS, MOST_RECEIPTS = 20, 200
"""Records of one delivery. A moment of 8 GPUs has some 50 kB: twenty go through 1 Mbit/s within the default limit."""

CLOSE_SECONDS = 2.0

_CONNECT_SHARE, _DELIVERY_SHARE = 0.3, 0.9
"""Of the time limit: for TCP, TLS and the broker's answer each; until the confirmations must be there."""

_REFUSED = 128
"""Reason codes from here on are refusals (MQTT 5.0, 2.4)."""

_NOT_AUTHORIZED, _QUOTA, _TOO_LARGE, _MALFORMED = 135, 151, 149, 153
_BAD_VERSION, _BUSY, _TOO_OFTEN = 132, 137, 159
_NOT_LET_IN = frozenset({133, 134, 135, 138, 140})
"""Of a CONNACK: client identifier not valid, bad user name or password, not authorized, banned, bad method."""


class MqttSink:
    """The sink `mqtt`."""

    name: ClassVar[str] = "mqtt"
    settings_type: ClassVar[type[SinkSettings]] = MqttSettings

    def open(self, settings: SinkSettings, node: str) -> OpenSink:
        """Check the settings and read password and certificates.

        Raises:
            ConfigurationError: they make no sense or cannot be read.
        """
        if not isinstance(settings, MqttSettings):
            raise TypeError(f"the sink mqtt wants MqttSettings, not {type(settings).__name__}")
        check(settings)
        return OpenMqtt(settings, node, secret(settings.password_file, "password_file"), tls_of(settings))


class OpenMqtt:
    """A broker: connected when there is something to send, and let go of when it fails."""

    def __init__(self, settings: MqttSettings, node: str, password: str, tls: ssl.SSLContext | None) -> None:
        self.most: Mapping[Kind, int] = {"points": MOST_POINTS}
        if settings.receipts:
            self.most = {**self.most, "receipts": MOST_RECEIPTS}
        self._settings = settings
        self._password = password
        self._tls = tls
        self._client_id = settings.client_id or f"jouled-{part(node)}"
        self._topics = Topics(settings.topic or f"jouled/{part(node)}")
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def points(self, moments: Sequence[Points]) -> Delivery:
        """Send every moment to `metrics`, and the newest one's headline to `state`.

        Raises:
            SinkError: nothing was taken.
        """
        return await self._deliver(*await asyncio.to_thread(self._messages, moments))

    def _messages(self, moments: Sequence[Points]) -> tuple[Sequence[Message], Sequence[Message], list[Message]]:
        newest, prefix = moments[-1], self._settings.discovery_prefix
        return (
            mqtt_discovery.configs(prefix, self._topics, newest) if self._settings.discovery else (),
            [self._topics.state(newest)],
            [self._topics.metrics(moment) for moment in moments],
        )

    async def receipts(self, receipts: Sequence[NumberedReceipt]) -> Delivery:
        """Send every receipt to `receipts`.

        Raises:
            SinkError: nothing was taken.
        """
        return await self._deliver((), (), [self._topics.receipt(receipt) for receipt in receipts])

    async def close(self) -> None:
        """Publish `offline` and disconnect, within `CLOSE_SECONDS`."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if client.is_up:
                    await client.send([self._topics.status("offline")], CLOSE_SECONDS)
                    await client.leave()
        except TimeoutError:
            pass
        finally:
            client.drop()

    async def _deliver(self, once: Sequence[Message], first: Sequence[Message], records: list[Message]) -> Delivery:
        """once: to be sent once a connection; first: before the records. Both must be taken before a record counts."""
        deadline = asyncio.get_running_loop().time() + self._settings.timeout_seconds * _DELIVERY_SHARE
        client = await self._connected()
        new = [message for message in (self._topics.status("online"), *once) if message not in client.told]
        head = [*new, *first]
        seconds = max(deadline - asyncio.get_running_loop().time(), 0.0)
        codes = await client.send([*head, *records], seconds)
        delivery, failure = outcome(head, records, codes)
        if len(codes) < len(head) + len(records):
            failure = failure or self._lost(client)
        client.told.update(message for message, code in zip(new, codes, strict=False) if code < _REFUSED)
        if failure is not None and not delivery.taken:
            raise failure
        return delivery

    async def _connected(self) -> "Client":
        from jouled.outputs.sinks.mqtt_client import Client

        async with self._connecting:
            if self._client is not None and not self._client.is_up:
                self._client.drop()
                self._client = None
            if self._client is None:
                self._client = await self._connect(Client)
            return self._client

    async def _connect(self, make: "type[Client]") -> "Client":
        from aiomqtt import MqttError, Will

        settings = self._settings
        will = self._topics.status("offline")
        client = make(
            settings.host,
            port_of(settings),
            connect_seconds=settings.timeout_seconds * _CONNECT_SHARE,
            identifier=self._client_id,
            username=settings.user or None,
            password=self._password or None,
            tls_context=self._tls,
            keepalive=settings.keepalive_seconds,
            will=Will(will.topic, will.payload, qos=1, retain=True),
        )
        try:
            await client.connect()
        except MqttError as error:
            raise self._not_connected(error) from error
        return client

    def _not_connected(self, error: Exception) -> SinkError:
        where = f"{self._settings.host}:{port_of(self._settings)}"
        code = getattr(getattr(error, "rc", None), "value", None)
        if code is None:
            certificate = isinstance(error.__context__, ssl.SSLCertVerificationError)
            mend = "Check ca_file, and that the certificate is for this host" if certificate else ""
            return SinkError("unreachable", f"the MQTT broker {where} cannot be reached: {error}", mend=mend)
        said = f"the MQTT broker {where} refuses the connection: {error}"
        if code in _NOT_LET_IN:
            return SinkError(
                "unauthorized", said, mend="Check user, password_file, cert_file and client_id of this sink"
            )
        if code == _BAD_VERSION:
            return SinkError("server_error", said, mend="This sink needs a broker that speaks MQTT 5")
        return SinkError("throttled" if code in {_BUSY, _QUOTA, _TOO_OFTEN} else "server_error", said)

    def _lost(self, client: "Client") -> SinkError:
        """Let go of a connection that ended or does not answer."""
        where, end = f"{self._settings.host}:{port_of(self._settings)}", client.end
        if self._client is client:
            self._client = None
        up = client.is_up
        client.drop()
        if up:
            return SinkError("timeout", f"the MQTT broker {where} does not confirm in time")
        return SinkError(
            "unreachable",
            f"the MQTT broker {where} ended the connection: {end or 'no reason given'}",
            mend=f"If it says that the session was taken over, another client calls itself {self._client_id} too",
        )


def outcome(
    head: Sequence[Message], records: Sequence[Message], codes: Sequence[int]
) -> tuple[Delivery, SinkError | None]:
    """What reason codes mean: how many records are dealt with, and what stopped the others, if the broker said it."""
    rejected: list[RejectedRecord] = []
    messages = [*head, *records]
    for place, code in enumerate(codes):
        index = place - len(head)
        if code < _REFUSED:
            continue
        if index >= 0 and code in {_TOO_LARGE, _MALFORMED}:
            reason = "too_large" if code == _TOO_LARGE else "malformed"
            sentence = f"the broker takes no message like this one of {len(messages[place].payload)} bytes"
            rejected.append(RejectedRecord(index, reason, f"{sentence} (reason code {code})"))
            continue
        return Delivery(max(index, 0), tuple(rejected)), _refused(messages[place], code)
    return Delivery(max(len(codes) - len(head), 0), tuple(rejected)), None


def _refused(message: Message, code: int) -> SinkError:
    said = f"the MQTT broker refuses messages to {message.topic} (reason code {code})"
    if code == _NOT_AUTHORIZED:
        return SinkError("denied", said, mend="Allow this user to write there in the broker's access list")
    return SinkError("throttled" if code == _QUOTA else "server_error", said)
