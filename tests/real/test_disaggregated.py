"""The daemon beside a real disaggregated Dynamo, each worker with a twin GPU of its own.

Both halves of every request have receipts under the client's trace, and the books of the two GPUs are whole. `make
test-real` prepares Dynamo; not part of `make test`.
"""

import asyncio
import os
import random
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.real.dynamo import MODEL, RealDynamo
from tests.support.live import LiveDaemon, Page, wait_for
from tests.support.tools import REPOSITORY, free_port

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(900)]

OWNERS = ("prefill", "decode", "resident", "unreported", "idle", "unattributed", "downtime")
REQUESTS, ABORTED, CONCURRENCY = 60, 4, 6
FINAL_TIMEOUT_SECONDS = 300.0

CONFIGURATION = """
[serve]
listen = "127.0.0.1:{port}"

[state]
directory = "{state}"

[requests.otlp]
grpc_listen = "127.0.0.1:{grpc_port}"

[power.worker_gpus]
urls = ["{prefill}/metrics", "{decode}/metrics"]

[[engines]]
name = "prefill-pool"
type = "dynamo"
url = "{prefill}"
devices = ["gpu0"]

[[engines]]
name = "decode-pool"
type = "dynamo"
url = "{decode}"
devices = ["gpu1"]
role = "decode"

[[engines]]
name = "frontend"
type = "dynamo_frontend"
url = "{frontend}"
role = "unified"  # the mocker's pages have no tokens: those of the frontend count
"""
POOLS = {"prefill-pool": ("gpu0", "prefill"), "decode-pool": ("gpu1", "decode")}
Figures = dict[str, object]


@dataclass
class Sent:
    """One request as its client saw it; `id` is the response's, the trace the client's own."""

    id: str
    trace_id: str
    prompt_tokens: int = 0
    generation_tokens: int = 0
    aborted: bool = False


@dataclass
class Observed:
    sent: list[Sent] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    snapshot: dict[str, Any] = field(default_factory=dict)
    page: Page = field(default_factory=lambda: Page(""))
    page_before: Page = field(default_factory=lambda: Page(""))
    frontend_before: Page = field(default_factory=lambda: Page(""))
    frontend_after: Page = field(default_factory=lambda: Page(""))

    @property
    def finished(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.aborted]

    def halves(self, sent: Sent) -> dict[str, dict[str, Any]]:
        """The final receipts of a request, by engine."""
        return {each["engine"]: each for each in self.receipts if each["trace_id"] == sent.trace_id}

    def of_warm_up(self, pool: str) -> list[dict[str, Any]]:
        traces = {sent.trace_id for sent in self.sent}
        return [each for each in self.receipts if each["engine"] == pool and each["trace_id"] not in traces]

    def book(self, device: str) -> dict[str, Any]:
        [book] = [group for group in self.snapshot["groups"] if group["devices"] == [device]]
        found: dict[str, Any] = book
        return found

    def metered_uj(self, device: str) -> int:
        """What the meter has told since the daemon first read it."""
        [energy_uj] = [each["energy_uj"] for each in self.snapshot["devices"] if each["name"] == device]
        found: int = energy_uj
        return found


async def send(session: aiohttp.ClientSession, dice: random.Random, *, aborts: bool = False) -> Sent:
    """A prompt of random letters, so that no prefix of it is cached; one token a byte."""
    prompt = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz ", k=dice.randint(300, 4000)))
    sent = Sent("", uuid.uuid4().hex, aborted=aborts)
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": dice.randint(8, 60)}
    if aborts:
        body |= {"stream": True, "max_tokens": 400}
    headers = {"traceparent": f"00-{sent.trace_id}-00f067aa0ba902b7-01", "X-Request-Id": str(uuid.uuid4())}
    async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        if aborts:
            await answer.content.readline()
            await asyncio.sleep(1.0)
            answer.close()
            return sent
        told = await answer.json()
    sent.id = told["id"]
    sent.prompt_tokens, sent.generation_tokens = told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]
    return sent


