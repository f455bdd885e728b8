"""The core's objects as bytes and back: what a restarted daemon goes on from (ADR 0006).

Every object with an identity has a numbered record, so objects that are shared stay shared; scalars, tuples and enum
members are values inside records. Attributes are found, not listed: a new one is saved without a word here. Only
classes of the core and the model are made again, without calling any of their code; state written by another version,
or by classes with other attributes, is refused as a whole.
"""

import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct

FORMAT = 1
PACKAGES = ("jouled.core.", "jouled.model.")
RECORDS_PER_CHUNK = 500
"""Encoded at once: so many records hold up other threads for less than a millisecond."""

_SCALARS = frozenset({type(None), bool, int, float, str})
_TUPLE, _REFERENCE, _ENUM, _METHOD, _CLASS = 0, -1, -2, -3, -4
_DICTS: tuple[type, ...] = (dict, OrderedDict, Counter)
_SETS: tuple[type, ...] = (set, frozenset)
_encode = msgspec.msgpack.Encoder().encode


class StateError(Exception):
    """State that cannot be saved, or not be gone on from; the text says of the state why."""


class Header(Struct, array_like=True, frozen=True):
    """What stands before the records: who wrote them, and of which classes they are."""

    format: int
    version: str
    classes: list[tuple[str, int]]
    schemas: list[tuple[int, list[str]]]
    root: int


class Frozen:
    """A copy of the objects that later changes to them do not touch; `chunks` makes bytes of it, in any thread."""

    def __init__(self, header: Header, records: list[list[Any]]) -> None:
        self._header = header
        self._records = records

    def chunks(self) -> Iterator[bytes]:
        """The bytes, piece by piece. Raises `StateError` for a number that has no place in them."""
        # An array of the header and the chunks of records, whose number goes first (msgpack's array32).
        count = 1 + -(-len(self._records) // RECORDS_PER_CHUNK)
        yield b"\xdd" + count.to_bytes(4, "big") + _encode(self._header)
        try:
            for begin in range(0, len(self._records), RECORDS_PER_CHUNK):
                yield _encode(self._records[begin : begin + RECORDS_PER_CHUNK])
        except OverflowError as error:
            raise StateError(f"has a number that is too large: {error}") from error


def freeze(root: object, version: str, *, afresh: tuple[type, ...] = ()) -> Frozen:
    """Copy everything that can be reached from `root`; objects of the classes `afresh` come back newly made.

    Raises:
        StateError: something in it is neither plain data nor of the core's classes.
    """
    try:
        return _Freezer(version, afresh).freeze(root)
    except AttributeError as error:
        raise StateError(f"lacks an attribute: {error}") from error


def thaw(data: bytes, version: str) -> Any:
    """The root object again.

    Raises:
        StateError: another version wrote it, its classes have changed, or the bytes are damaged.
    """
    try:
        return _Thawer(data, version).root()
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"is damaged ({type(error).__name__}: {error})") from error


class _Freezer:
    def __init__(self, version: str, afresh: tuple[type, ...]) -> None:
        self._version = version
        self._afresh = afresh
        self._numbers: dict[int, int] = {}
        self._objects: list[Any] = []
        self._classes: dict[type, int] = {}
        self._schemas: dict[tuple[int, tuple[str, ...]], int] = {}
        self._known = dict(_core_classes())
        self._how: dict[type, Callable[[Any], list[Any]]] = {
            list: lambda x: ["list", self._values(x)],
            deque: lambda x: ["deque", x.maxlen, self._values(x)],
            **dict.fromkeys(_DICTS, self._dict),
            **dict.fromkeys(_SETS, self._set),
        }

    def freeze(self, root: object) -> Frozen:
        number = self._number(root)
        records: list[list[Any]] = []
        how = self._how
        # The list grows while it is walked: every object found is put at its end.
        for found in self._objects:
            kind = how.get(type(found))
            if kind is None:
                kind = how[type(found)] = self._kind_of(type(found))
            records.append(kind(found))
        classes = [(_name(cls), _signature(cls)) for cls in self._classes]
        schemas = [(cls, list(names)) for cls, names in self._schemas]
        return Frozen(Header(FORMAT, self._version, classes, schemas, number), records)

    def _number(self, found: object) -> int:
        number = self._numbers.get(id(found))
        if number is None:
            number = self._numbers[id(found)] = len(self._objects)
            self._objects.append(found)
        return number

    def _class(self, cls: type) -> int:
        """Numbers of classes begin with 1: 0 stands for a plain tuple."""
        number = self._classes.get(cls)
        if number is None:
            if self._known.get(_name(cls)) is not cls:
                raise StateError(f"has a {_name(cls)}, which is none of the core's classes")
            number = self._classes[cls] = len(self._classes) + 1
        return number

    def _kind_of(self, cls: type) -> Callable[[Any], list[Any]]:
        number = self._class(cls)
        if issubclass(cls, self._afresh):
            return lambda _: ["afresh", number]
        if issubclass(cls, Struct):
            # One that cannot change is encoded later, with the record.
            if cls.__struct_config__.frozen:
                return lambda x: ["struct", number, x]
            return lambda x: ["struct", number, msgspec.to_builtins(x)]
        slots = _slots(cls)
        if len(slots) > 1 and cls.__dictoffset__ == 0:
            return self._plain(number, slots)
        return lambda x: self._object(x, number, slots)

    def _plain(self, number: int, slots: tuple[str, ...]) -> Callable[[Any], list[Any]]:
        """For classes of which there may be thousands: all attributes at once."""
        schema = self._schemas.setdefault((number, slots), len(self._schemas))
        all_of = attrgetter(*slots)
        return lambda x: ["object", schema, self._values(all_of(x))]

    def _object(self, found: Any, number: int, slots: tuple[str, ...]) -> list[Any]:
        own = getattr(found, "__dict__", {})
        names = (*(name for name in slots if hasattr(found, name)), *own)
        schema = self._schemas.setdefault((number, names), len(self._schemas))
        return ["object", schema, self._values([getattr(found, name) for name in names])]

    def _dict(self, found: dict[Any, Any]) -> list[Any]:
        return ["dict", _DICTS.index(type(found)), self._values(found), self._values(found.values())]

    def _set(self, found: set[Any]) -> list[Any]:
        return ["set", _SETS.index(type(found)), self._values(found)]

    def _values(self, found: Collection[Any]) -> list[Any]:
        if _SCALARS.issuperset(map(type, found)):
            return list(found)
        value, scalars = self._value, _SCALARS
        return [item if type(item) in scalars else value(item) for item in found]

    def _value(self, item: Any) -> list[Any]:
        number = self._numbers.get(id(item))
        if number is not None:
            return [_REFERENCE, number]
        cls = type(item)
        if isinstance(item, tuple):
            return [_TUPLE if cls is tuple else self._class(cls), *self._values(item)]
        if isinstance(item, Enum):
            return [_ENUM, self._class(cls), item.value]
        if isinstance(item, MethodType):
            return [_METHOD, self._number(item.__self__), item.__name__]
        if isinstance(item, type):
            return [_CLASS, self._class(item)]
        return [_REFERENCE, self._number(item)]


