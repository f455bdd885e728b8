"""Just enough PromQL to know which series and labels an expression names; whether it parses, Prometheus itself says."""

import re
from dataclasses import dataclass

KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\}|\()?")


@dataclass(frozen=True)
class Used:
    """Metric -> labels in its selectors, and the labels of by, on and their like."""

    selectors: dict[str, set[str]]
    grouping: set[str]


def used(expression: str) -> Used:
    """What the expression names."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    grouping = {label for group in GROUPING.findall(bare) for label in re.findall(r"\w+", group)}
    bare = re.sub(r"\[[^\]]*\]", "", GROUPING.sub("", bare))
    selectors: dict[str, set[str]] = {}
    for name, rest in SELECTOR.findall(bare):
        if rest != "(" and name.lower() not in KEYWORDS:
            selectors.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", rest))
    return Used(selectors, grouping)