async def send_all(url: str) -> list[Sent]:
    dice = random.Random(20261126)
    aborting = [number % (REQUESTS // ABORTED) == 7 for number in range(REQUESTS)]
    waiting, done = iter(aborting), list[Sent]()

    async def worker(session: aiohttp.ClientSession) -> None:
        for aborts in waiting:
            done.append(await send(session, dice, aborts=aborts))

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(url, timeout=timeout) as session, asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker(session))
    return done


async def warm_up(dynamo: RealDynamo) -> None:
    """Send until the frontend has found the prefill worker: before, the decode worker does all of it.

    The daemon may still be told of these requests: they began before its books.
    """
    async with aiohttp.ClientSession(dynamo.url) as session:
        while not served(dynamo.worker_urls[0]):
            await send(session, random.Random(0))
            await asyncio.sleep(1.0)


def served(url: str) -> bool:
    return bool(fetch(url).total("dynamo_component_requests_total", dynamo_endpoint="generate"))


def fetch(url: str) -> Page:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return Page(answer.read().decode())


def install_meter(folder: Path) -> dict[str, str]:
    """A package of a third party's, as the daemon finds it."""
    package = folder / "packages" / "workergpus-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: workergpus\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[jouled.power]\nworker_gpus = tests.real.worker_gpus:WorkerGpuCollector\n"
    )
    return {"PYTHONPATH": f"{package.parent}:{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """The whole run, some three minutes; logs of all processes stay in its folder."""
    folder = tmp_path_factory.mktemp("dynamo")
    port, grpc_port = free_port(), free_port()
    dynamo = RealDynamo(folder, f"http://127.0.0.1:{grpc_port}")
    prefill, decode = dynamo.worker_urls
    (folder / "config.toml").write_text(
        CONFIGURATION.format(
            port=port,
            grpc_port=grpc_port,
            state=folder / "state",
            prefill=prefill,
            decode=decode,
            frontend=dynamo.url,
        )
    )
    command: list[str | Path] = [Path(sys.executable).parent / "jouled", "run", "--config", folder / "config.toml"]
    daemon = LiveDaemon(command, port, folder / "daemon.log", install_meter(folder))
    try:
        dynamo.start()
        dynamo.wait_until_ready()
        asyncio.run(warm_up(dynamo))
        daemon.start()
        daemon.wait_until_ready()
        yield observe(dynamo, daemon)
    finally:
        daemon.stop()
        dynamo.stop()


def observe(dynamo: RealDynamo, daemon: LiveDaemon) -> Observed:
    observed = Observed(frontend_before=fetch(dynamo.url))
    wait_for(lambda: "jouled_engine_tokens_total" in daemon.get("/metrics").decode(), 30, "no engine was read")
    observed.page_before = daemon.page()
    observed.sent = asyncio.run(send_all(dynamo.url))
    traces = {sent.trace_id for sent in observed.finished}

    def final() -> bool:
        daemon.raise_if_ended()
        observed.receipts = list(all_receipts(daemon))
        observed.page = daemon.page()
        return lost_halves(observed.page) >= 2 * ABORTED and {
            (each["trace_id"], each["engine"]) for each in observed.receipts
        } >= {(trace_id, pool) for trace_id in traces for pool in POOLS}

    wait_for(final, FINAL_TIMEOUT_SECONDS, f"no final receipts; see {daemon.log}", every_seconds=3.0)
    observed.page, observed.snapshot = daemon.page(), daemon.json("/api/v1/snapshot")
    observed.frontend_after = fetch(dynamo.url)
    return observed


def lost_halves(page: Page) -> float:
    """Halves of which the frontend told no tokens; no series before the first one."""
    return sum(value for series, value in page.values.items() if 'reason="no_tokens_told"' in series)


def all_receipts(daemon: LiveDaemon) -> Iterator[dict[str, Any]]:
    """Every final receipt, page by page."""
    path = "/api/v1/requests?all=1"
    while path:
        told = daemon.json(path)
        yield from (receipt for receipt in told["requests"] if not receipt["provisional"])
        path = told.get("next", "")


def microjoules(joules: float) -> int:
    return round(joules * 1e6)


def test_both_halves_of_every_request_have_receipts_under_one_trace(observed: Observed, figures: Figures) -> None:
    for sent in observed.finished:
        halves = observed.halves(sent)
        assert set(halves) == set(POOLS), sent
        assert len({half["id"] for half in halves.values()}) == 1
        assert {engine: half["role"] for engine, half in halves.items()} == {
            engine: role for engine, (_, role) in POOLS.items()
        }
    figures |= {"dynamo: requests": len(observed.sent), "dynamo: receipts of halves": len(observed.receipts)}


def test_halves_bear_the_tokens_that_the_client_was_told(observed: Observed) -> None:
    for sent in observed.finished:
        for half in observed.halves(sent).values():
            assert (half["id"], half["outcome"]) == (sent.id, "completed")
            assert (half["prompt_tokens"], half["generation_tokens"]) == (sent.prompt_tokens, sent.generation_tokens)


def test_halves_of_clients_that_left_are_counted(observed: Observed) -> None:
    """Dynamo 1.6.1 tells no tokens of them: no receipts, and their energy is nobody's."""
    assert lost_halves(observed.page) == 2 * sum(sent.aborted for sent in observed.sent) == 2 * ABORTED
    assert not [sent for sent in observed.sent if sent.aborted and observed.halves(sent)]


def test_the_books_of_each_workers_gpu_are_whole(observed: Observed, figures: Figures) -> None:
    """Σ owners + open = what its meter told, to the microjoule, and receipts are what requests own."""
    for pool, (device, _) in POOLS.items():
        book = observed.book(device)
        assert book["engines"] == [pool]
        assert sum(book[f"{owner}_uj"] for owner in (*OWNERS, "open")) == book["measured_uj"]
        own = [half for half in observed.receipts if half["engine"] == pool]
        parts = {
            part: sum(microjoules(half[f"joules_{part}"]) for half in own) for part in ("prefill", "decode", "resident")
        }
        assert parts == {part: book[f"{part}_uj"] for part in parts}
        assert sum(microjoules(half["joules"]) for half in own) == sum(parts.values())
        assert book["measured_uj"] == observed.metered_uj(device)
        figures |= {f"dynamo: {pool}, {owner} J": f"{book[f'{owner}_uj'] / 1e6:.1f}" for owner in OWNERS}
        figures[f"dynamo: {pool}, measured J"] = f"{book['measured_uj'] / 1e6:.1f}"


def test_halves_and_what_no_request_owns_add_up_to_the_two_meters(observed: Observed) -> None:
    books = [observed.book(device) for device, _ in POOLS.values()]
    halves = sum(microjoules(half["joules"]) for half in observed.receipts)
    others = sum(
        book[f"{owner}_uj"] for book in books for owner in ("unreported", "idle", "unattributed", "downtime", "open")
    )
    assert halves + others == sum(observed.metered_uj(device) for device, _ in POOLS.values())


def test_a_half_pays_for_its_own_kind_of_work(observed: Observed, figures: Figures) -> None:
    for sent in observed.finished:
        prefill, decode = (observed.halves(sent)[pool] for pool in POOLS)
        assert prefill["joules_decode"] == 0
        assert prefill["joules_prefill"] > 0
        assert decode["joules_decode"] > decode["joules_prefill"]
    busy = {
        pool: sum(observed.book(device)[f"{owner}_uj"] for owner in ("prefill", "decode", "resident"))
        for pool, (device, _) in POOLS.items()
    }
    figures["dynamo: joules of work, prefill over decode pool"] = f"{busy['prefill-pool'] / busy['decode-pool']:.3f}"


def test_tokens_and_requests_count_once(observed: Observed, figures: Figures) -> None:
    prompts, answers = observed.of_warm_up("prefill-pool"), observed.of_warm_up("decode-pool")
    prompt = sum(sent.prompt_tokens for sent in observed.finished) + sum(each["prompt_tokens"] for each in prompts)
    generated = sum(sent.generation_tokens for sent in observed.finished)
    generated += sum(each["generation_tokens"] for each in answers)
    page = observed.page
    assert page.total("jouled_request_tokens_total", kind="prompt_computed") == prompt
    assert page.total("jouled_request_tokens_total", kind="generation") == generated
    assert page.total("jouled_requests_total") == len(observed.finished) + len(answers)
    figures |= {"dynamo: prompt tokens": prompt, "dynamo: generated tokens": generated}


def test_live_tokens_are_those_of_the_frontend(observed: Observed) -> None:
    def grown(pages: tuple[Page, Page], name: str, **labels: str) -> float:
        before, after = (page.total(name, **labels) for page in pages)
        return after - before

    frontend, daemon = (observed.frontend_before, observed.frontend_after), (observed.page_before, observed.page)
    generated = grown(frontend, "dynamo_frontend_output_tokens_total")
    prompt = grown(frontend, "dynamo_frontend_input_sequence_tokens_sum")
    assert grown(daemon, "jouled_engine_tokens_total", kind="generation") == generated
    kinds = ("prompt_computed", "prompt_cached")
    assert sum(grown(daemon, "jouled_engine_tokens_total", kind=kind) for kind in kinds) == prompt


def test_roles_and_instances_were_recognised(observed: Observed) -> None:
    info = [series for series in observed.page.values if series.startswith("jouled_engine_info")]
    roles = {
        name: [role for role in ("prefill", "decode", "unified") if f'role="{role}"' in series]
        for name in POOLS
        for series in info
        if f'engine="{name}"' in series
    }
    assert roles == {"prefill-pool": ["prefill"], "decode-pool": ["decode"]}
