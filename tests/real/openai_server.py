"""A server as the engine behind a gateway: answers, streams, fails and is slow as the prompt says."""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from aiohttp import web

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 8},
}
TOKEN_SECONDS = 0.05


def chunk(request_id: str, choices: list[Mapping[str, Any]], **more: object) -> bytes:
    told = {"id": request_id, "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": choices}
    return f"data: {json.dumps({**told, **more})}\n\n".encode()


async def stream(request: web.Request, request_id: str, tokens: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(3 * TOKEN_SECONDS)
    for number in range(tokens):
        delta = {"role": "assistant", "content": "ANSWER "}
        reason = "stop" if number == tokens - 1 else None
        await response.write(chunk(request_id, [{"index": 0, "delta": delta, "finish_reason": reason}]))
        await asyncio.sleep(TOKEN_SECONDS)
    await response.write(chunk(request_id, [], usage=USAGE) + b"data: [DONE]\n\n")
    return response


async def complete(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    word, _, request_id = body["messages"][-1]["content"].partition(" ")
    request_id = f"chatcmpl-{request_id}"
    if word == "fail":
        return web.json_response({"error": {"message": "out of memory", "type": "server_error"}}, status=500)
    if body.get("stream"):
        return await stream(request, request_id, 200 if word == "slow" else 5)
    await asyncio.sleep(6 * TOKEN_SECONDS)
    message = {"role": "assistant", "content": "ANSWER"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    told = {"id": request_id, "object": "chat.completion", "created": 1, "model": "tiny"}
    return web.json_response({**told, "choices": choices, "usage": USAGE})


def main() -> None:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
