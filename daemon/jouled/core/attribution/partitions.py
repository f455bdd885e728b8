"""Partitions of a device (MIG): no sensor tells what one of them uses, so the parent's energy is parted by estimate.

Idle energy goes by slice, that of slices without an engine stays idle; the rest goes by the engines' expected work.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jouled.model.device import Device
from jouled.model.engine import Engine


class User(NamedTuple):
    """One engine in one cell of a shared device; fraction: the slice it holds, work: its expected dynamic energy."""

    engine: int
    fraction: float
    residency: float
    work: float


class Share(NamedTuple):
    """What one engine gets of a cell: microjoules, and its parts of idle power and uplift."""

    engine: int
    microjoules: int
    idle_part: float
    uplift_part: float


def slices_of(engine: Engine, partitions: Mapping[str, Device]) -> dict[str, float]:
    """By parent device, the fraction that an engine's partitions hold of it."""
    held: dict[str, float] = {}
    for name in engine.devices:
        partition = partitions.get(name)
        if partition is not None:
            held[partition.parent] = held.get(partition.parent, 0.0) + (partition.fraction or 0.0)
    return held


def slice_shares(users: Sequence[User], microjoules: int, idle_uj: float) -> tuple[list[Share], int]:
    """One cell of a partitioned device: each engine's share, and what stays idle with nobody's slices.

    Cumulative rounding; slices that add up to more than the device count in proportion.
    """
    whole = max(1.0, sum(user.fraction for user in users))
    idle = min(float(microjoules), idle_uj)
    work, residency = sum(user.work for user in users), sum(user.residency for user in users)
    shares, given, running = [], 0, 0.0
    for user in users:
        part = user.fraction / whole
        running += idle * part + (microjoules - idle) * (user.work / work if work > 0.0 else part)
        upto = min(round(running), microjoules)
        uplift_part = user.residency / residency if residency > 0.0 else 0.0
        shares.append(Share(user.engine, upto - given, part, uplift_part))
        given = upto
    return shares, microjoules - given
