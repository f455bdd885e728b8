"""The opened HLML source: its cards, read one after the other; one that fails is left out and asked again."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jouled.api import Clock, Reading
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.gaudi import GaudiSettings
from jouled_collectors.power.gaudi_library import SOURCE_GONE, Handle, HlmlError, Library, load, source_error

DEFAULT_INTERVAL_SECONDS = 1.0
"""What a read costs and how often the counter moves is not documented."""

RETRY_NS = nanoseconds(30)
STATUS_NS = nanoseconds(10)

MICROJOULES_PER_MILLIJOULE = 1_000
MILLIWATTS_PER_WATT = 1_000

UNKNOWN_VALUES = frozenset({0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF})
"""0 and all-ones are no energy and no power of a card that is on."""

MOST = (2**63 - 1) // MICROJOULES_PER_MILLIJOULE
"""Millijoules that signed microjoules hold: 300 years at 1 kW."""

ENERGY, POWER = "hlmlDeviceGetTotalEnergyConsumption", "hlmlDeviceGetPowerUsage"
"""Millijoules since the driver was loaded, and milliwatts; the first that a card tells is its meter."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Card:
    """One card and the call that is its meter.

    ask_at_ns: one that failed is left alone until then. error: why there is no reading now.
    """

    device: Device
    handle: Handle
    call: str
    ask_at_ns: int = 0
    error: SourceError | None = None


class GaudiSource:
    """The Gaudi cards of this node.

    parts: each card by name, and why it is not read; the others go on.
    """

    def __init__(self, clock: Clock, library: Library, cards: Sequence[Card]) -> None:
        self.devices: Sequence[Device] = tuple(card.device for card in cards)
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self.parts: Mapping[str, SourceError | None] = {}
        self._clock = clock
        self._library = library
        self._cards = cards
        self._driver = library.text("hlmlGetDriverVersion")
        self._status_at_ns = clock.now_ns()

    def read(self) -> list[Reading]:
        """Read every card that answers; about every 10 s also its status. Raises `SourceError` when none answers."""
        now_ns = self._clock.now_ns()
        readings: list[Reading] = [told for card in self._cards if (told := self._read_card(card)) is not None]
        self.parts = {card.device.name: card.error for card in self._cards}
        if all(card.ask_at_ns for card in self._cards):
            raise _lost("No Gaudi card tells its energy or power any more")
        if now_ns >= self._status_at_ns:
            self._status_at_ns = now_ns + STATUS_NS
            readings.extend(
                DeviceStatus(
                    device=card.device.name,
                    t_ns=now_ns,
                    power_limit_watts=_limit_watts(self._library, card.handle),
                    driver=self._driver,
                )
                for card in self._cards
                if not card.ask_at_ns
            )
        return readings

    def close(self) -> None:
        """Let go of the driver."""
        _shut_down(self._library)

    def _read_card(self, card: Card) -> EnergyReading | PowerReading | None:
        before_ns = self._clock.now_ns()
        if before_ns < card.ask_at_ns:
            return None
        try:
            told = _number(self._library, card.call, card.handle)
        except HlmlError as error:
            if error.code in SOURCE_GONE:
                raise source_error(error, running=True) from error
            card.ask_at_ns = before_ns + RETRY_NS
            card.error = _lost(f"{card.device.name} does not answer ({error})")
            return None
        card.ask_at_ns = 0
        card.error = None
        if told is None:
            message = f"{card.device.name} tells a value that no card has"
            card.error = SourceError(SourceState.DOWN, "no_reading", message, mend="Look at: hl-smi")
            return None
        t_ns = (before_ns + self._clock.now_ns()) // 2
        if card.call == ENERGY:
            return EnergyReading(card.device.name, t_ns, told * MICROJOULES_PER_MILLIJOULE)
        return PowerReading(card.device.name, t_ns, told / MILLIWATTS_PER_WATT)


def open_source(clock: Clock, settings: GaudiSettings) -> GaudiSource:
    """Open HLML and its cards; it is shut down again where that fails. Raises `SourceError`."""
    library = load()
    with contextlib.ExitStack() as undo:
        try:
            library.call("hlmlInit")
            undo.callback(_shut_down, library)
            cards = _cards(library, settings)
        except HlmlError as error:
            raise source_error(error) from error
        if not cards:
            raise SourceError(
                SourceState.ABSENT, "no_card", "No Gaudi card tells its energy or power", mend="Look at: hl-smi"
            )
        source = GaudiSource(clock, library, cards)
        source.interval_seconds = settings.interval_seconds or DEFAULT_INTERVAL_SECONDS
        undo.pop_all()
    return source


def _cards(library: Library, settings: GaudiSettings) -> list[Card]:
    """Cards with a meter, numbered by PCI address, for the library's own order is not said to last."""
    handles = []
    for index in range(library.call("hlmlDeviceGetCount")):
        with contextlib.suppress(HlmlError):
            handle = library.handle(index)
            handles.append((_pci_bus_id(library, handle), index, handle))
    cards = []
    for number, (pci_bus_id, _, handle) in enumerate(sorted(handles, key=lambda each: each[:2])):
        call = _meter(library, handle)
        if call is None:
            _logger.info("gaudi%d has no readable energy or power; it is left out", number)
            continue
        device = Device(
            name=f"gaudi{number}",
            kind=DeviceKind.GPU,
            vendor="intel",
            product=library.text("hlmlDeviceGetName", handle),
            uuid=library.text("hlmlDeviceGetUUID", handle),
            pci_bus_id=pci_bus_id,
            index=number,
            source="gaudi",
            method="hlml_energy" if call == ENERGY else "hlml_power",
            quality=Quality.MEASURED if call == ENERGY else Quality.DERIVED,
            idle_watts=settings.idle_watts,
            uplift_watts=settings.uplift_watts,
            max_watts=_limit_watts(library, handle),
        )
        cards.append(Card(device, handle, call))
    return cards


def _meter(library: Library, handle: Handle) -> str | None:
    for call in (ENERGY, POWER):
        with contextlib.suppress(HlmlError):
            if _number(library, call, handle) is not None:
                return call
    return None


def _number(library: Library, call: str, handle: Handle) -> int | None:
    """What a card tells, `None` for a value that marks none or that no card has. Raises `HlmlError`."""
    told = int(library.call(call, handle))
    return None if told in UNKNOWN_VALUES or told > MOST else told


def _lost(message: str) -> SourceError:
    mend = "Look for habanalabs in `dmesg`, then reset it: hl-smi --reset"
    return SourceError(SourceState.DOWN, "card_lost", message, mend=mend)


def _limit_watts(library: Library, handle: Handle) -> float | None:
    try:
        told = _number(library, "hlmlDeviceGetPowerManagementDefaultLimit", handle)
    except HlmlError:
        return None
    return told / MILLIWATTS_PER_WATT if told is not None else None


def _pci_bus_id(library: Library, handle: Handle) -> str:
    try:
        return bytes(library.call("hlmlDeviceGetPCIInfo", handle).bus_id).decode(errors="replace")
    except HlmlError:
        return ""


def _shut_down(library: Library) -> None:
    with contextlib.suppress(HlmlError):
        library.call("hlmlShutdown")
