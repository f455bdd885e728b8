"""Collectors and receivers by entry point. A broken one is told and left out; it never stops the start."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec
from msgspec import Struct

from jouled.api import (
    API_VERSION,
    DatagramIngest,
    DrainSettings,
    EngineCollector,
    FileFollow,
    FollowSettings,
    GrpcIngest,
    HttpIngest,
    PageDrain,
    PowerCollector,
    PowerSettings,
    Receiver,
    Sink,
    SinkSettings,
)
from jouled.app.config.faults import nearest
from jouled.app.config.load import receiver_settings_for, settings_for, sink_settings_for
from jouled.app.config.types import EngineConfig, Requests
from jouled.model.errors import ConfigurationError

POWER, ENGINES, REQUESTS, SINKS = "jouled.power", "jouled.engines", "jouled.requests", "jouled.sinks"

_OWN_PACKAGE = "jouled"
_NEEDED = {
    POWER: ("isolation", "settings_type", "open"),
    ENGINES: (
        "page_path", "version_path", "default_port", "semantics", "recognises", "port", "page", "version",
    ),
    REQUESTS: (),
    SINKS: ("settings_type", "open"),
}  # fmt: skip
_RECEIVERS: tuple[type, ...] = (HttpIngest, DatagramIngest, GrpcIngest, FileFollow, PageDrain)


class RefusedPlugin(Struct, frozen=True):
    """A plug-in that cannot be used: its entry-point group and name, the package it came with, and why."""

    group: str
    name: str
    package: str
    reason: str

    def __str__(self) -> str:
        return f"the plug-in `{self.name}` ({self.group}) of package {self.package} is left out: {self.reason}"


class Plugins(Struct, frozen=True, kw_only=True):
    """Everything that is installed, by name."""

    power: Mapping[str, PowerCollector] = {}
    engines: Mapping[str, EngineCollector] = {}
    requests: Mapping[str, Receiver] = {}
    sinks: Mapping[str, Sink] = {}
    refused: tuple[RefusedPlugin, ...] = ()

    def http_ingests(self) -> tuple[HttpIngest, ...]:
        """The receivers that are fed by HTTP."""
        return tuple(receiver for receiver in self.requests.values() if isinstance(receiver, HttpIngest))

    def grpc_ingests(self) -> tuple[GrpcIngest, ...]:
        """The receivers that are fed by gRPC."""
        return tuple(receiver for receiver in self.requests.values() if isinstance(receiver, GrpcIngest))

    def power_settings(
        self, tables: Mapping[str, Mapping[str, Any]], origin: str = "configuration"
    ) -> dict[str, PowerSettings]:
        """The settings of every collector that has a `[power.<name>]` table; `origin` is the file.

        Raises `ConfigurationError` for a collector that does not exist. One that is broken is left out: it is told
        already.
        """
        broken = {plugin.name for plugin in self.refused if plugin.group == POWER}
        settings = {}
        for name, table in tables.items():
            if name in self.power:
                settings[name] = settings_for(self.power[name], table, origin)
            elif name not in broken:
                raise ConfigurationError(
                    f"{origin}: $.power.{name}: no power collector is called `{name}`", mend=nearest(name, self.power)
                )
        return settings

    def sink_settings(
        self, tables: Mapping[str, Mapping[str, Any]], origin: str = "configuration"
    ) -> dict[str, tuple[Sink, SinkSettings]]:
        """The sink and the settings of every `[sinks.<name>]` table; `origin` is the file.

        Raises `ConfigurationError` for a sink that does not exist or is broken: what was to be sent must not be lost
        in silence.
        """
        broken = {plugin.name: plugin for plugin in self.refused if plugin.group == SINKS}
        settings = {}
        for name, table in tables.items():
            kind = str(table.get("type") or name)
            if kind in broken:
                raise ConfigurationError(f"{origin}: $.sinks.{name}: {broken[kind]}")
            if kind not in self.sinks:
                mend = nearest(kind, self.sinks)
                raise ConfigurationError(f"{origin}: $.sinks.{name}: no sink is called `{kind}`", mend=mend)
            sink = self.sinks[kind]
            settings[name] = (sink, sink_settings_for(sink, name, table, origin))
        return settings

    def receiver_settings_types(self) -> dict[str, type[Struct]]:
        """The settings that receivers have of their own, by name."""
        types = {name: getattr(receiver, "settings_type", None) for name, receiver in self.requests.items()}
        return {name: settings_type for name, settings_type in types.items() if settings_type is not None}

    def receiver_settings(
        self, tables: Mapping[str, Mapping[str, Any]], origin: str = "configuration"
    ) -> dict[str, Struct]:
        """The settings of every receiver that has some, defaults where there is no `[requests.<name>]` table.

        `origin` is the file. Raises `ConfigurationError` for a table that belongs to no receiver. One that is broken is
        left out: it is told already.
        """
        types = self.receiver_settings_types()
        broken = {plugin.name for plugin in self.refused if plugin.group == REQUESTS}
        for name in tables.keys() - types.keys() - broken:
            mend = nearest(name, {*types, *Requests.__struct_fields__})
            raise ConfigurationError(f"{origin}: $.requests.{name}: no receiver with settings has this name", mend=mend)
        return {
            name: receiver_settings_for(name, settings_type, tables.get(name, {}), origin)
            for name, settings_type in types.items()
        }

    def discoverable(self) -> dict[str, PowerSettings]:
        """The power collectors that can look for devices without being configured, with default settings."""
        found = {}
        for name, collector in self.power.items():
            try:
                found[name] = msgspec.convert({}, collector.settings_type)
            except msgspec.ValidationError:
                continue  # it needs to be told where its meter is
        return found


def load_plugins(find: Callable[..., Iterable[metadata.EntryPoint]] = metadata.entry_points) -> Plugins:
    """Load whatever is installed; `find` gives the entry points of a group."""
    loaded: dict[str, dict[str, Any]] = {}
    refused: list[RefusedPlugin] = []
    for group in _NEEDED:
        loaded[group] = {}
        for entry in sorted(find(group=group), key=_own_first):
            try:
                loaded[group][entry.name] = _load(entry, loaded[group])
            except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code at import may do anything
                reason = str(error) if isinstance(error, _UnfitError) else f"{type(error).__name__}: {error}"
                refused.append(RefusedPlugin(group, entry.name, _package(entry), reason))
    return Plugins(
        power=loaded[POWER],
        engines=loaded[ENGINES],
        requests=loaded[REQUESTS],
        sinks=loaded[SINKS],
        refused=tuple(refused),
    )


def check_types(configured: Sequence[EngineConfig], collectors: Mapping[str, EngineCollector]) -> None:
    """Raise `ConfigurationError` for an engine whose page nobody can read."""
    for config in configured:
        if config.url and config.type not in collectors:
            raise ConfigurationError(
                f"engine {config.name or config.url}: no collector reads the page of a `{config.type}`",
                mend=f"Set its type to one of {', '.join(sorted(collectors))}",
            )


class _UnfitError(Exception):
    pass


def _load(entry: metadata.EntryPoint, taken: Mapping[str, Any]) -> Any:
    if entry.name in taken:
        raise _UnfitError("another package offers the same name")
    plugin = entry.load()()
    version = getattr(plugin, "api_version", API_VERSION)
    if version != API_VERSION:
        raise _UnfitError(f"it is made for version {version} of the interface, this is version {API_VERSION}")
    missing = [name for name in ("name", *_NEEDED[entry.group]) if not hasattr(plugin, name)]
    if missing:
        raise _UnfitError(f"it lacks {', '.join(missing)}")
    if plugin.name != entry.name:
        raise _UnfitError(f"it calls itself `{plugin.name}`")
    if entry.group == POWER:
        _check_power(plugin)
    if entry.group == SINKS:
        _check_sink(plugin)
    if entry.group == REQUESTS:
        _check_receiver(plugin)
    return plugin


def _check_power(plugin: Any) -> None:
    if not (isinstance(plugin.settings_type, type) and issubclass(plugin.settings_type, PowerSettings)):
        raise _UnfitError("its settings_type is no PowerSettings")
    if plugin.isolation not in {"thread", "process"}:
        raise _UnfitError(f"its isolation is {plugin.isolation!r}, neither thread nor process")


def _check_sink(plugin: Any) -> None:
    if not (isinstance(plugin.settings_type, type) and issubclass(plugin.settings_type, SinkSettings)):
        raise _UnfitError("its settings_type is no SinkSettings")


def _check_receiver(plugin: Any) -> None:
    if not isinstance(plugin, _RECEIVERS):
        raise _UnfitError(f"it is none of {', '.join(kind.__name__ for kind in _RECEIVERS)}")
    for kind, settings in ((FileFollow, FollowSettings), (PageDrain, DrainSettings)):
        if isinstance(plugin, kind) and not issubclass(plugin.settings_type, settings):
            raise _UnfitError(f"its settings_type is no {settings.__name__}")
    settings_type = getattr(plugin, "settings_type", None)
    if settings_type is not None and not _has_defaults(settings_type):
        raise _UnfitError("its settings need a default each: without a table it has none")


def _has_defaults(settings_type: type[Struct]) -> bool:
    try:
        msgspec.convert({}, settings_type)
    except msgspec.ValidationError:
        return False
    return True


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _own_first(entry: metadata.EntryPoint) -> tuple[bool, str, str]:
    return _package(entry) != _OWN_PACKAGE, _package(entry), entry.name
