"""Which engine a request from outside belongs to."""

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from jouled.api import EngineHint
from jouled.app.config.urls import port_of
from jouled.app.runtime.engines import proc_net
from jouled.core.attribution.roles import FRONTEND_ROLE
from jouled.model.engine import Engine
from jouled.outputs.serve.access import is_loopback

_LONGEST_SAID = 256
"""Characters of what a sender calls its engine that are repeated to it."""


def find_engine(hint: EngineHint, engines: list[Engine], hosts: frozenset[str] = frozenset()) -> Engine | None:
    """The engine that is meant; `hosts`: names and addresses of this host.

    By its name; by pid or instance, then service name, then type and role; or the only one there is. A request that
    may have gone elsewhere needs a server here, or the model of one engine.
    """
    if hint.engine:
        return _only(engine for engine in engines if engine.name == hint.engine)
    if hint.may_be_elsewhere:
        return _called(hint, engines, hosts)
    if hint.pid is not None and (found := _only(engine for engine in engines if engine.pid == hint.pid)):
        return found
    if hint.instance and (found := _only(engine for engine in engines if engine.instance == hint.instance)):
        return found
    if hint.service_name and (found := _only(engine for engine in engines if engine.name == hint.service_name)):
        return found
    fitting = [engine for engine in engines if _has_type(engine, hint) and _may_be(engine, hint)]
    return _only(fitting) or _only(engine for engine in fitting if engine.role == hint.role)


def own_hosts() -> frozenset[str]:
    """The names and addresses under which this host is called."""
    name = socket.gethostname().lower()
    # Not by psutil: it asks over a kind of socket that the unit does not let the daemon open.
    addresses = proc_net.addresses("self") | proc_net.ipv6_addresses("self")
    return frozenset({name, name.partition(".")[0], "127.0.0.1", "::1", *addresses})


def whose(hint: EngineHint, engines: list[Engine]) -> str:
    """The sentence for a sender whose request fits no engine."""
    said = [
        f"{what} {str(value)[:_LONGEST_SAID]}"
        for what, value in (
            ("engine", hint.engine),
            ("pid", hint.pid),
            ("service name", hint.service_name),
            ("type", hint.engine_type),
            ("role", hint.role),
        )
        if value
    ]
    known = ", ".join(engine.name for engine in engines) or "none"
    return (
        f"no engine matches {', '.join(said) or 'an event that names none'}; engines here: {known}. "
        "Send the engine's name, or set OTEL_SERVICE_NAME of the engine to it"
    )


def _has_type(engine: Engine, hint: EngineHint) -> bool:
    return engine.type == hint.engine_type or not hint.engine_type


def _may_be(engine: Engine, hint: EngineHint) -> bool:
    """Whether nothing speaks against it: an engine whose role is not known counts as unified; no frontend serves."""
    another = bool(hint.instance and engine.instance) and hint.instance != engine.instance
    return not another and engine.role != FRONTEND_ROLE and (not hint.role or engine.role in {"unified", hint.role})


def _called(hint: EngineHint, engines: list[Engine], hosts: frozenset[str]) -> Engine | None:
    """Whose server it is: by address and port; behind a gateway or another port by the model."""
    if hint.address:
        address = hint.address.lower()
        named = [engine for engine in engines if address in {engine.name.lower(), _host_of(engine)}]
        here = engines if is_loopback(address) or address in hosts else named
        for called in (named, here):
            if found := _only(engine for engine in called if engine.url and port_of(engine.url) == hint.port):
                return found
        engines = here
    return _only(engine for engine in engines if hint.model and engine.model == hint.model)


def _host_of(engine: Engine) -> str:
    return urlsplit(engine.url).hostname or ""


def _only(engines: Iterable[Engine]) -> Engine | None:
    found = list(engines)
    return found[0] if len(found) == 1 else None
