"""What is wrong with one key."""

from collections.abc import Iterable
from difflib import get_close_matches


class Fault(Exception):  # noqa: N818 - it becomes a ConfigurationError as soon as the file is known
    """One key that cannot be used: its path (`$.serve.listen`), what is wrong, what mends it."""

    def __init__(self, key: str, what: str, mend: str = "") -> None:
        super().__init__(f"{key}: {what}")
        self.key = key
        self.what = what
        self.mend = mend


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was probably meant, or what there is."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known here: {', '.join(names)}" if names else ""
