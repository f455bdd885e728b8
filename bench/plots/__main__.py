"""Draw the figures of docs/attribution.md: `python -m bench.plots`, `make plots`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from bench.plots import errors, minute, receipts

FIGURES: dict[str, Callable[[], str]] = {
    "attribution-errors.svg": errors.draw,
    "attribution-minute.svg": minute.draw,
    "attribution-receipts.svg": receipts.draw,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"only these: {', '.join(FIGURES)}")
    parser.add_argument("--into", type=Path, default=Path("docs"), metavar="DIR", help="where they go (default docs)")
    options = parser.parse_args()
    if unknown := set(options.figures) - FIGURES.keys():
        raise SystemExit(f"unknown figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    options.into.mkdir(parents=True, exist_ok=True)
    for name in options.figures or FIGURES:
        path = options.into / name
        path.write_text(FIGURES[name](), encoding="utf-8")
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
