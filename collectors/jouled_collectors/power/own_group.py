"""The group that rules for udev and modes of files let in: the daemon's own."""

import grp
import os


def group_name() -> str:
    """Its name, or its number where it has none."""
    group = os.getegid()
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
