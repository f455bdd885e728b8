"""The cumulative energy of one device over time, as knots between which it is linear."""

from bisect import bisect_left, bisect_right


class EnergyCurve:
    """Knots (core time in nanoseconds, cumulative microjoules), both rising; value before the first knot is its own.

    `forget_before` drops what no closed cell edge needs any more.
    """

    def __init__(self) -> None:
        self._t_ns: list[int] = []
        self._uj: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._t_ns)

    @property
    def first_ns(self) -> int:
        """Time of the earliest knot kept."""
        return self._t_ns[0]

    @property
    def last_ns(self) -> int:
        """Time up to which the curve is known."""
        return self._t_ns[-1]

    @property
    def last_uj(self) -> int:
        """Cumulative energy at `last_ns`, microjoules."""
        return self._uj[-1]

    def append(self, t_ns: int, cumulative_uj: int) -> None:
        """Add a knot later than all others."""
        self._t_ns.append(t_ns)
        self._uj.append(cumulative_uj)

    def value_at(self, t_ns: int) -> int:
        """Cumulative microjoules at `t_ns`: integer linear interpolation, constant outside the knots."""
        right = bisect_right(self._t_ns, t_ns)
        if right == 0:
            return self._uj[0] if self._uj else 0
        if right == len(self._t_ns):
            return self._uj[-1]
        t0, t1 = self._t_ns[right - 1], self._t_ns[right]
        e0, e1 = self._uj[right - 1], self._uj[right]
        return e0 + (e1 - e0) * (t_ns - t0) // (t1 - t0)

    def between(self, after_ns: int, before_ns: int) -> list[tuple[int, int]]:
        """The knots inside an interval, both ends left out."""
        low, high = bisect_right(self._t_ns, after_ns), bisect_left(self._t_ns, before_ns)
        return list(zip(self._t_ns[low:high], self._uj[low:high], strict=True))

    def flat_until(self, t_ns: int) -> int:
        """The time up to which no energy is used from `t_ns` on, as far as the curve is known."""
        index = max(bisect_right(self._t_ns, t_ns) - 1, 0)
        while index + 1 < len(self._uj) and self._uj[index + 1] == self._uj[index]:
            index += 1
        return max(self._t_ns[index], t_ns) if self._t_ns else t_ns

    def stand(self, t_ns: int) -> tuple[int, int, int | None]:
        """The stretch around `t_ns` in which no energy is told: begin, end, and the energy when it has moved again."""
        index = max(bisect_right(self._t_ns, t_ns) - 1, 0)
        first = last = index
        while first > 0 and self._uj[first - 1] == self._uj[index]:
            first -= 1
        while last + 1 < len(self._uj) and self._uj[last + 1] == self._uj[index]:
            last += 1
        moved_uj = self._uj[last + 1] if last + 1 < len(self._uj) else None
        return self._t_ns[first], self._t_ns[last], moved_uj

    def forget_before(self, t_ns: int) -> None:
        """Drop knots that are needed for no time from `t_ns` on."""
        keep_from = bisect_right(self._t_ns, t_ns) - 1
        if keep_from > 256:
            del self._t_ns[:keep_from]
            del self._uj[:keep_from]
