"""Moments as the message of Prometheus remote write 1.0, before compression.

Specification: https://prometheus.io/docs/specs/prw/remote_write_spec/, messages of prompb/remote.proto and
prompb/types.proto; protobuf encoding: https://protobuf.dev/programming-guides/encoding/. Written by hand: five small
messages with three kinds of fields do not ask for a compiler and its library.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from jouled.model.points import Family, Points
from jouled.outputs.sinks.buckets import Exemplar, buckets

JOB = "jouled"
_DOUBLE = struct.Struct("<d")
_NANOSECONDS_PER_MILLISECOND = 1_000_000

# Tags: field number << 3 | kind; kind 0 is a varint, 1 eight bytes, 2 bytes with their length.
_REQUEST_SERIES = b"\x0a"
_SERIES_LABEL, _SERIES_SAMPLE, _SERIES_EXEMPLAR = b"\x0a", b"\x12", b"\x1a"
_LABEL_NAME, _LABEL_VALUE = b"\x0a", b"\x12"
_SAMPLE_VALUE, _SAMPLE_TIME = b"\x09", b"\x10"
_EXEMPLAR_LABEL, _EXEMPLAR_VALUE, _EXEMPLAR_TIME = b"\x0a", b"\x11", b"\x18"


def write_request(moments: Sequence[Points], *, with_exemplars: bool) -> bytes:
    """All series of some moments, oldest first: each series once, its samples in order of time.

    Series have `__name__`, their labels where not empty, `job="jouled"` and the node as `instance`, sorted by name.
    Times are milliseconds. An exemplar has the label `trace_id`, and stands once though several moments show it.
    """
    samples: dict[bytes, list[bytes]] = {}
    exemplars: dict[bytes, dict[bytes, None]] = {}
    for moment in moments:
        time = _SAMPLE_TIME + _varint(moment.t_ns // _NANOSECONDS_PER_MILLISECOND)
        for labels, value, exemplar in _series(moment):
            sample = _SAMPLE_VALUE + _DOUBLE.pack(value) + time
            samples.setdefault(labels, []).append(_field(_SERIES_SAMPLE, sample))
            if with_exemplars and exemplar is not None and exemplar[1]:
                exemplars.setdefault(labels, {})[_field(_SERIES_EXEMPLAR, _exemplar(exemplar))] = None
    return b"".join(
        _field(_REQUEST_SERIES, b"".join((labels, *of_series, *exemplars.get(labels, ()))))
        for labels, of_series in samples.items()
    )


def _series(moment: Points) -> Iterator[tuple[bytes, float, Exemplar | None]]:
    for family in moment.families:
        for labels, value in family.values.items():
            yield _labels(family.name, _named(family, labels, moment.node)), value, None
        for labels, histogram in family.histograms.items():
            named = _named(family, labels, moment.node)
            for bound, count, exemplar in buckets(histogram):
                yield _labels(f"{family.name}_bucket", {**named, "le": bound}), count, exemplar
            yield _labels(f"{family.name}_sum", named), histogram.sum, None
            yield _labels(f"{family.name}_count", named), histogram.counts[-1], None


def _named(family: Family, labels: tuple[str, ...], node: str) -> dict[str, str]:
    return {**dict(zip(family.labels, labels, strict=True)), "job": JOB, "instance": node}


def _labels(name: str, labels: Mapping[str, str]) -> bytes:
    pairs = sorted({**labels, "__name__": name}.items())
    return b"".join(_series_label(name, value) for name, value in pairs if value)


@lru_cache(maxsize=10_000)  # the same few hundred pairs in every moment: half of the time
def _series_label(name: str, value: str) -> bytes:
    return _field(_SERIES_LABEL, _label(name, value))


def _label(name: str, value: str) -> bytes:
    return _field(_LABEL_NAME, name.encode()) + _field(_LABEL_VALUE, value.encode())


def _exemplar(exemplar: Exemplar) -> bytes:
    value, trace_id, unix_seconds = exemplar
    label = _field(_EXEMPLAR_LABEL, _label("trace_id", trace_id))
    time = _EXEMPLAR_TIME + _varint(round(unix_seconds * 1000.0))
    return label + _EXEMPLAR_VALUE + _DOUBLE.pack(value) + time


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
