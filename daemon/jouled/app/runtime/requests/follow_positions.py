"""How far followed files are read, and the small file in the state directory that keeps it over restarts."""

import logging
import os
from pathlib import Path

import msgspec
from msgspec import Struct

_log = logging.getLogger(__name__)


class Position(Struct, kw_only=True):
    """How far one file is read.

    size: as last seen. skipping: the rest of the line at `offset` is not wanted. head: hash of the first `head_bytes`,
    by which the file is known again.
    """

    offset: int = 0
    size: int = 0
    skipping: bool = False
    head_bytes: int = 0
    head: str = ""


class Positions(Struct, kw_only=True):
    """Of each file of a folder, by inode."""

    directory: str
    by_inode: dict[int, Position]


def load(path: Path, directory: str) -> dict[int, Position] | None:
    """What was kept of this folder, `None` where that is nothing or cannot be read."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Positions)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s): reading goes on at the end of what is there", path, error)
        return None
    return kept.by_inode if kept.directory == directory else None


def save(path: Path, positions: Positions) -> None:
    """Replace what was kept, at once and synced. Raises OSError."""
    fresh = path.with_name(path.name + ".next")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(positions))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
