"""What the MQTT sink publishes below its topic, as JSON.

`status` (retained): `online` or `offline`. `state` (retained): the headline figures of the newest moment, for
dashboards and home automation. `metrics`: every moment whole. `receipts`: one message a receipt. The last two carry a
`number`, by which a subscriber tells a repeat.
"""

import math
import re
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct

from jouled.model.points import Family, NumberedReceipt, Points
from jouled.model.snapshot import Histogram, Labels

_NOT_IN_A_TOPIC = re.compile(r"[/+#\x00-\x1f\x7f-\x9f]")
"""The separator, the wildcards, and the control characters that a broker may refuse (MQTT 5.0, 1.5.4 and 4.7.1)."""


class Message(Struct, frozen=True):
    """One message; always sent with QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


class Topics(Struct, frozen=True):
    """The sink's topics below its prefix."""

    prefix: str

    def status(self, word: str) -> Message:
        """`online`, or `offline`, which is the last will too."""
        return Message(f"{self.prefix}/status", word.encode(), retain=True)

    def state(self, moment: Points) -> Message:
        """The headline figures of a moment."""
        return Message(f"{self.prefix}/state", msgspec.json.encode(headline(moment)), retain=True)

    def metrics(self, moment: Points) -> Message:
        """All series of a moment."""
        whole = {
            "number": moment.number,
            "t_ns": moment.t_ns,
            "since_ns": moment.since_ns,
            "node": moment.node,
            "families": [_family(family) for family in moment.families],
        }
        return Message(f"{self.prefix}/metrics", msgspec.json.encode(whole))

    def receipt(self, numbered: NumberedReceipt) -> Message:
        """All fields of a receipt beside its number."""
        fields = {"number": numbered.number, **msgspec.structs.asdict(numbered.receipt)}
        return Message(f"{self.prefix}/receipts", msgspec.json.encode(fields))


def part(name: str, odd: re.Pattern[str] = _NOT_IN_A_TOPIC) -> str:
    """A name from outside as one part of a topic: odd characters become `_`, and a checksum keeps two names apart."""
    safe = odd.sub("_", name)
    return safe if safe == name else f"{safe}_{crc32(name.encode(errors='replace')):08x}"


def headline(moment: Points) -> dict[str, Any]:
    """The figures of the state topic. Power in watts, energy in joules; what was not read is missing.

    devices, meters: by name. engines: tokens by kind and `joules` by owner, over all models of the engine; energy that
    is a guess stands apart (`estimated_joules`). no_engine: the energy of devices that no engine runs on.
    """
    engines = _engines(moment)
    no_engine = engines.pop("", {})
    return {
        "number": moment.number,
        "t_ns": moment.t_ns,
        "node": moment.node,
        "devices": _with_meter(moment, "device"),
        "meters": _with_meter(moment, "meter"),
        "engines": engines,
        "no_engine": no_engine,
        "boundaries": _boundaries(moment),
    }


def _with_meter(moment: Points, what: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for labels, joules in _rows(moment, f"jouled_{what}_energy_joules_total"):
        kind = labels.get("kind") or labels.get("level", "")
        found[labels[what]] = {"kind": kind, "energy_joules": joules}
    for labels, watts in _rows(moment, f"jouled_{what}_power_watts"):
        found.setdefault(labels[what], {})["power_watts"] = watts
    return found


def _engines(moment: Points) -> dict[str, dict[str, dict[str, float]]]:
    engines: dict[str, dict[str, dict[str, float]]] = {}
    for labels, tokens in _rows(moment, "jouled_engine_tokens_total"):
        kinds = engines.setdefault(labels["engine"], {}).setdefault("tokens", {})
        kinds[labels["kind"]] = kinds.get(labels["kind"], 0) + tokens
    for labels, joules in _rows(moment, "jouled_energy_joules_total"):
        quality, owner = labels["quality"], labels["owner"]
        key = "joules" if quality == "measured" else f"{quality}_joules"
        owners = engines.setdefault(labels["engine"], {}).setdefault(key, {})
        owners[owner] = round(owners.get(owner, 0.0) + joules, 6)  # whole microjoules again after adding
    return engines


def _boundaries(moment: Points) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for key in ("energy_joules", "tokens_per_joule"):
        name = "jouled_boundary_energy_joules_total" if key == "energy_joules" else f"jouled_{key}"
        for labels, value in _rows(moment, name):
            found.setdefault(labels["boundary"], {})[key] = value
    return found


def _rows(moment: Points, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in moment.families:
        if family.name == name:
            for labels, value in family.values.items():
                yield _named(family, labels), value


def _family(family: Family) -> dict[str, Any]:
    series: list[dict[str, Any]] = [
        {"labels": _named(family, labels), "value": value} for labels, value in family.values.items()
    ]
    series += [
        {"labels": _named(family, labels), **_histogram(histogram)} for labels, histogram in family.histograms.items()
    ]
    return {"name": family.name, "type": family.type, "unit": family.unit, "series": series}


def _named(family: Family, labels: Labels) -> dict[str, str]:
    return dict(zip(family.labels, labels, strict=True))


def _histogram(histogram: Histogram) -> dict[str, Any]:
    finite = [repr(float(bound)) for bound in histogram.bounds if not math.isinf(bound)]
    buckets = dict(zip([*finite, "+Inf"], histogram.counts, strict=True))
    return {"buckets": buckets, "sum": histogram.sum, "count": histogram.counts[-1]}
