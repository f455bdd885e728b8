"""Energy per cell to energy per request (docs/attribution.md)."""
