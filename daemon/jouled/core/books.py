"""What one commit holds: everything a restarted daemon needs so that no counter ever goes back."""

from msgspec import Struct

from jouled.model.snapshot import GroupBook, Histogram, Labels

BOOKS_VERSION = 1


class RawCounter(Struct, frozen=True, array_like=True):
    """The last raw value of a device's energy counter: what it used while the daemon was away is the difference."""

    microjoules: int
    t_ns: int
    uuid: str = ""


class CounterSeries(Struct, frozen=True, array_like=True):
    """One counter's value."""

    labels: Labels
    value: int | float


class Books(Struct, frozen=True, kw_only=True):
    """The committed books. Readers must accept missing fields: older versions wrote fewer.

    node_edge_ns: core time up to which the energy of the whole node is booked.
    """

    version: int = BOOKS_VERSION
    counters: dict[str, list[CounterSeries]] = {}
    histograms: dict[str, list[tuple[Labels, Histogram]]] = {}
    groups: list[GroupBook] = []
    open_by_engine: list[tuple[tuple[str, ...], str, str, int]] = []
    device_raw: dict[str, RawCounter] = {}
    engine_raw: dict[str, dict[str, int]] = {}
    node_edge_ns: int | None = None
