"""jouled, the joule daemon: it gives every measured joule of an inference host an owner."""

__version__ = "0.1.0"
