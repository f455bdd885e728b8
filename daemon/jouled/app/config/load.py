"""From a TOML file and the environment to a checked `Config`, or to one sentence that says what to mend."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from jouled.api import DrainSettings, PowerCollector, PowerSettings, Sink, SinkSettings
from jouled.app.config.checks import check, check_interval
from jouled.app.config.convert import convert
from jouled.app.config.environment import overlay
from jouled.app.config.faults import Fault
from jouled.app.config.types import Config, EngineConfig, Requests
from jouled.app.config.urls import port_of
from jouled.model.errors import ConfigurationError

MOST_RESEND_SECONDS = 300.0
"""Longer ago nothing is left unsynced anywhere, and all of it would be sent again at each start. The spool keeps
what may have to be sent again for 10 minutes at least; it must be less than that."""


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Read the configuration file, if one is given, and lay the environment's `JOULED_SECTION__KEY` over it.

    Raises `ConfigurationError` that names the file or variable, the key's path, what is wrong and what mends it.
    """
    tables = _read(path) if path else {}
    variables: dict[str, str] = {}
    try:
        variables = overlay(tables, environment)
        receivers = _take_receivers(tables)
        config = replace(_named(convert(tables, Config, "$")), receivers=receivers)
        check(config)
    except Fault as fault:
        origin = _variable(fault.key, variables) or str(path or "configuration")
        raise ConfigurationError(f"{origin}: {fault}", mend=fault.mend) from None
    return config


def settings_for(
    collector: PowerCollector | type[PowerCollector], table: Mapping[str, Any], origin: str = "configuration"
) -> PowerSettings:
    """Turn the table `[power.<collector>]` into the collector's own settings; `origin` is the file it stands in.

    Raises `ConfigurationError`.
    """
    key = f"$.power.{collector.name}"
    try:
        settings = convert(dict(table), collector.settings_type, key)
        check_interval(settings.interval_seconds, f"{key}.interval_seconds")
    except Fault as fault:
        raise ConfigurationError(f"{origin}: {fault}", mend=fault.mend) from None
    return settings


def sink_settings_for(
    sink: Sink | type[Sink], name: str, table: Mapping[str, Any], origin: str = "configuration"
) -> SinkSettings:
    """Turn the table `[sinks.<name>]` into the sink's own settings; `origin` is the file it stands in.

    Raises `ConfigurationError`.
    """
    key = f"$.sinks.{name}"
    try:
        settings = convert(dict(table), sink.settings_type, key)
        if settings.timeout_seconds <= 0:
            raise Fault(f"{key}.timeout_seconds", "no delivery is that fast", "It must be above 0")  # noqa: TRY301 - one way out
        if not 0 <= settings.resend_seconds <= MOST_RESEND_SECONDS:
            raise Fault(  # noqa: TRY301 - one way out
                f"{key}.resend_seconds", "out of range", f"Give 0 (nothing is sent again) to {MOST_RESEND_SECONDS:g}"
            )
    except Fault as fault:
        raise ConfigurationError(f"{origin}: {fault}", mend=fault.mend) from None
    return settings


def receiver_settings_for(
    name: str, settings_type: type[Struct], table: Mapping[str, Any], origin: str = "configuration"
) -> Struct:
    """Turn the table `[requests.<name>]` into the receiver's own settings; `origin` is the file it stands in.

    Raises `ConfigurationError`.
    """
    key = f"$.requests.{name}"
    try:
        settings = convert(dict(table), settings_type, key)
        if isinstance(settings, DrainSettings):
            check_interval(settings.interval_seconds, f"{key}.interval_seconds")
    except Fault as fault:
        raise ConfigurationError(f"{origin}: {fault}", mend=fault.mend) from None
    return settings


def _take_receivers(tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the tables of receivers out of `[requests]`: whose they are, only the plug-ins know."""
    if "receivers" in tables:
        raise Fault("$.receivers", "unknown key `receivers`", "Write [requests.NAME] for the receiver of that name")
    requests = tables.get("requests")
    if not isinstance(requests, dict):
        return {}
    known = Requests.__struct_fields__
    names = [name for name, table in requests.items() if name not in known and isinstance(table, dict)]
    return {name: requests.pop(name) for name in names}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        problem, mend = "the configuration file does not exist", "Give another path by --config, or leave it out"
    except OSError as error:
        problem, mend = f"the configuration file cannot be read: {error.strerror}", ""
    except UnicodeDecodeError as error:
        problem, mend = f"not UTF-8 text at byte {error.start}", ""
    except tomllib.TOMLDecodeError as error:
        problem, mend = f"no valid TOML: {error}", ""
    except RecursionError:
        problem, mend = "no usable TOML: values are nested too deeply", ""
    raise ConfigurationError(f"{path}: {problem}", mend=mend)


def _named(config: Config) -> Config:
    return replace(config, engines=[_with_name(engine) for engine in config.engines])


def _with_name(engine: EngineConfig) -> EngineConfig:
    if engine.name or not (engine.type and engine.url):
        return engine
    try:
        return replace(engine, name=f"{engine.type}-{port_of(engine.url)}")
    except ValueError:
        return engine  # the check names what is wrong with its URL


def _variable(key: str, variables: Mapping[str, str]) -> str:
    for path, name in variables.items():
        if key == path or key.startswith((f"{path}.", f"{path}[")) or path.startswith(f"{key}."):
            return name
    return ""
