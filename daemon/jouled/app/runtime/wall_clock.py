"""Between the wall clock, which may step, and core time, which never does."""

from msgspec import Struct


class _Stretch(Struct, frozen=True):
    core_ns: int
    wall_minus_core_ns: int


class WallClock:
    """What the wall clock showed at every moment of core time.

    Core time equals wall time at the start; after a step of the wall clock they differ by the sum of all steps so far.
    Wall times that a step backwards makes happen twice are taken for the later ones.
    """

    def __init__(self) -> None:
        self._stretches = [_Stretch(core_ns=0, wall_minus_core_ns=0)]

    def step(self, core_ns: int, wall_minus_core_ns: int) -> None:
        """From `core_ns` on, wall time is core time plus `wall_minus_core_ns`; steps are told in their order."""
        self._stretches.append(_Stretch(core_ns=core_ns, wall_minus_core_ns=wall_minus_core_ns))

    @property
    def wall_minus_core_ns(self) -> int:
        """What to add to core time now to get wall time."""
        return self._stretches[-1].wall_minus_core_ns

    def to_core(self, wall_ns: int) -> int:
        """Core time of a Unix time stamp."""
        for stretch in reversed(self._stretches):
            if wall_ns - stretch.wall_minus_core_ns >= stretch.core_ns:
                return wall_ns - stretch.wall_minus_core_ns
        return wall_ns

    def to_wall(self, core_ns: int) -> int:
        """Unix time stamp of core time."""
        for stretch in reversed(self._stretches):
            if core_ns >= stretch.core_ns:
                return core_ns + stretch.wall_minus_core_ns
        return core_ns
