"""A configuration as TOML again, for people; secrets are not shown."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from jouled.app.config.types import Config

_SECRET = re.compile(r"(password|token(?!s)|secret|community|credential)(?!.*_file$)", re.IGNORECASE)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(config: Config) -> str:
    """Everything that is set, defaults included; what is not set is left out."""
    tables = msgspec.to_builtins(config)
    tables["requests"] |= tables.pop("receivers")
    return "\n".join(_table(tables, ""))


def _table(table: Mapping[str, Any], path: str) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if _is_table(value)}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{_key(key)} = {_value('…' if _SECRET.search(key) else value)}"
    for key, value in inner.items():
        name = f"{path}{_key(key)}"
        for title, each in [(f"[{name}]", value)] if isinstance(value, dict) else [(f"[[{name}]]", v) for v in value]:
            yield f"\n{title}"
            yield from _table(each, f"{name}.")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    # JSON's strings, numbers, truth values and lists are TOML's too.
    return msgspec.json.encode(value).decode()
