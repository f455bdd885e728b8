"""The daemon's own HTTP server: metrics, API, ingest and the page."""

from jouled.outputs.serve.door import Door
from jouled.outputs.serve.server import Running, build_app, start

__all__ = ["Door", "Running", "build_app", "start"]
