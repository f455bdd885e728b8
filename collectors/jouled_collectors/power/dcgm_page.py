"""Reads the page of a dcgm-exporter: what it says of the energy and power of each GPU."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from statistics import fmean


class Quantity(Enum):
    """What a row tells: millijoules of `ENERGY`, watts of all others. The meters stand first, best first."""

    ENERGY = "dcgm_energy"
    POWER = "dcgm_power"
    POWER_INSTANT = "dcgm_power_instant"
    LIMIT = "limit"
    LIMIT_REQUESTED = "limit_requested"


METERS = (Quantity.ENERGY, Quantity.POWER, Quantity.POWER_INSTANT)

_QUANTITIES: Mapping[bytes, Quantity] = {
    b"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": Quantity.ENERGY,
    b"DCGM_FI_DEV_POWER_USAGE": Quantity.POWER,
    b"DCGM_FI_DEV_BOARD_POWER_WATTS": Quantity.POWER,
    b"DCGM_FI_DEV_POWER_USAGE_INSTANT": Quantity.POWER_INSTANT,
    b"DCGM_FI_DEV_BOARD_POWER_RAW_WATTS": Quantity.POWER_INSTANT,
    b"DCGM_FI_DEV_ENFORCED_POWER_LIMIT": Quantity.LIMIT,
    b"DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS": Quantity.LIMIT,
    b"DCGM_FI_DEV_POWER_MGMT_LIMIT": Quantity.LIMIT_REQUESTED,
    b"DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS": Quantity.LIMIT_REQUESTED,
}
"""Fields 155, 156, 157, 160 and 164 by their old and new macros (dcgm_fields.h of DCGM 4).

The violations 240-247 are left out: the exporter's help says microseconds, the header nanoseconds.
"""

MOST_MILLIJOULES = (2**63 - 1) // 1_000
"""What signed microjoules hold; DCGM_INT64_BLANK and its kin (from 2^63 - 16 on, dcgm_structs.h) lie above."""

MOST_WATTS = 1e6
"""No board. DCGM_FP64_BLANK and its kin (from 2^47 on, dcgm_structs.h) and 2^32 - 1 milliwatts lie above."""

_LINE = re.compile(r'\w+\{((?:[^"{}]|"(?:[^"\\]|\\.)*+")*+)\}\s+(\S+)(?:\s+-?\d+)?\s*', re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*+)"', re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?|[+-]?(?:NaN|Inf)", re.IGNORECASE)
_INDEX = re.compile(r"[0-9]{1,3}")
_ESCAPED = re.compile(r"\\(.)")
_LONGEST_TEXT = 128


@dataclass(slots=True)
class PageGpu:
    """One GPU of the page. Descriptions are empty where they are not told."""

    index: int
    uuids: set[str] = field(default_factory=set)
    product: str = ""
    pci_bus_id: str = ""
    driver: str = ""
    values: dict[Quantity, float] = field(default_factory=dict)
    _rows: dict[tuple[Quantity, bool], list[float]] = field(default_factory=dict)

    @property
    def uuid(self) -> str:
        """Its UUID, empty if it is not told."""
        return min(self.uuids, default="")

    def add(self, quantity: Quantity, labels: Mapping[str, str], value: float) -> None:
        """Take one row."""
        uuid = labels.get("UUID") or labels.get("uuid", "")
        if uuid.startswith("GPU-"):
            self.uuids.add(_short(uuid))
        self.product = self.product or _short(labels.get("modelName", ""))
        self.pci_bus_id = self.pci_bus_id or _short(labels.get("pci_bus_id", ""))
        self.driver = self.driver or _short(labels.get("DCGM_FI_DRIVER_VERSION", ""))
        self._rows.setdefault((quantity, bool(labels.get("GPU_I_ID"))), []).append(value)

    def settle(self) -> None:
        """Make one value of all rows of a quantity.

        Pods and MIG instances repeat the one meter of their GPU (dcgm-exporter#3, #353), read at slightly other times:
        rows are never added up, the latest counter is the highest, and rows of the whole GPU win.
        """
        for quantity in Quantity:
            rows = self._rows.get((quantity, False)) or self._rows.get((quantity, True))
            if rows:
                self.values[quantity] = max(rows) if quantity is Quantity.ENERGY else fmean(rows)


@dataclass(slots=True)
class Page:
    """What a page held. `rows`: all of DCGM's, wanted or not; `unreadable`: wanted ones that could not be read."""

    gpus: dict[int, PageGpu] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)
    rows: int = 0
    unreadable: int = 0

    @property
    def is_of_several_hosts(self) -> bool:
        """Whether GPUs of more than one host are on it, by their labels."""
        return len(self.hosts) > 1 or any(len(gpu.uuids) > 1 for gpu in self.gpus.values())


def parse(body: bytes, hostname: str = "") -> Page:
    """Read a page; of rows with another `Hostname` nothing is taken. Raises nothing."""
    page = Page()
    for line in body.split(b"\n"):
        if not line.startswith(b"DCGM_FI_"):
            continue
        page.rows += 1
        quantity = _QUANTITIES.get(line.partition(b"{")[0].rstrip())
        if quantity is not None:
            _take(page, quantity, line.decode(errors="replace"), hostname)
    for gpu in page.gpus.values():
        gpu.settle()
    return page


def _take(page: Page, quantity: Quantity, line: str, hostname: str) -> None:
    match = _LINE.fullmatch(line)
    labels = dict(_LABEL.findall(match[1])) if match else {}
    if match is None or not _NUMBER.fullmatch(match[2]) or not _INDEX.fullmatch(labels.get("gpu", "")):
        page.unreadable += 1
        return
    host = _ESCAPED.sub(r"\1", labels.get("Hostname", ""))
    if hostname and host != hostname:
        return
    page.hosts.update([host] if host else [])
    value = _value(quantity, match[2])
    if value is not None:
        index = int(labels["gpu"])
        page.gpus.setdefault(index, PageGpu(index)).add(quantity, labels, value)


def _value(quantity: Quantity, text: str) -> float | None:
    """The number, `None` where it means that there is none. Whole millijoules stay exact beyond 2^53.

    No GPU that is there uses 0 W: old exporters show 0 for each MIG instance (dcgm-exporter#3).
    """
    number: Callable[[str], float] = int if quantity is Quantity.ENERGY and text.isdecimal() else float
    try:
        value = number(text)
    except ValueError:
        return None
    if quantity is Quantity.ENERGY:
        return value if 0 <= value <= MOST_MILLIJOULES else None
    return value if 0 < value <= MOST_WATTS else None


def _short(text: str) -> str:
    """A label as it may stand in ours: unescaped, printable, of bounded length."""
    unescaped = _ESCAPED.sub(r"\1", text[: 2 * _LONGEST_TEXT])
    return "".join(letter for letter in unescaped if letter.isprintable())[:_LONGEST_TEXT]
