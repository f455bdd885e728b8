"""The load: streamed chat completions over HTTP, each remembering what the engine itself said of its tokens."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

WORDS = ("joule", "watt", "meter", "node", "token", "prompt", "queue", "batch", "step", "cache", "fan", "rack")


@dataclass(frozen=True)
class Ask:
    """One request to send. `abort_after`: the client hangs up after that many pieces; `None` reads to the end."""

    request_id: str
    prompt_words: int
    max_tokens: int
    shared_words: int = 0
    ignore_eos: bool = False
    abort_after: int | None = None


@dataclass
class Sent:
    """What came of it: ids and tokens as the engine told them, times by the monotonic clock of this process."""

    ask: Ask
    response_id: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    aborted: bool = False
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds from sending to the last piece."""
        return self.ended_s - self.started_s

    def remember(self, line: bytes) -> None:
        """Take ids and usage from one server-sent event."""
        chunk = json.loads(line.removeprefix(b"data: "))
        self.response_id = chunk["id"]
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.generation_tokens = usage["completion_tokens"]
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def make_asks(prefix: str, count: int, seed: int, abort_every: int = 0) -> list[Ask]:
    """Chat-like requests: prompts of 10 to 400 words, answers of 40 to 300 tokens.

    One in four starts like the others of its kind, so that the engine's prefix cache has something to hit. Where
    `abort_every` is set, every so manieth client asks for 1000 tokens and leaves after 60 to 200.
    """
    dice = random.Random(seed)
    asks = []
    for number in range(count):
        leaves = bool(abort_every) and number % abort_every == 0
        asks.append(
            Ask(
                f"{prefix}-{number}",
                prompt_words=dice.randint(10, 400),
                shared_words=200 if dice.random() < 0.25 else 0,
                max_tokens=1000 if leaves else dice.randint(40, 300),
                ignore_eos=leaves or dice.random() < 0.5,
                abort_after=dice.randint(60, 200) if leaves else None,
            )
        )
    return asks


def prompt_of(ask: Ask) -> str:
    """Words without sense; the shared ones are the same for every request."""
    shared = random.Random("shared").choices(WORDS, k=ask.shared_words)
    return " ".join(shared + random.Random(ask.request_id).choices(WORDS, k=ask.prompt_words))


async def send(session: aiohttp.ClientSession, ask: Ask) -> Sent:
    """Send one request and read its stream to the end, or hang up in the middle of it."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": prompt_of(ask)}],
        "max_tokens": ask.max_tokens,
        "ignore_eos": ask.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    sent = Sent(ask)
    pieces, last = 0, b""
    async with session.post("/v1/chat/completions", json=body, headers={"X-Request-Id": ask.request_id}) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            pieces, last = pieces + 1, line
            if ask.abort_after is not None and pieces > ask.abort_after:
                sent.aborted = True
                answer.close()
                break
    sent.remember(last)
    sent.ended_s = time.monotonic()
    return sent


async def send_several(session: aiohttp.ClientSession, ask: Ask, answers: int) -> Sent:
    """Send one request for several answers and read all of them; its generated tokens are of all together."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": prompt_of(ask)}],
        "max_tokens": ask.max_tokens,
        "ignore_eos": ask.ignore_eos,
        "n": answers,
    }
    sent = Sent(ask)
    async with session.post("/v1/chat/completions", json=body, headers={"X-Request-Id": ask.request_id}) as answer:
        answer.raise_for_status()
        sent.remember(await answer.read())
    sent.ended_s = time.monotonic()
    return sent


async def send_all(session: aiohttp.ClientSession, asks: Sequence[Ask], concurrency: int) -> list[Sent]:
    """Send requests in order, so many at a time; the first that fails ends them all."""
    waiting = iter(asks)
    done: list[Sent] = []

    async def worker() -> None:
        for ask in waiting:
            sent = await send(session, ask)
            done.append(sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return done
