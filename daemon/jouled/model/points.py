"""What push sinks send: all series of one moment, and receipts with the number they have in the spool."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from jouled.model.receipt import Receipt
from jouled.model.snapshot import Histogram, Labels

Kind = Literal["points", "receipts"]
"""The two streams of the spool; a sink takes one or both."""


class Family(Struct, frozen=True, kw_only=True):
    """All series of one metric, as on the metrics page.

    name: full, with prefix and suffix. labels: label names, in the order of the label values that are the keys. Values
    are in the unit of the name; a state set's last label value is the state.
    """

    name: str
    type: Literal["counter", "gauge", "histogram", "info", "stateset"]
    unit: str = ""
    help: str = ""
    labels: tuple[str, ...] = ()
    values: Mapping[Labels, float] = {}
    histograms: Mapping[Labels, Histogram] = {}


class Points(Struct, frozen=True, kw_only=True):
    """The committed series of one moment.

    number: grows by one from one moment to the next, and stays the same when they are sent again. t_ns: Unix
    nanoseconds. since_ns: Unix nanoseconds from which on the counters count. node: the `[node] name`.
    """

    number: int
    t_ns: int
    since_ns: int
    node: str
    families: tuple[Family, ...]


class NumberedReceipt(Struct, frozen=True):
    """A final receipt; its number grows from receipt to receipt and stays the same when it is sent again."""

    number: int
    receipt: Receipt
