"""What the settings of power sources share: bounded types, and the name of a node's feed."""

from typing import Annotated

from msgspec import Meta

FEED = "feed"
"""The virtual feed that all outlets of the node together are, whatever source reads them, where no other is named."""

Watts = Annotated[float, Meta(ge=0)]
"""A power that cannot be negative."""

IntervalSeconds = Annotated[float, Meta(gt=0, le=30)]
"""Time between two reads. Past 30 s a RAPL counter may wrap twice unseen (65 536 J at 500 W take 131 s; margin 4)."""
