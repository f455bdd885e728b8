"""The doors of the daemon: HTTP for readers and senders, and gRPC for traces where that is configured."""

import logging
from contextlib import AsyncExitStack
from pathlib import Path

import jouled
from jouled.app.runtime.front import Front
from jouled.app.runtime.settings import Settings
from jouled.outputs.serve import build_app, start

_log = logging.getLogger(__name__)


async def open_doors(front: Front, settings: Settings, stack: AsyncExitStack) -> None:
    """Listen until the stack is closed. Raises `JouledError` where that cannot be."""
    file = settings.config.serve.web_config_file
    web_config_file = Path(file) if file else None
    door = front.door(settings.plugins.http_ingests(), settings.token)
    app = build_app(door, web_config_file)
    server = await start(app, listen=settings.listen, unix_socket=settings.where.socket)
    stack.push_async_callback(server.close)
    _log.info("jouled %s on %s, books in %s", jouled.__version__, settings.listen, settings.where.state)
    listen = settings.config.requests.otlp.grpc_listen
    if not listen:
        return
    from jouled.app.runtime.requests.grpc_door import GrpcDoor

    ingests = settings.plugins.grpc_ingests()
    traces = GrpcDoor(
        ingests, front.accept, front.forward, front.refused, token=settings.token, web_config_file=web_config_file
    )
    port = await traces.start(listen)
    stack.push_async_callback(traces.close)
    _log.info("traces by gRPC on port %d of %s", port, listen.rpartition(":")[0])
