"""The number of the last commit that the world has seen, kept apart from the store."""

import logging
from pathlib import Path

_log = logging.getLogger(__name__)


class Published:
    """A small file in the runtime directory: it does not outlive a reboot, and neither do the scrapes' memories.

    It tells a store that was restored from an older copy apart from the one whose totals were last scraped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = path.with_name(path.name + ".next")

    def read(self) -> int | None:
        """The sequence number; `None` where nothing was published since boot, or the file cannot be read."""
        try:
            return int(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read (%s); taken as missing", self._path, error)
            return None

    def write(self, sequence: int) -> None:
        """Replace the number at once. Raises OSError.

        Not synced: only a crash of the whole machine loses it, and that empties the runtime directory anyway.
        """
        self._next.write_text(f"{sequence}\n", encoding="ascii")
        self._next.replace(self._path)


def may_continue(stored: int, published: int | None) -> bool:
    """Whether counters may go on from the commit `stored` after `published` was seen by the world.

    Going on from an older commit would be read as a counter reset by PromQL, and counted twice; then all counters
    start from zero instead.
    """
    return published is None or published <= stored
