"""What `jouled check` says of sinks, tokens, users, certificates and gRPC: whether settings and files can be used.

Nothing is sent: whether the other side takes it shows in `jouled_sink_up` once the daemon runs.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from jouled.app.config.types import Config
from jouled.app.runtime.plugins import Plugins
from jouled.model.errors import JouledError
from jouled.outputs.secret_file import secret


class OutputLook(Struct, frozen=True, kw_only=True):
    """One output: its name, whether it can be used, and what to know or to mend."""

    name: str
    works: bool
    message: str
    mend: str = ""


async def look_at_outputs(config: Config, plugins: Plugins, origin: str) -> list[OutputLook]:
    """Open every sink and read the token and the web configuration, as the daemon does at its start."""
    looks = [await _sink(name, config, plugins, origin) for name in config.sinks]
    if config.serve.token_file:
        looks.append(_token(config.serve.token_file))
    if config.serve.web_config_file:
        looks.append(_web(config.serve.web_config_file))
    if config.requests.otlp.grpc_listen:
        looks.append(_grpc(config.requests.otlp.grpc_listen, config))
    return looks


def _grpc(listen: str, config: Config) -> OutputLook:
    from jouled.app.runtime.requests.grpc_door import check_grpc

    file = config.serve.web_config_file
    try:
        check_grpc(config.serve.token_file, Path(file) if file else None)
    except JouledError as error:
        return OutputLook(name="grpc_listen", works=False, message=error.message, mend=error.mend)
    return OutputLook(name="grpc_listen", works=True, message=f"traces can come by gRPC on {listen}")


async def _sink(name: str, config: Config, plugins: Plugins, origin: str) -> OutputLook:
    try:
        sink, settings = plugins.sink_settings({name: config.sinks[name]}, origin)[name]
        opened = sink.open(settings, config.node.name or socket.gethostname())
        await opened.close()
    except JouledError as error:
        return OutputLook(name=name, works=False, message=error.message, mend=error.mend)
    return OutputLook(name=name, works=True, message=f"takes {' and '.join(opened.most)}; nothing was sent")


def _token(path: str) -> OutputLook:
    try:
        secret(path, "serve.token_file")
    except JouledError as error:
        return OutputLook(name="token_file", works=False, message=error.message, mend=error.mend)
    return OutputLook(name="token_file", works=True, message="senders of events show this token")


def _web(path: str) -> OutputLook:
    from jouled.outputs.serve.web_file import WebFile

    try:
        web = WebFile(Path(path)).current()
    except JouledError as error:
        return OutputLook(name="web_config_file", works=False, message=error.message, mend=error.mend)
    parts = ("TLS" if web.context else "no TLS", "users" if web.passwords else "no users")
    return OutputLook(name="web_config_file", works=True, message=", ".join(parts))


def output_lines(looks: list[OutputLook]) -> Iterator[str]:
    """For the operator; nothing where nothing is configured."""
    if looks:
        yield ""
        yield "Outputs"
    for look in looks:
        yield f"  {look.name:<20} {'ok' if look.works else 'unusable':<9} {look.message}"
        if look.mend:
            yield f"  {'':<20} {'mend':<9} {look.mend}"
