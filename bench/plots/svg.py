"""Just enough SVG for a figure: axes of one panel, shapes in pixels, coordinates in tenths at most."""

from collections.abc import Iterable, Sequence
from html import escape
from math import log10

from msgspec import Struct

Point = tuple[float, float]
INK, FAINT = "#222222", "#dddddd"


class Axis(Struct, frozen=True, kw_only=True):
    """From values to pixels; `low` lies at `begin`, `high` at `end`. What lies outside is drawn on the border."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies."""
        held = min(max(value, self.low), self.high)
        if self.logarithmic:
            part = log10(held / self.low) / log10(self.high / self.low)
        else:
            part = (held - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)


class Drawing:
    """Shapes in the order in which they are drawn, on white: the page around it may be dark."""

    def __init__(self, width: int, height: int) -> None:
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="{INK}">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", color: str = INK) -> None:
        """Words on a base line. anchor: `start`, `middle` or `end`."""
        self._lines.append(
            f'<text {_at("x", x)} {_at("y", y)} text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'
        )

    def upright(self, x: float, y: float, words: str) -> None:
        """Words that run upwards, centred."""
        turned = f'transform="translate({short(x)} {short(y)}) rotate(-90)"'
        self._lines.append(f'<text {turned} text-anchor="middle">{escape(words)}</text>')

    def line(self, begin: Point, end: Point, color: str = FAINT, *, width: float = 1.0, dashes: str = "") -> None:
        """A straight line."""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        ends = f"{_at('x1', begin[0])} {_at('y1', begin[1])} {_at('x2', end[0])} {_at('y2', end[1])}"
        self._lines.append(f'<line {ends} stroke="{color}" stroke-width="{width}"{dashed}/>')

    def dots(self, points: Iterable[Point], color: str, *, size: float = 6.0, opacity: float = 1.0) -> None:
        """Round dots, as one path of lines without length."""
        path = "".join(f"M{short(x)} {short(y)}h0" for x, y in points)
        self._stroke(path, color, size, f' stroke-opacity="{opacity}" stroke-linecap="round"')

    def bars(self, spans: Iterable[tuple[float, float, float]], color: str, *, opacity: float) -> None:
        """Upright lines (x, from y, to y)."""
        path = "".join(f"M{short(x)} {short(low)}V{short(high)}" for x, low, high in spans)
        self._stroke(path, color, 1.0, f' stroke-opacity="{opacity}"')

    def steps(self, xs: Sequence[float], ys: Sequence[float], color: str, *, width: float = 1.0) -> None:
        """A line that holds each y from its x to the next; there is one x more."""
        self._stroke(_staircase(xs, ys), color, width, "")

    def area(self, xs: Sequence[float], ys: Sequence[float], floor: float, color: str) -> None:
        """What lies between such a line and a floor."""
        path = f"{_staircase(xs, ys)}V{short(floor)}H{short(xs[0])}Z"
        self._lines.append(f'<path d="{path}" fill="{color}"/>')

    def swatch(self, x: float, y: float, color: str, words: str) -> None:
        """An entry of a legend: a square and its words."""
        self._lines.append(f'<rect {_at("x", x)} {_at("y", y - 10)} width="11" height="11" fill="{color}"/>')
        self.text(x + 16, y, words)

    def done(self) -> str:
        """The file."""
        return "\n".join((*self._lines, "</svg>", ""))

    def _stroke(self, path: str, color: str, width: float, more: str) -> None:
        self._lines.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"{more}/>')


def short(value: float) -> str:
    """A tenth of a pixel is enough."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def _at(name: str, value: float) -> str:
    return f'{name}="{short(value)}"'


def _staircase(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Steps; a level that does not change is not told again."""
    path, last = [f"M{short(xs[0])} {short(ys[0])}"], short(ys[0])
    for x, y in zip(xs[1:], ys[1:], strict=False):
        if short(y) != last:
            last = short(y)
            path.append(f"H{short(x)}V{last}")
    return "".join((*path, f"H{short(xs[len(ys)])}"))
