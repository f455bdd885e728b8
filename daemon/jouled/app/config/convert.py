"""From untyped tables to a struct, strictly: no unknown key or word, no wrong type, no number that is none."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from jouled.app.config.faults import Fault, nearest

T = TypeVar("T")

_WORDS = {
    "object": "a table",
    "array": "a list",
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
_TYPE = re.compile(r"`(\w+)(?: \| null)?`")


def convert(value: Any, target: type[T], path: str) -> T:
    """Turn tables into `target`; `path` is where they stand in the configuration.

    Raises `Fault` with the path of the first key that does not fit.
    """
    _refuse_unknown(value, inspect.type_info(target), path)
    _refuse_infinite(value, path)
    try:
        return msgspec.convert(value, target)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise Fault(path + place.rstrip("`"), _plainly(reason)) from None


def bare(kind: inspect.Type) -> inspect.Type:
    """The type itself, without its annotations and without `None`."""
    if isinstance(kind, inspect.Metadata):
        return bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        types = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
        return bare(types[0]) if len(types) == 1 else kind
    return kind


def _refuse_unknown(value: Any, target: inspect.Type, path: str) -> None:
    kind = bare(target)
    if isinstance(kind, inspect.EnumType):
        _refuse_word(value, [member.value for member in kind.cls], path)
    if isinstance(kind, inspect.LiteralType):
        _refuse_word(value, kind.values, path)
    if isinstance(kind, inspect.DictType) and not isinstance(value, dict):
        raise Fault(path, f"expected a table, got {value!r}")
    for item, item_kind, item_path in _parts(value, kind, path):
        _refuse_unknown(item, item_kind, item_path)


def _parts(value: Any, kind: inspect.Type, path: str) -> Iterator[tuple[Any, inspect.Type, str]]:
    match kind:
        case inspect.StructType(fields=fields) if isinstance(value, dict):
            known = {field.encode_name: field.type for field in fields}
            for key, item in value.items():
                if key not in known:
                    raise Fault(f"{path}.{key}", f"unknown key `{key}`", nearest(key, known))
                yield item, known[key], f"{path}.{key}"
        case inspect.DictType(value_type=value_kind):
            yield from ((item, value_kind, f"{path}.{key}") for key, item in value.items())
        case inspect.ListType(item_type=item_kind) if isinstance(value, list):
            yield from ((item, item_kind, f"{path}[{index}]") for index, item in enumerate(value))


def _refuse_word(value: Any, known: Iterable[Any], path: str) -> None:
    if isinstance(value, str) and value not in known:
        raise Fault(path, f"unknown value `{value}`", nearest(value, map(str, known)))


def _refuse_infinite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Fault(path, f"{value} is no finite number")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_infinite(item, f"{path}.{key}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_infinite(item, f"{path}[{index}]")


def _plainly(reason: str) -> str:
    # msgspec speaks of JSON and Python types; the reader wrote TOML.
    words = reason.replace("Object missing required field", "lacks the key")
    words = _TYPE.sub(lambda found: _WORDS.get(found[1], found[0]), words)
    return words[:1].lower() + words[1:]
