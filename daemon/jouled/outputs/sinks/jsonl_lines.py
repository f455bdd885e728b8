"""Points and receipts as lines of JSON, and how a line tells which record it holds."""

from typing import Any

import msgspec
from msgspec import Struct, structs

from jouled.model.points import Family, Kind, NumberedReceipt, Points

Key = tuple[Kind, int, int, str]
"""Stream, number, Unix nanoseconds and id of a record: the number alone begins anew after the store was lost."""

_TYPES: dict[Kind, str] = {"points": "points", "receipts": "receipt"}
_KINDS: dict[str, Kind] = {word: kind for kind, word in _TYPES.items()}

_encoder = msgspec.json.Encoder()


class _Head(Struct):
    """What a line is recognised by; everything else in it is passed over."""

    type: str
    number: int
    t_ns: int = 0
    last_token_ns: int = 0
    id: str = ""


_decoder = msgspec.json.Decoder(_Head)


def line_of(record: Points | NumberedReceipt, node: str) -> bytes:
    """One line with its end. Times are Unix nanoseconds, values in the unit of their names; NaN is null."""
    fields = _points(record) if isinstance(record, Points) else _receipt(record, node)
    return _encoder.encode(fields) + b"\n"


def key_of(record: Points | NumberedReceipt) -> Key:
    """What tells this record from every other one."""
    if isinstance(record, Points):
        return "points", record.number, record.t_ns, ""
    return "receipts", record.number, record.receipt.last_token_ns, record.receipt.id


def key_in(line: bytes) -> Key | None:
    """The key of the record in a line; `None` where it holds none."""
    try:
        head = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    kind = _KINDS.get(head.type)
    if kind is None:
        return None
    return kind, head.number, head.t_ns if kind == "points" else head.last_token_ns, head.id


def _receipt(numbered: NumberedReceipt, node: str) -> dict[str, Any]:
    return {"type": "receipt", "number": numbered.number, "node": node, **structs.asdict(numbered.receipt)}


def _points(moment: Points) -> dict[str, Any]:
    return {
        "type": "points",
        "number": moment.number,
        "t_ns": moment.t_ns,
        "since_ns": moment.since_ns,
        "node": moment.node,
        "families": [_family(family) for family in moment.families],
    }


def _family(family: Family) -> dict[str, Any]:
    series: list[dict[str, Any]] = [
        {"labels": dict(zip(family.labels, labels, strict=True)), "value": value}
        for labels, value in family.values.items()
    ]
    series += [
        {"labels": dict(zip(family.labels, labels, strict=True)), **structs.asdict(histogram)}
        for labels, histogram in family.histograms.items()
    ]
    return {"name": family.name, "type": family.type, "unit": family.unit, "series": series}
