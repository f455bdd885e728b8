"""An SNMP v2c agent of our own that can misbehave, on a UDP port of 127.0.0.1. It answers GET with pysnmp's codec."""

import select
import socket
import threading
import time
from collections.abc import Callable, Mapping

from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto import api

SNMP = api.PROTOCOL_MODULES[api.SNMP_VERSION_2C]
SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"

MOST_BYTES = 65_507
"""Of a datagram over IPv4."""

Value = int | str | bytes | None | Callable[[], int | None]


class Agent:
    """Answers from `objects`, which may be changed at any time; a missing name, or `None`, does not exist.

    delay_seconds: before each answer. is_silent: takes requests and says nothing. most_values: more in one request are
    `tooBig`. statuses: an error status per object, told with its place if `names_culprits`. renamed: the objects that
    are answered in place of one. spoil: makes of request and answer the datagrams that are sent. requests: the objects
    of each request. was_hurried: a request came before the one before it was answered.
    """

    def __init__(self, objects: Mapping[str, Value], object_id: str = "1.3.6.1.4.1.318.1.3.4.6") -> None:
        self.objects: dict[str, Value] = {SYS_OBJECT_ID: object_id, **objects}
        self.community = "public"
        self.delay_seconds = 0.0
        self.is_silent = False
        self.most_values = 64
        self.statuses: dict[str, int] = {}
        self.spoil: Callable[[bytes, bytes], list[bytes]] | None = None
        self.names_culprits = True
        self.renamed: dict[str, list[str]] = {}
        self.requests: list[list[str]] = []
        self.was_hurried = False
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
            if asked[4:5] == b"\x03" or asked[5:6] == b"\x03":  # version 3: only what `spoil` makes of it is answered
                self._send(asked, b"", sender)
                continue
            message, _ = decoder.decode(asked, asn1Spec=SNMP.Message())
            names = [str(name) for name, _ in SNMP.apiPDU.get_varbinds(SNMP.apiMessage.get_pdu(message))]
            self.requests.append(names)
            if self.is_silent or bytes(SNMP.apiMessage.get_community(message)).decode() != self.community:
                continue
            time.sleep(self.delay_seconds)
            self.was_hurried |= bool(select.select([self._socket], [], [], 0)[0])
            answer = encoder.encode(self._answer(message, names))
            self._send(asked, answer, sender)

    def _send(self, asked: bytes, answer: bytes, sender) -> None:
        for datagram in self.spoil(asked, answer) if self.spoil else [answer]:
            self._socket.sendto(datagram[:MOST_BYTES], sender)

    def _answer(self, message, names: list[str]):
        answer = SNMP.apiMessage.get_response(message)
        pdu = SNMP.apiMessage.get_pdu(answer)
        culprits = [name for name in names if name in self.statuses]
        if len(names) > self.most_values:
            SNMP.apiPDU.set_error_status(pdu, 1)
        elif culprits:
            SNMP.apiPDU.set_error_status(pdu, self.statuses[culprits[0]])
            SNMP.apiPDU.set_error_index(pdu, names.index(culprits[0]) + 1 if self.names_culprits else 0)
        else:
            told = [name for asked in names for name in self.renamed.get(asked, [asked])]
            SNMP.apiPDU.set_varbinds(pdu, [(name, _encoded(name, self.objects.get(name))) for name in told])
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
