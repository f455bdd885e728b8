"""Receivers fed by gRPC: a loopback port of its own, with the limits and answers of the HTTP door.

Nothing is encrypted, so that only this host is listened to. Sizes are those that gRPC has by itself.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from ssl import CERT_REQUIRED
from typing import Any

from jouled.api import GrpcIngest, Received
from jouled.app.runtime.requests.forward import MARKER
from jouled.app.runtime.requests.hand_over import Accept
from jouled.model.errors import ConfigurationError, JouledError
from jouled.outputs.serve.answers import Refusal
from jouled.outputs.serve.authentication import Authenticator
from jouled.outputs.serve.ingest import IN_THE_LOOP_BYTES, LARGE_AT_ONCE, check_taken, decoded
from jouled.outputs.serve.limits import CONNECTIONS_FROM_LOOPBACK, Rates
from jouled.outputs.serve.web_file import Web, WebFile

MOST_BYTES = 4 * 1024 * 1024
"""Of a message after gzip is undone: gRPC's own default, which exporters keep to."""

MOST_AT_ONCE = 64
"""Calls at a time; with `MOST_BYTES` it bounds the memory that senders can claim."""

_IDLE_MILLISECONDS = 300_000
_HANDSHAKE_MILLISECONDS = 10_000
_METADATA_BYTES = 8190
_FAREWELL_SECONDS = 2.0
_PEER = "127.0.0.1"
"""Whoever calls is on this host: all share one allowance, as by HTTP."""

_CONTENT_TYPE = "application/x-protobuf"
_STATUS = {
    HTTPStatus.UNAUTHORIZED: "UNAUTHENTICATED",
    HTTPStatus.TOO_MANY_REQUESTS: "UNAVAILABLE",
    HTTPStatus.INTERNAL_SERVER_ERROR: "INTERNAL",
}
"""gRPC's word for a refusal; others are the sender's fault, `INVALID_ARGUMENT`. OTLP sends again after UNAVAILABLE."""

Forward = Callable[[GrpcIngest, bytes, Mapping[str, str]], None]
Handler = Callable[[bytes, Any], Awaitable[bytes]]


class GrpcDoor:
    """Listens from `start` to `close`.

    accept: takes what was decoded and returns when it is kept. forward: passes a message on. refused: counts refusals
    by reason.
    """

    def __init__(
        self,
        ingests: Sequence[GrpcIngest],
        accept: Accept,
        forward: Forward | None,
        refused: Counter[str],
        *,
        token: str | None,
        web_config_file: Path | None,
    ) -> None:
        """Raises `ConfigurationError`: the file cannot be used, or asks for certificates, which are not read here."""
        self._ingests = ingests
        self._accept = accept
        self._forward = forward
        self._refused = refused
        self._takes_token = bool(token)
        self._authenticator = Authenticator(token or "")
        self._web = _web(web_config_file, takes_token=self._takes_token)
        self._rates = Rates()
        self._server: Any = None

    async def start(self, listen: str) -> int:
        """Listen on `HOST:PORT`; returns the port, which 0 leaves to the system.

        Raises `JouledError`: the address cannot be had, or the library is missing.
        """
        grpc = await asyncio.to_thread(_import_grpc)
        options = [
            ("grpc.so_reuseport", 0),  # an address that is taken is to be told
            ("grpc.max_receive_message_length", MOST_BYTES),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),
            ("grpc.max_allowed_incoming_connections", CONNECTIONS_FROM_LOOPBACK),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MOST_AT_ONCE)
        for ingest in self._ingests:
            service, _, method = ingest.method.strip("/").partition("/")
            handler = grpc.unary_unary_rpc_method_handler(self._handler(ingest, grpc.StatusCode))
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        try:
            port: int = server.add_insecure_port(listen)
        except RuntimeError as error:
            raise JouledError(
                f"gRPC cannot listen on {listen}: {error}",
                mend="Choose another address in [requests.otlp] grpc_listen: a collector may have this one",
            ) from error
        await server.start()
        self._server = server
        return port

    async def close(self) -> None:
        """Take no more calls, and give those under way two seconds."""
        if self._server is not None:
            await self._server.stop(_FAREWELL_SECONDS)

    def _handler(self, ingest: GrpcIngest, codes: Any) -> Handler:
        large = asyncio.Semaphore(LARGE_AT_ONCE)
        has_decoded = False

        async def receive(message: bytes) -> Received:
            nonlocal has_decoded
            # The first message may make the receiver import a library, which takes longer than the loop may wait.
            if has_decoded and len(message) <= IN_THE_LOOP_BYTES:
                return decoded(lambda: ingest.decode_message(message))
            async with large:
                has_decoded = True
                return await asyncio.to_thread(decoded, lambda: ingest.decode_message(message))

        async def handle(message: bytes, context: Any) -> bytes:
            try:
                metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
                await self._check_caller(metadata)
                if self._forward is not None:
                    self._forward(ingest, message, _as_headers(metadata))
                taken = await self._accept(await receive(message))
                check_taken(taken)
                return ingest.response_message(taken)
            except Refusal as refusal:
                self._refused[refusal.reason] += 1
                code = _STATUS.get(refusal.status, "INVALID_ARGUMENT")
                await context.abort(getattr(codes, code), refusal.message)
            except JouledError as error:
                await context.abort(codes.UNAVAILABLE, str(error))
            raise AssertionError("abort does not return")

        return handle

    async def _check_caller(self, metadata: Mapping[str, str]) -> None:
        if self._rates.wait_seconds(_PEER, time.monotonic()) > 0.0:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many calls: send several spans in one message",
                reason="too_many_requests",
            )
        passwords = self._web().passwords
        if passwords is not None or self._takes_token:
            header = metadata.get("authorization")
            await self._authenticator.check(header, _PEER, passwords, takes_token=self._takes_token)


def check_grpc(token: str | None, web_config_file: Path | None) -> None:
    """Raise `ConfigurationError` if no door could be opened: the library is missing, or the file does not do here."""
    _import_grpc()
    _web(web_config_file, takes_token=bool(token))


def _web(web_config_file: Path | None, *, takes_token: bool) -> Callable[[], Web]:
    if web_config_file is None:
        return Web
    file = WebFile(web_config_file)
    now = file.current()
    asks_for_certificate = now.context is not None and now.context.verify_mode is CERT_REQUIRED
    if asks_for_certificate and now.passwords is None and not takes_token:
        raise ConfigurationError(
            f"{web_config_file} lets in nobody without a certificate, and [requests.otlp] grpc_listen reads none",
            mend="Set serve.token_file or basic_auth_users as well, or take traces by HTTP",
        )
    return file.current


def _as_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """As if the message had come by HTTP; it is not compressed any more."""
    headers = {"Content-Type": _CONTENT_TYPE}
    return {**headers, MARKER: "1"} if MARKER.lower() in metadata else headers


def _import_grpc() -> Any:
    try:
        import grpc.aio
    except ImportError as error:
        raise ConfigurationError(
            "[requests.otlp] grpc_listen needs grpcio", mend="pip install 'jouled[grpc]'"
        ) from error
    return grpc
