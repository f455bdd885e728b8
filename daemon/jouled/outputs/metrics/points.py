"""A snapshot's series as bytes for the spool, and back as what sinks send."""

import zlib
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from jouled.model.points import Family, Points
from jouled.model.snapshot import Histogram, Labels, Snapshot
from jouled.outputs.metrics.catalogue import CATALOGUE, Metric
from jouled.outputs.metrics.values import values_of

_FASTEST = 1


class _Stored(Struct, array_like=True):
    """One moment as it lies in the spool; a reader accepts what a later version adds at the end."""

    t_ns: int
    since_ns: int
    node: str
    values: dict[str, list[tuple[Labels, float]]]
    histograms: dict[str, list[tuple[Labels, Histogram]]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


def packed(snapshot: Snapshot, version: str, since_ns: int, off: frozenset[str] = frozenset()) -> bytes:
    """All series of a snapshot that the catalogue knows, without the families `off`.

    since_ns: Unix nanoseconds from which its counters count.
    """
    values = values_of(snapshot, version)
    wanted = CATALOGUE.keys() - off
    stored = _Stored(
        t_ns=snapshot.t_ns + snapshot.wall_minus_core_ns,
        since_ns=since_ns,
        node=snapshot.node,
        values={name: list(of.items()) for name, of in values.items() if of and name in wanted},
        histograms={name: list(of.items()) for name, of in snapshot.histograms.items() if of and name in wanted},
    )
    return zlib.compress(_encoder.encode(stored), _FASTEST)


def unpacked(number: int, data: bytes) -> Points:
    """The series again, in the units of their names; what this version's catalogue does not know is left out.

    Raises:
        ValueError: the bytes are damaged.
    """
    try:
        stored = _decoder.decode(zlib.decompress(data))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"point {number} of the spool is damaged: {error}") from error
    families = [
        _family(metric, dict(stored.values.get(name, ())), dict(stored.histograms.get(name, ())))
        for name, metric in CATALOGUE.items()
        if name in stored.values or name in stored.histograms
    ]
    return Points(number=number, t_ns=stored.t_ns, since_ns=stored.since_ns, node=stored.node, families=tuple(families))


def _family(metric: Metric, values: Mapping[Labels, float], histograms: Mapping[Labels, Histogram]) -> Family:
    """One family; series that another version stored with other labels are left out."""
    parts = metric.parts_per_unit
    names = (*metric.labels, metric.full_name) if metric.type == "stateset" else metric.labels
    values = {labels: value for labels, value in values.items() if len(labels) == len(names)}
    histograms = {labels: found for labels, found in histograms.items() if len(labels) == len(names)}
    return Family(
        name=metric.full_name,
        type=metric.type,
        unit=metric.unit,
        help=metric.documentation,
        labels=names,
        values=values if parts == 1 else {labels: value / parts for labels, value in values.items()},
        histograms=histograms,
    )
