"""A Modbus TCP server of pymodbus, whose registers and faults a test sets."""

import asyncio
import threading

from pymodbus.client import ModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from tests.support.tools import free_port

WORDS = 20_000
TYPES = ModbusTcpClient.DATATYPE


class ModbusServer:
    """Units by number, each with holding and input registers, all 0. Stop it with `stop`.

    refuse: the exception that a unit answers with. asked: function, unit and address of each question. connections: how
    many there were.
    """

    def __init__(self, *units: int, port: int | None = None) -> None:
        self.port = port or free_port()
        self.refuse: dict[int, ExcCodes] = {}
        self.asked: list[tuple[int, int, int]] = []
        self.connections = 0
        self.delay_seconds: dict[int, float] = {}
        self._words: dict[int, dict[int, int]] = {unit: {} for unit in units}
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        assert ready.wait(10)

    def set(self, unit: int, address: int, kind: str, value: float, order: str = "big") -> None:
        """Write a number into the registers of a unit, by their address on the wire."""
        words = ModbusTcpClient.convert_to_registers(value, TYPES[kind.upper()], word_order=order)
        self._words[unit].update({address + place: word for place, word in enumerate(words)})

    def stop(self) -> None:
        """Close it; connections end."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.call_soon(ready.set)
        self._loop.run_forever()

    async def _start(self) -> None:
        devices = [self._device(unit) for unit in self._words]
        self._server = ModbusTcpServer(devices, address=("127.0.0.1", self.port), trace_connect=self._count)
        await self._server.serve_forever(background=True)

    def _count(self, is_up: bool) -> None:
        self.connections += is_up

    def _device(self, unit: int) -> SimDevice:
        async def answer(function, start, address, count, registers, _written):
            self.asked.append((function, unit, address))
            await asyncio.sleep(self.delay_seconds.get(unit, 0))
            for place in range(address, address + count):
                registers[place - start] = self._words[unit].get(place, 0)
            return self.refuse.get(unit)

        return SimDevice(unit, [SimData(0, count=WORDS, datatype=DataType.REGISTERS)], action=answer)
