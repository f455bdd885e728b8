"""A load generator with a log of its own: what it was told to be kept is what must come out at the other end.

It plays engine and gateway at once: the engine's page shows who runs, and the end of each request is sent to the daemon
again and again until it is answered with 200. Only then it stands in `kept`.
"""

import json
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from tests.e2e.engine_server import EngineServer
from tests.support.live import PATIENCE_SECONDS

_TICK_SECONDS = 0.02


@dataclass
class Sent:
    """One request as the generator knows it."""

    id: str
    prompt_tokens: int
    generation_tokens: int
    arrival_ns: int
    first_token_ns: int
    last_token_ns: int

    def event(self, engine: str) -> dict[str, Any]:
        """As the gateway tells of it."""
        return {
            "id": self.id,
            "engine": engine,
            "arrival_ns": self.arrival_ns,
            "first_token_ns": self.first_token_ns,
            "last_token_ns": self.last_token_ns,
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
        }


@dataclass
class Traffic:
    """Requests at a rate, from a seed, until `stop`. `url`: where the daemon listens now."""

    engine: EngineServer
    name: str
    url: Callable[[], str]
    per_second: float = 10.0
    seed: int = 1
    kept: dict[str, Sent] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._ended: SimpleQueue[Sent | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._milliseconds: set[int] = set()
        self._threads = [
            threading.Thread(target=self._serve, daemon=True),
            threading.Thread(target=self._tell, daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = PATIENCE_SECONDS) -> None:
        """No new requests; returns when the daemon has been told of all that ended."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(seconds)
            if thread.is_alive():
                raise TimeoutError("the daemon does not take the last events")

    def _serve(self) -> None:
        """The engine: requests come, run and end in real time."""
        active: list[Sent] = []
        number = 0
        due = time.time()
        while active or not self._stopping.is_set():
            now_ns = time.time_ns()
            while due <= now_ns / 1e9 and not self._stopping.is_set():
                number += 1
                active.append(self._request(number, now_ns))
                due += self._dice.expovariate(self.per_second)
            for request in [r for r in active if r.last_token_ns <= now_ns]:
                active.remove(request)
                self.engine.prompt += request.prompt_tokens
                self.engine.generation += request.generation_tokens
                self._ended.put(request)
            self.engine.running = len(active)
            time.sleep(_TICK_SECONDS)
        self._ended.put(None)

    def _request(self, number: int, now_ns: int) -> Sent:
        first_ns = now_ns + round(self._dice.uniform(0.02, 0.08) * 1e9)
        last_ns = first_ns + round(self._dice.uniform(0.05, 0.5) * 1e9)
        # VictoriaMetrics keeps one sample for each series and millisecond: no two requests end in the same.
        while last_ns // 1_000_000 in self._milliseconds:
            last_ns += 1_000_000
        self._milliseconds.add(last_ns // 1_000_000)
        prompt, generated = self._dice.randint(10, 400), self._dice.randint(1, 60)
        return Sent(f"r{self.seed}-{number:06d}", prompt, generated, now_ns, first_ns, last_ns)

    def _tell(self) -> None:
        """The gateway: bodies of what has ended, until each is answered with 200."""
        done = False
        while not done:
            batch = []
            while not done and (not batch or not self._ended.empty()):
                request = self._ended.get()
                done = request is None
                if request is not None:
                    batch.append(request)
            if batch:
                self._until_kept(batch)

    def _until_kept(self, batch: list[Sent]) -> None:
        body = "\n".join(json.dumps(request.event(self.name)) for request in batch).encode()
        while True:
            try:
                headers = {"Content-Type": "application/x-ndjson"}
                request = urllib.request.Request(f"{self.url()}/api/v1/requests", body, headers)
                with urllib.request.urlopen(request, timeout=12) as answer:
                    told = json.loads(answer.read())
            except OSError:
                time.sleep(0.05)
                continue
            if told.get("rejected"):
                self.refused.append(json.dumps(told)[:500])
            self.kept |= {request.id: request for request in batch}
            return
