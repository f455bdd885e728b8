"""An aiomqtt client that tells what the broker says to each message, and notices at once when it is gone.

aiomqtt's own `publish` drops the reason code of a PUBACK, so that a message refused by an access list looks delivered,
and waits its whole time limit for a broker that has hung up. Both are mended here with QoS 1 and MQTT 5, whose PUBACK
has a reason code. (QoS 0 has no answer at all; of QoS 2 paho drops the reason code of the PUBREC.)
"""

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import ConnectFlags, DisconnectFlags
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from jouled.outputs.sinks.mqtt_messages import Message

TOO_LARGE = 149
"""Packet too large (MQTT 5.0, 2.4)."""

_IN_FLIGHT = 20
"""Messages sent before the first of them is confirmed; paho's own figure, and what mosquitto asks for."""

_HEADER_BYTES = 16
"""What a PUBLISH packet has beside topic and payload, generously (MQTT 5.0, 3.3: at most 10 without properties)."""


class Client(aiomqtt.Client):
    """One connection, used once.

    told: messages that it has delivered and that need not be sent again as long as it lasts.
    """

    def __init__(self, hostname: str, port: int, *, connect_seconds: float, **settings: Any) -> None:
        super().__init__(hostname, port, protocol=aiomqtt.ProtocolVersion.V5, timeout=connect_seconds, **settings)
        self.told: set[Message] = set()
        self._client.connect_timeout = connect_seconds
        self._client.on_publish = lambda _client, _data, mid, code, _properties: self._confirm(mid, code.value)
        self._client.on_socket_register_write = lambda _client, _data, sock: self._register_write(sock)
        self._confirmations: dict[int, asyncio.Future[int]] = {}
        self._most_bytes: int | None = None
        self._dropped = False

    @property
    def is_up(self) -> bool:
        """Whether the broker is there, as far as anybody knows."""
        return self._client.is_connected() and not self._disconnected.done()

    @property
    def end(self) -> str:
        """Why the connection ended; empty while it lasts."""
        ended = self._disconnected.done() and not self._disconnected.cancelled()
        return str(self._disconnected.exception() or "") if ended else ""

    async def connect(self) -> None:
        """Connect. Raises `aiomqtt.MqttError`; nothing is left of the connection then."""
        try:
            await self.__aenter__()
        except BaseException:
            self.drop()
            raise

    async def send(self, messages: Sequence[Message], seconds: float) -> list[int]:
        """Publish in this order and wait for the confirmations.

        Returns the broker's reason codes (from 128 on: refused) of the first messages; fewer than there are messages
        where the connection ended or the time is up.
        """
        confirmations = [self._publish(message) for message in messages]
        either: set[asyncio.Future[Any]] = {asyncio.gather(*confirmations), self._disconnected}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return [confirmation.result() for confirmation in takewhile(asyncio.Future.done, confirmations)]

    async def leave(self) -> None:
        """Say goodbye: the broker forgets the last will."""
        with contextlib.suppress(aiomqtt.MqttError):
            await self.__aexit__(None, None, None)

    def drop(self) -> None:
        """Let go of a connection that is of no use; the broker then publishes the last will."""
        self._dropped = True
        self._confirmations.clear()
        if not self._disconnected.done():
            self._disconnected.set_result(None)
        elif not self._disconnected.cancelled():
            self._disconnected.exception()  # asyncio complains of an exception that nobody looked at
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message"))

    def _publish(self, message: Message) -> asyncio.Future[int]:
        confirmation: asyncio.Future[int] = self._loop.create_future()
        size = len(message.topic.encode()) + len(message.payload) + _HEADER_BYTES
        if self._most_bytes is not None and size > self._most_bytes:
            confirmation.set_result(TOO_LARGE)  # the broker would hang up on it, again and again
            return confirmation
        sent = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
        self._confirmations[sent.mid] = confirmation
        return confirmation

    def _client_connect(self) -> None:
        super()._client_connect()
        if self._dropped:  # cancelled while this thread was connecting
            self._loop.call_soon_threadsafe(self.drop)

    def _on_connect(
        self,
        client: PahoClient,
        userdata: Any,
        flags: ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self._most_bytes = getattr(properties, "MaximumPacketSize", None)
        # paho does not look at what the broker allows, and lets it be set only before it is known.
        client._max_inflight_messages = min(_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _IN_FLIGHT))  # noqa: SLF001
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: PahoClient,
        userdata: Any,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if self._dropped:
            return
        if not self._connected.done():  # aiomqtt would wait for an answer until its time is up
            self._connected.set_exception(aiomqtt.MqttError("the broker hung up before it answered"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _confirm(self, mid: int, code: int) -> None:
        confirmation = self._confirmations.pop(mid, None)
        if confirmation is not None and not confirmation.done():
            confirmation.set_result(code)

    def _register_write(self, sock: Any) -> None:
        # aiomqtt keeps the bare number of the socket for a turn of the loop. If the socket is closed by then, the
        # number may belong to another one.
        self._loop.call_soon_threadsafe(self._write_when_ready, sock)

    def _write_when_ready(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001 - whatever paho raises, the connection is over
            if not self._disconnected.done():
                self._disconnected.set_exception(error)