class _Thawer:
    def __init__(self, data: bytes, version: str) -> None:
        header, *chunks = msgspec.msgpack.decode(data, type=list[Any])
        self._header = msgspec.convert(header, type=Header)
        if self._header.format != FORMAT or self._header.version != version:
            raise StateError(f"was written by jouled {self._header.version}, this is {version}")
        self._classes = [tuple, *self._same_classes()]
        self._records: list[list[Any]] = [record for chunk in chunks for record in chunk]
        self._objects: list[Any] = []

    def _same_classes(self) -> list[type]:
        known = dict(_core_classes())
        classes = []
        for name, signature in self._header.classes:
            cls = known.get(name)
            if cls is None or _signature(cls) != signature:
                raise StateError(f"has another {name.rpartition(':')[2]}")
            classes.append(cls)
        return classes

    def root(self) -> Any:
        # Objects first, empty; then what is in them, for they refer to one another.
        self._objects = [self._empty(record) for record in self._records]
        for made, record in zip(self._objects, self._records, strict=True):
            self._fill(made, record)
        return self._objects[self._header.root]

    def _empty(self, record: list[Any]) -> Any:
        kind, which = record[0], record[1]
        if kind == "object":
            cls = self._classes[self._header.schemas[which][0]]
            return cls.__new__(cls)
        if kind == "struct":
            return msgspec.convert(record[2], self._classes[which])
        if kind == "afresh":
            return self._classes[which]()
        if kind == "deque":
            return deque(maxlen=which)
        if kind == "set":
            # A frozen set cannot be filled later, so what it holds must be plain values.
            return _SETS[which](self._values(record[2]) if which else ())
        return _DICTS[which]() if kind == "dict" else []

    def _fill(self, made: Any, record: list[Any]) -> None:
        kind = record[0]
        if kind == "object":
            names = self._header.schemas[record[1]][1]
            for name, value in zip(names, self._values(record[2]), strict=True):
                object.__setattr__(made, name, value)
        elif kind == "dict":
            for key, value in zip(self._values(record[2]), self._values(record[3]), strict=True):
                made[key] = value
        elif kind == "set" and record[1] == 0:
            made.update(self._values(record[2]))
        elif kind == "deque":
            made.extend(self._values(record[2]))
        elif kind == "list":
            made.extend(self._values(record[1]))

    def _values(self, items: list[Any]) -> list[Any]:
        value = self._value
        return [value(item) if type(item) is list else item for item in items]

    def _value(self, item: list[Any]) -> Any:
        tag, *rest = item
        if tag >= _TUPLE:
            values = self._values(rest)
            return tuple(values) if tag == _TUPLE else self._classes[tag](*values)
        if tag == _REFERENCE:
            return self._objects[rest[0]]
        if tag == _METHOD:
            return self._method(*rest)
        cls = self._classes[rest[0]]
        return cls(rest[1]) if tag == _ENUM else cls

    def _method(self, number: int, name: str) -> Any:
        owner = self._objects[number]
        function = getattr(type(owner), name)
        if not isinstance(function, FunctionType):
            raise StateError(f"has a method {type(owner).__name__}.{name}, which there is not")
        return MethodType(function, owner)


def _core_classes() -> Iterator[tuple[str, type]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(PACKAGES):
            for found in vars(module).values():
                if isinstance(found, type) and found.__module__ == module_name:
                    yield _name(found), found


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _slots(cls: type) -> tuple[str, ...]:
    return tuple(name for base in cls.__mro__ for name in base.__dict__.get("__slots__", ()) if name != "__dict__")


def _signature(cls: type) -> int:
    """A number that changes with a class's attributes: fields, slots, and the names that making one uses."""
    if issubclass(cls, Struct):
        return crc32(repr(cls.__struct_fields__).encode())
    if issubclass(cls, Enum):
        return crc32(repr([(member.name, member.value) for member in cls]).encode())
    made = [base.__dict__["__init__"].__code__.co_names for base in cls.__mro__ if _has_own_init(base)]
    return crc32(repr((_slots(cls), getattr(cls, "_fields", ()), made)).encode())


def _has_own_init(cls: type) -> bool:
    return isinstance(cls.__dict__.get("__init__"), FunctionType)
