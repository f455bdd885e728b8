"""One host that speaks Modbus TCP, and the meters behind it: asked one after the other, by a thread of their own."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from jouled.api import Clock, Reading
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.modbus_registers import EnergyRegister, FaultError, PowerRegister, Profile, size
from jouled_collectors.power.modbus_settings import ModbusMeterSettings
from jouled_collectors.power.network import LET_OUT
from jouled_collectors.power.settings import FEED

if TYPE_CHECKING:
    from pymodbus.client import ModbusTcpClient

FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 2.0, 60.0
"""Between two questions to a meter that does not answer; doubled from one to the next."""

MOST_PENDING = 100
SLOW_SECONDS = 5.0
"""A round that lasts so much longer than all time limits together does not end: the host sends what is no answer."""

HUNG_UP = "hung_up"
"""Reason: the connection ended before the answer came."""

_NO_SUCH_REGISTER = frozenset({1, 2, 3})
"""Exception codes: illegal function, data address, data value (Modbus application protocol 1.1b3, section 7)."""

_NOBODY_BEHIND = frozenset({10, 11})
"""Exception codes of gateways: path unavailable, target device failed to respond."""


class Meter:
    """One meter: what to ask it for, and what became of it. error: `None`: it works."""

    def __init__(self, settings: ModbusMeterSettings, profile: Profile) -> None:
        """Raises `ValueError`: the profile has no such register."""
        wanted = settings.reading if settings.reading != "auto" else "energy" if profile.power is None else "power"
        register = profile.power if wanted == "power" else profile.energy
        if register is None:
            raise ValueError(f"{settings.name} has no register of its {wanted}")
        self.settings = settings
        self.register: PowerRegister | EnergyRegister = register
        self.word_order = settings.word_order or profile.word_order
        first = profile.first_address if settings.first_address is None else settings.first_address
        self.address = register.address - first
        if self.address < 0:
            raise ValueError(f"{settings.name}: there is no register 0 where registers count from 1")
        self.error: SourceError | None = self._error("waiting", "was not asked yet")
        self.retry_at_ns = 0
        self._wait_seconds = FIRST_WAIT_SECONDS

    @property
    def device(self) -> Device:
        """The device that it is."""
        settings, register = self.settings, self.register
        counts = isinstance(register, EnergyRegister)
        return Device(
            name=settings.name,
            kind=DeviceKind(settings.role),
            parent=settings.feed or (FEED if settings.role == "outlet" else ""),
            product=settings.profile,
            source="modbus",
            method="modbus_energy" if counts else "modbus_power",
            quality=Quality.MEASURED if counts else Quality.DERIVED,
            max_watts=settings.max_watts,
            wrap_microjoules=register.wrap_microjoules if isinstance(register, EnergyRegister) else None,
        )

    def ask(self, client: "ModbusTcpClient", clock: Clock) -> Reading:
        """Read its register. Raises `FaultError`: it holds no value; `SourceError`: it does not answer as it should."""
        from pymodbus.exceptions import ConnectionException
        from pymodbus.pdu import ExceptionResponse

        read = client.read_input_registers if self.register.input else client.read_holding_registers
        count = size(self.register.type)
        before_ns = clock.now_ns()
        try:
            answer = read(self.address, count=count, device_id=self.settings.unit)
        except Exception as error:  # pymodbus raises its own, and what Python has where it reads noise
            # Else the answer that comes too late might be taken for that of the next meter.
            client.close()  # type: ignore[no-untyped-call]
            if isinstance(error, ConnectionException | ConnectionError):
                raise self._error(HUNG_UP, "hung up before it answered") from error
            raise self._error("no_answer", f"does not answer ({error!r})") from error
        if isinstance(answer, ExceptionResponse):
            raise self._refused(answer.exception_code)
        if len(answer.registers) != count:
            raise self._error("garbage", f"sent {len(answer.registers)} registers instead of {count}")
        return self._reading(answer.registers, (before_ns + clock.now_ns()) // 2)

    def work(self) -> None:
        """It answered with a value."""
        self.error, self._wait_seconds = None, FIRST_WAIT_SECONDS

    def doubt(self, fault: FaultError) -> None:
        """It answered, but not with a value."""
        self.error = self._error(str(fault), f"has no value in register {self.register.address} ({fault})")

    def fail(self, error: SourceError, now_ns: int) -> None:
        """It did not answer as it should: leave it alone for a while."""
        self.error = error
        self.retry_at_ns = now_ns + nanoseconds(self._wait_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self._wait_seconds = min(2 * self._wait_seconds, LAST_WAIT_SECONDS)

    def unreachable(self) -> SourceError:
        """Its host takes no connection."""
        name = self.settings.name
        return self._error("unreachable", "cannot be reached", f"Check host and port of {name}; {LET_OUT}")

    def slow(self) -> SourceError:
        """Its host keeps sending what is no answer."""
        return self._error("no_answer", "does not answer in time")

    def _reading(self, words: Sequence[int], t_ns: int) -> Reading:
        name, register = self.settings.name, self.register
        if isinstance(register, EnergyRegister):
            return EnergyReading(name, t_ns, register.microjoules(words, self.word_order))
        middle_ns = t_ns - nanoseconds(self.settings.average_seconds / 2)
        return PowerReading(name, middle_ns, register.watts(words, self.word_order))

    def _refused(self, code: int) -> SourceError:
        if code in _NO_SUCH_REGISTER:
            mend = f"Check profile and first_address of {self.settings.name}"
            return self._error("no_register", f"has no register {self.register.address} (exception {code})", mend)
        if code in _NOBODY_BEHIND:
            return self._error("no_answer", f"does not answer its gateway (exception {code})")
        return self._error("refused", f"refuses the question (exception {code})")

    def _error(self, reason: str, what: str, mend: str = "") -> SourceError:
        settings = self.settings
        where = f"{settings.name} (unit {settings.unit} at {settings.host}:{settings.port})"
        mend = mend or f"Check host, port and unit of {settings.name}"
        return SourceError(SourceState.DOWN, reason, f"The meter {where} {what}", mend=mend)


class Address(Struct, frozen=True):
    """Where a gateway is."""

    host: str
    port: int


class Gateway:
    """One connection; never more than one question in flight."""

    def __init__(self, address: Address, meters: Sequence[Meter], timeout_seconds: float, clock: Clock) -> None:
        from pymodbus.client import ModbusTcpClient

        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # what it complains of is told by errors
        self.meters = meters
        self._client = ModbusTcpClient(address.host, port=address.port, timeout=timeout_seconds, retries=0)
        self._clock = clock
        self._readings: deque[Reading] = deque(maxlen=MOST_PENDING)
        self._thread: threading.Thread | None = None
        self._begun_seconds = 0.0
        self._longest_seconds = 2 * timeout_seconds * len(meters) + SLOW_SECONDS
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether it is being asked."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self) -> None:
        """Start to ask the meters that are due, if the last round is over."""
        if self.is_busy:
            if time.monotonic() - self._begun_seconds > self._longest_seconds:
                for meter in self.meters:
                    meter.error = meter.slow()
            return
        now_ns = self._clock.now_ns()
        due = [meter for meter in self.meters if meter.error is None or now_ns >= meter.retry_at_ns]
        if due:
            self._begun_seconds = time.monotonic()
            self._thread = threading.Thread(target=self._ask, args=(due,), name="modbus", daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the round to end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def take(self) -> list[Reading]:
        """What was read since the last call."""
        return [self._readings.popleft() for _ in range(len(self._readings))]

    def close(self) -> None:
        """Hang up, once nobody is asked any more."""
        self._is_closed = True
        if not self.is_busy:
            self._client.close()  # type: ignore[no-untyped-call]

    def _ask_one(self, meter: Meter, *, was_open: bool) -> Reading:
        """Ask a meter; by a new connection where the kept one was ended behind our back, as many do with idle ones."""
        try:
            return meter.ask(self._client, self._clock)
        except SourceError as error:
            if error.reason != HUNG_UP or not was_open:
                raise
        if not self._client.connect():  # type: ignore[no-untyped-call]
            raise meter.unreachable()
        return meter.ask(self._client, self._clock)

    def _ask(self, due: Sequence[Meter]) -> None:
        for place, meter in enumerate(due):
            if self._is_closed:
                break
            was_open = self._client.connected
            if not self._client.connect():  # type: ignore[no-untyped-call]
                for other in due[place:]:
                    other.fail(other.unreachable(), self._clock.now_ns())
                return
            try:
                self._readings.append(self._ask_one(meter, was_open=was_open))
            except FaultError as fault:
                meter.doubt(fault)
            except SourceError as error:
                meter.fail(error, self._clock.now_ns())
            else:
                meter.work()
        if self._is_closed:
            self._client.close()  # type: ignore[no-untyped-call]
