"""The environment over the file: `JOULED_SECTION__KEY=value`."""

import tomllib
from collections.abc import Mapping
from typing import Any

from msgspec import inspect

from jouled.app.config.convert import bare
from jouled.app.config.faults import Fault
from jouled.app.config.types import Config

PREFIX = "JOULED_"
SEPARATOR = "__"


def overlay(tables: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Set in `tables` what the environment says, and tell which variable set which key path.

    Every variable `JOULED_A__B` is the key `b` of section `a`; deeper tables have more parts. A value is read as
    TOML; what is not TOML, and all that is wanted as text, is taken literally. Names without `__` are not ours.
    """
    origins = {}
    for name, value in sorted(environment.items()):
        if name.startswith(PREFIX) and SEPARATOR in name:
            keys = name.removeprefix(PREFIX).lower().split(SEPARATOR)
            path = ".".join(["$", *keys])
            if not all(keys):
                raise Fault(path, f"{name} names no key", "Write it as JOULED_SECTION__KEY")
            origins[path] = name
            _table_at(tables, keys[:-1], path, name)[keys[-1]] = _value(keys, value)
    return origins


def _table_at(tables: dict[str, Any], keys: list[str], path: str, name: str) -> dict[str, Any]:
    table = tables
    for key in keys:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise Fault(path, f"{name} cannot reach into `{key}`, which is no table", "Set it in the file")
    return table


def _value(keys: list[str], text: str) -> Any:
    if _is_text(keys):
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _is_text(keys: list[str]) -> bool:
    kind: inspect.Type = inspect.type_info(Config)
    for key in keys:
        if not isinstance(kind, inspect.StructType):
            return False
        fields = {field.encode_name: field.type for field in kind.fields}
        kind = bare(fields.get(key, inspect.AnyType()))
    return isinstance(kind, inspect.StrType)
