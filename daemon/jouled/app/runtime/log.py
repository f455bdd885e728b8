"""Logging: one line for each change of state, to standard error, where systemd's journal takes it."""

import logging
import os

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class _JournalFormatter(logging.Formatter):
    """Puts the priority in front, as sd-daemon(3) reads it; the journal has the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"<{_PRIORITIES.get(record.levelno, 6)}>{super().format(record)}"
        return text.replace("\n", f"\n<{_PRIORITIES.get(record.levelno, 6)}>")


def set_up() -> None:
    """Send the program's log to standard error."""
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
