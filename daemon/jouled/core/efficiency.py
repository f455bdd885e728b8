"""Tokens per joule of the last minutes: live, by meters and engine counters; and of good tokens, by the books."""

from collections.abc import Iterator

from jouled.core.accounting.account import Account
from jouled.core.accounting.windows import History, RatioWindow
from jouled.core.device_groups import DeviceGroups
from jouled.core.engines import Engines
from jouled.core.group_account import compute_uj
from jouled.core.trust import Gauge
from jouled.model.device import Quality
from jouled.model.units import MICROJOULES_PER_JOULE

LOWEST_COVERAGE = 0.9
"""Of an engine's tokens that request events must tell of for a ratio of goodput; below it something samples them."""


class Efficiency:
    """Watches tokens and energy grow. Two windows, for the books are behind what is measured."""

    def __init__(self, account: Account, engines: Engines, groups: DeviceGroups) -> None:
        self._account = account
        self._engines = engines
        self._groups = groups
        self._live_window = RatioWindow()
        self._book_window = RatioWindow()
        self._history = History()

    def observe(self, now_ns: int) -> None:
        """Time has passed, and cells have closed."""
        boundaries = self._account.counters.values.get("boundary_energy_joules_total", {})
        told = {labels[0]: value for labels, value in boundaries.items()}
        compute = float(compute_uj(self._groups.views()))
        names = [name for name in self._engines.tokens if name in self._engines.declared]
        self._live_window.span_ns = self._engines.window_ns(n for n in names if not self._groups.is_estimated(n))
        self._live_window.add(now_ns, {"generation": self._engines.generation, "compute": compute, **told})
        self._history.add(now_ns, {boundary: int(value) for boundary, value in told.items()})
        measured = [group for group in self._groups.living.values() if group.quality is not Quality.ESTIMATED]
        edges = [group.edge_ns for group in measured if group.engines and group.edge_ns is not None]
        if edges:
            self._observe_books(min(edges))

    def _observe_books(self, watermark_ns: int) -> None:
        values = {"compute": float(self._groups.accounts.booked_uj)}
        for boundary in ("node", "facility"):
            known = self._history.at(watermark_ns, boundary)
            if known is not None:
                values[boundary] = float(known)
        values.update({f"good {slo}": float(tokens) for slo, tokens in self._account.good_tokens.items()})
        self._book_window.add(watermark_ns, values)

    def gauges(self) -> Iterator[Gauge]:
        """The ratios of all boundaries."""
        objectives = [slo.name for slo in self._account.parameters.slos] if self._knows_goodput() else []
        for boundary in ("compute", "node", "facility"):
            yield "tokens_per_joule", (boundary,), _per_joule(self._live_window, "generation", boundary)
            for objective in objectives:
                ratio = _per_joule(self._book_window, f"good {objective}", boundary)
                yield "good_tokens_per_joule", (boundary, objective), ratio

    def _knows_goodput(self) -> bool:
        """Whether request events tell of most tokens: goodput of a sample would be too low by what is left out."""
        books = [book for name, book in self._groups.books.items() if not self._groups.is_estimated(name)]
        covered = [0.0 if book.by_counters else book.lost.coverage for book in books]
        return all(coverage is None or coverage >= LOWEST_COVERAGE for coverage in covered)


def _per_joule(window: RatioWindow, tokens: str, boundary: str) -> float | None:
    ratio = window.ratio(tokens, boundary)
    return None if ratio is None else ratio * MICROJOULES_PER_JOULE
