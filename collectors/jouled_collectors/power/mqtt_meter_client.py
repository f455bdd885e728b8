"""A subscription at an MQTT broker, kept by a thread with an event loop of its own."""

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiomqtt
from msgspec import Struct
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import DisconnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.network import LET_OUT

CONNECT_SECONDS = 3.0
"""For TCP and TLS, for the broker's answer, and for its answer to the subscription, each."""

LARGEST_PACKET_BYTES = 100_000
"""The broker is told to send nothing larger (MQTT 5.0, 3.1.2.11.4): paho takes up to 256 MB into memory."""

_CLOSE_SECONDS = 2.0
_REFUSED = 128
"""Reason codes from here on are refusals (MQTT 5.0, 2.4)."""

_BAD_VERSION = 132
_NOT_LET_IN = frozenset({133, 134, 135, 138, 140})
"""Of a CONNACK: client identifier not valid, bad user name or password, not authorized, banned, bad method."""

_paho_log = logging.getLogger(f"{__name__}.paho")
_paho_log.setLevel(logging.CRITICAL)  # what it complains of is told by errors

Heard = Callable[[str, bytes, bool], None]
"""Takes topic, payload and whether the broker had retained it; called in the thread of the subscription."""


class Broker(Struct, frozen=True, kw_only=True):
    """Where the broker is and how it lets us in."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    user: str
    password: str
    client_id: str
    keepalive_seconds: int

    @property
    def where(self) -> str:
        """Address for messages."""
        return f"the MQTT broker {self.host}:{self.port}"


class Subscription:
    """Hears topics until the connection ends; does not connect again.

    error: why it ended; `None` while it lasts. refused: topics that the broker lets nobody of this name read, with its
    reason code.
    """

    def __init__(self, broker: Broker, topics: Sequence[str], heard: Heard) -> None:
        self.error: SourceError | None = None
        self.refused: Mapping[str, int] = {}
        self._broker = broker
        self._topics = topics
        self._heard = heard
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="mqtt_meter", daemon=True)

    def open(self) -> None:
        """Connect and subscribe. Raises `SourceError`."""
        self._thread.start()
        if not self._ready.wait(3 * CONNECT_SECONDS + 1.0):
            self.close()
            message = f"{self._broker.where} does not answer in time"
            raise SourceError(SourceState.DOWN, "timeout", message, mend=f"Check the way there; {LET_OUT}")
        if self.error is not None:
            self.close()
            raise self.error

    def close(self) -> None:
        """Disconnect, and wait a moment for the thread."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever paho raises, the connection is over
            self.error = SourceError(SourceState.DOWN, "unreachable", f"{self._broker.where}: {error!r}")
        finally:
            self._ready.set()

    async def _listen(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        client = _Client(self._broker, self._heard)
        try:
            async with client:
                codes = await client.subscribe([(topic, 0) for topic in self._topics])
                values = (code if isinstance(code, int) else code.value for code in codes)
                answers = zip(self._topics, values, strict=False)
                self.refused = {topic: code for topic, code in answers if code >= _REFUSED}
                self._ready.set()
                async for _ in client.messages:  # none comes this way: it ends with the connection
                    pass
        except aiomqtt.MqttError as error:
            self.error = self._why(error)
        finally:
            client.drop()

    def _why(self, error: aiomqtt.MqttError) -> SourceError:
        where, code = self._broker.where, getattr(getattr(error, "rc", None), "value", None)
        if self._ready.is_set():
            name = self._broker.client_id
            mend = f"If another client calls itself {name} too, change client_id of [power.mqtt_meter]" if name else ""
            message = f"{where} ended the connection: {error.__cause__ or error}"
            return SourceError(SourceState.DOWN, "disconnected", message, mend=mend)
        if code in _NOT_LET_IN:
            mend = "Check user, password_file and client_id of [power.mqtt_meter]"
            return SourceError(
                SourceState.DENIED, "unauthorized", f"{where} refuses the connection: {error}", mend=mend
            )
        if code == _BAD_VERSION:
            mend = "This source needs a broker that speaks MQTT 5"
            return SourceError(SourceState.DOWN, "refused", f"{where} refuses the connection: {error}", mend=mend)
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            mend = "Check ca_file, and that the certificate is for this host"
            return SourceError(SourceState.DENIED, "certificate", f"{where} is not trusted: {error}", mend=mend)
        mend = f"Check host and port of [power.mqtt_meter]; {LET_OUT}"
        return SourceError(SourceState.DOWN, "unreachable", f"{where} cannot be reached: {error}", mend=mend)


class _Client(aiomqtt.Client):
    """One connection. Messages go straight to `heard`: no queue can grow, and a flood waits in the broker."""

    def __init__(self, broker: Broker, heard: Heard) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = LARGEST_PACKET_BYTES
        super().__init__(
            broker.host,
            broker.port,
            protocol=aiomqtt.ProtocolVersion.V5,
            identifier=broker.client_id or None,
            username=broker.user or None,
            password=broker.password or None,
            tls_context=broker.tls,
            keepalive=broker.keepalive_seconds,
            timeout=CONNECT_SECONDS,
            properties=properties,
            logger=_paho_log,
        )
        self._client.connect_timeout = CONNECT_SECONDS
        self._take = heard

    def drop(self) -> None:
        """Close the socket: aiomqtt leaves it open where the broker did not answer."""
        self._client.disconnect()

    def _on_message(self, client: PahoClient, userdata: Any, message: MQTTMessage) -> None:  # noqa: ARG002 - paho's form
        self._take(message.topic, bytes(message.payload), message.retain)

    def _on_disconnect(
        self,
        client: PahoClient,
        userdata: Any,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not self._connected.done():  # aiomqtt would wait for an answer until its time is up
            self._connected.set_exception(aiomqtt.MqttError("it hung up before it answered"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
