"""The figures of docs/attribution.md, as SVG by hand: the same seeds give the same bytes."""
