"""An SNMP v2c agent of our own that can misbehave, on a UDP port of 127.0.0.1. It answers GET with pysnmp's codec."""

import socket
import threading
import time
from collections.abc import Callable, Mapping

from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto import api

SNMP = api.PROTOCOL_MODULES[api.SNMP_VERSION_2C]
SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"

Value = int | str | bytes | None | Callable[[], int | None]


class Agent:
    """Answers from `objects`, which may be changed at any time; a missing name, or `None`, does not exist.

    delay_seconds: before each answer. is_silent: takes requests and says nothing. most_values: more in one request are
    `tooBig`. statuses: an error status per object. spoil: what is sent in place of an answer. max_waiting: the most
    requests that lay there at once while one was being answered.
    """

    def __init__(self, objects: Mapping[str, Value], object_id: str = "1.3.6.1.4.1.318.1.3.4.6") -> None:
        self.objects: dict[str, Value] = {SYS_OBJECT_ID: object_id, **objects}
        self.community = "public"
        self.delay_seconds = 0.0
        self.is_silent = False
        self.most_values = 64
        self.statuses: dict[str, int] = {}
        self.spoil: Callable[[bytes, bytes], bytes] | None = None
        self.requests: list[list[str]] = []
        self.heard_at: list[float] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; a byte of its own wakes it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            asked, sender = self._socket.recvfrom(65_535)
            if not asked:
                return
            self.heard_at.append(time.monotonic())
            message, _ = decoder.decode(asked, asn1Spec=SNMP.Message())
            names = [str(name) for name, _ in SNMP.apiPDU.get_varbinds(SNMP.apiMessage.get_pdu(message))]
            self.requests.append(names)
            if self.is_silent or bytes(SNMP.apiMessage.get_community(message)).decode() != self.community:
                continue
            time.sleep(self.delay_seconds)
            answer = encoder.encode(self._answer(message, names))
            self._socket.sendto(self.spoil(asked, answer) if self.spoil else answer, sender)

    def _answer(self, message, names: list[str]):
        answer = SNMP.apiMessage.get_response(message)
        pdu = SNMP.apiMessage.get_pdu(answer)
        culprits = [name for name in names if name in self.statuses]
        if len(names) > self.most_values:
            SNMP.apiPDU.set_error_status(pdu, 1)
        elif culprits:
            SNMP.apiPDU.set_error_status(pdu, self.statuses[culprits[0]])
            SNMP.apiPDU.set_error_index(pdu, names.index(culprits[0]) + 1)
        else:
            SNMP.apiPDU.set_varbinds(pdu, [(name, _encoded(name, self.objects.get(name))) for name in names])
        return answer


def _encoded(name: str, value: Value):
    if callable(value):
        value = value()
    if name == SYS_OBJECT_ID and isinstance(value, str):
        return SNMP.ObjectIdentifier(value)
    if isinstance(value, str | bytes):
        return SNMP.OctetString(value)
    if value is None:
        return SNMP.NoSuchInstance("")
    if value < 0:
        return SNMP.Integer32(value)
    return SNMP.Gauge32(value) if value < 2**32 else SNMP.Counter64(value)
