"""`jouled report` as people type it: on a store that is left, and on a daemon that runs."""

import asyncio
import csv
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from tests.support.snapshots import receipt

from jouled.api import Received
from jouled.app.cli import main
from jouled.app.runtime import report as runtime_report
from jouled.model.engine import Engine
from jouled.model.history import EngineChange, EngineMark
from jouled.model.snapshot import EngineView, Snapshot
from jouled.outputs.serve import Door, build_app, start
from jouled.outputs.store import Store

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NOW = time.time_ns()
CHANGED = [
    {"fact": "version", "before": "0.32.0", "after": "0.33.0"},
    {"fact": "parallelism", "before": "tp2", "after": "tp4"},
]
HOURS_AGO_2, HOUR_AGO = NOW - 120 * MINUTE, NOW - 60 * MINUTE


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("JOULED_") or name in {"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_STATE_HOME"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("jouled.app.cli.report.time_ns", lambda: NOW)


def kept(engine: str = "vllm-8000") -> tuple[list, list[EngineMark], list[EngineChange]]:
    """Two hours of an engine: 0.40 tokens/J until an hour ago, then another version with 0.50; a third of it idle."""
    receipts, marks = [], []
    tokens = decode = idle = 0
    for minute in range(121):
        t_ns = HOURS_AGO_2 + minute * MINUTE
        owners = {"decode": decode, "idle": idle, "unreported": decode // 10}
        marks.append(EngineMark(engine=engine, model="tiny", t_ns=t_ns, generation_tokens=tokens, owners_uj=owners))
        per_joule = 0.4 if t_ns < HOUR_AGO else 0.5
        busy = 20_000 + 1000 * (minute * 7 % 5)
        tokens, decode, idle = tokens + round(busy * 1.6 * per_joule), decode + busy * 10**6, idle + busy * 5 * 10**5
        if minute < 120:
            receipts.append(
                replace(
                    receipt(minute),
                    id=f"{engine}-{minute}",
                    engine=engine,
                    model="tiny",
                    tenant="red" if minute % 3 else "blue",
                    last_token_ns=t_ns + SECOND,
                    joules=100.0 if t_ns < HOUR_AGO else 80.0,
                    generation_tokens=40,
                    prompt_tokens=10,
                    good={"chat": minute % 4 != 0},
                    cost=0.01,
                    currency="EUR",
                    co2e_grams=2.0,
                )
            )
    changes = [
        EngineChange(engine=engine, since_ns=HOURS_AGO_2, facts={"version": "0.32.0", "parallelism": "tp2"}),
        EngineChange(engine=engine, since_ns=HOUR_AGO, facts={"version": "0.33.0", "parallelism": "tp4"}),
    ]
    return receipts, marks, changes


async def fill(store: Store) -> None:
    receipts, marks, changes = kept()
    await store.commit(b"books", receipts, NOW)
    await store.note(changes, [], NOW)
    for mark in marks:
        await store.note([], [mark], mark.t_ns)


@pytest.fixture
def state(tmp_path) -> Path:
    store = Store(tmp_path / "state")
    asyncio.run(fill(store))
    store.close()
    return tmp_path / "state"


def report(capsys, state: Path, *arguments: str) -> str:
    assert main(["report", "--state", str(state), *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_sums_by_model(state, capsys):
    text = report(capsys, state, "--since", "3h")
    header, row = (line.split() for line in text.splitlines()[2:4])
    assert header[:2] == ["model", "requests"]
    assert row[:8] == ["tiny", "120", "1200", "4800", "10800", "2.25", "14400", "1.2"]
    assert row[8:] == ["EUR", "240"]
    assert "unattributed 0 J" in text
    assert "without idle" in text


def test_sums_by_tenant_as_json_and_csv(state, capsys):
    told = json.loads(report(capsys, state, "--since", "3h", "--by", "tenant", "--json"))
    assert {row["name"]: row["requests"] for row in told["rows"]} == {"red": 80, "blue": 40}
    assert sum(row["joules"] for row in told["rows"]) == pytest.approx(60 * 100.0 + 60 * 80.0)
    assert told["rows"][0]["cost"] == {"EUR": pytest.approx(0.8)}
    assert told["owners_joules"]["idle"] == pytest.approx(told["owners_joules"]["decode"] / 2)
    assert told["tokens_per_joule"] < told["tokens_per_joule_without_idle"]
    lines = list(csv.DictReader(io.StringIO(report(capsys, state, "--since", "3h", "--by", "tenant", "--csv"))))
    assert [(line["tenant"], line["requests"]) for line in lines] == [("red", "80"), ("blue", "40")]


def test_a_time_is_cut_out(state, capsys):
    told = json.loads(report(capsys, state, "--since", "90m", "--until", "60m", "--json"))
    assert told["rows"][0]["requests"] == 30
    assert told["generation_tokens"] == pytest.approx(30 * 22_000 * 1.6 * 0.4, rel=0.01)


def test_before_and_after_the_last_change(state, capsys):
    text = report(capsys, state, "--compare")
    assert text.startswith("engine vllm-8000: version 0.32.0 → 0.33.0, parallelism tp2 → tp4\n")
    assert "attainment chat" in text
    (told,) = json.loads(report(capsys, state, "--compare", "--json"))["comparisons"]
    assert told["changed"] == CHANGED
    before, after = told["before"], told["after"]
    assert (before["since_ns"], before["until_ns"], after["since_ns"]) == (HOURS_AGO_2, HOUR_AGO, HOUR_AGO)
    assert before["tokens_per_joule"] == pytest.approx(0.4, rel=1e-3)
    assert after["tokens_per_joule"] == pytest.approx(0.5, rel=1e-3)
    assert before["tokens_per_joule_without_idle"] == pytest.approx(0.4 * 1.6 / 1.1, rel=1e-3)
    assert (before["requests"], after["requests"]) == (60, 60)
    assert (before["joules_per_request_p50"], after["joules_per_request_p99"]) == (100.0, 80.0)
    assert before["attainment"] == {"chat": pytest.approx(0.75)}
    share, low, high = (told["tokens_per_joule"][name] for name in ("share", "low", "high"))
    assert share == pytest.approx(0.25, rel=1e-2)
    assert low <= share <= high
    lines = list(csv.DictReader(io.StringIO(report(capsys, state, "--compare", "--csv"))))
    assert [line["side"] for line in lines] == ["before", "after"]
    assert lines[0]["changed"] == "version:0.32.0->0.33.0 parallelism:tp2->tp4"


def test_a_prefill_pool_is_compared_by_its_prompt_tokens(tmp_path, capsys):
    """It counts no generated ones: 2 tokens/J, then 3."""
    store = Store(tmp_path / "state")

    async def fill() -> None:
        prompt = 0
        for minute in range(121):
            t_ns, owners = HOURS_AGO_2 + minute * MINUTE, {"prefill": minute * 10**9}
            told = EngineMark(engine="p", model="m", t_ns=t_ns, prompt_tokens=prompt, owners_uj=owners)
            await store.note([], [told], t_ns)
            prompt += 2000 if t_ns < HOUR_AGO else 3000

    asyncio.run(fill())
    store.close()
    times = ("--compare", "110m..70m", "50m..10m")
    assert "prompt tokens/J 2 3 +50.0%" in " ".join(report(capsys, tmp_path / "state", *times).split())
    (told,) = json.loads(report(capsys, tmp_path / "state", *times, "--json"))["comparisons"]
    assert told["after"]["prompt_tokens_per_joule"] == pytest.approx(3.0)


def test_two_times_that_are_named(state, capsys):
    (told,) = json.loads(report(capsys, state, "--compare", "110m..70m", "50m..10m", "--json"))["comparisons"]
    assert told["changed"] == CHANGED
    assert told["before"]["tokens_per_joule"] == pytest.approx(0.4, rel=1e-3)
    text = report(capsys, state, "--compare", "110m..90m", "89m..70m")
    assert "nothing known has changed" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--since", "yesterday"], 2, "is no time"),
        (["--since", "nand"], 2, "is no time"),
        (["--since", "infd"], 2, "is no time"),
        (["--since", "1h", "--until", "2h"], 2, "not before"),
        (["--compare", "2h..1h"], 2, "no times or two"),
        (["--compare", "1h..2h", "1h..now"], 2, "ends before"),
        (["--compare", "1h", "2h"], 2, "no time span"),
        (["--since", "10m", "--compare"], 1, "no engine has changed"),
        (["--compare", "2030-01-01..2030-01-02", "2030-01-03..2030-01-04"], 0, ""),
        (["--json", "--csv"], 2, "not allowed"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(state, capsys, arguments, code, words):
    assert main(["report", "--state", str(state), *arguments]) == code
    assert words in capsys.readouterr().err


def test_without_daemon_and_store_it_says_so(tmp_path, capsys):
    assert main(["report", "--state", str(tmp_path / "nowhere")]) == 1
    assert "no daemon answers" in capsys.readouterr().err


def test_an_empty_store_is_an_empty_report(tmp_path, capsys):
    Store(tmp_path).close()
    text = report(capsys, tmp_path)
    assert "no final receipts in this time" in text
    assert "no marks of the books in this time" in text


@pytest.fixture
def young(tmp_path) -> Path:
    """A store of three minutes: two of them are closed, and idle; nobody knows yet what the engine does since."""
    store = Store(tmp_path / "young")

    async def fill() -> None:
        for minute in range(3):
            t_ns, owners = NOW - (3 - minute) * MINUTE, {"idle": minute * 6 * 10**9}
            await store.note([], [EngineMark(engine="e", model="m", t_ns=t_ns, owners_uj=owners)], t_ns)

    asyncio.run(fill())
    store.close()
    return tmp_path / "young"


NOT_KNOWN = "are not known: the books have no tokens of this time and do not reach its end"


def test_tokens_that_may_yet_come_are_not_called_zero(young, capsys):
    text = report(capsys, young)
    assert text.splitlines()[-2:] == [
        "generated tokens per joule: -, without idle -",
        f"tokens per joule {NOT_KNOWN}",
    ]
    told = json.loads(report(capsys, young, "--json"))
    assert told["owners_joules"] == {"idle": pytest.approx(12_000.0)}
    assert (told["tokens_per_joule"], told["tokens_per_joule_without_idle"]) == (None, None)


def test_no_tokens_of_a_closed_time_are_zero(young, capsys):
    """Without idle nothing was used at all: of that there is no ratio."""
    beyond = ("--until", "59s")
    assert report(capsys, young, *beyond).splitlines()[-1] == f"tokens per joule {NOT_KNOWN}"
    closed = ("--until", "60s")
    assert report(capsys, young, *closed).splitlines()[-1] == "generated tokens per joule: 0, without idle -"
    told = json.loads(report(capsys, young, *closed, "--json"))
    assert (told["tokens_per_joule"], told["tokens_per_joule_without_idle"]) == (0.0, None)


def test_a_side_whose_tokens_may_yet_come_is_compared_with_nothing(young, capsys):
    times = ("--compare", "3m..2m", "2m..now")
    text = report(capsys, young, *times)
    assert "tokens/J 0 - " in " ".join(text.split())
    assert text.splitlines()[-1] == f"tokens per joule after {NOT_KNOWN}"
    (told,) = json.loads(report(capsys, young, *times, "--json"))["comparisons"]
    ratios = ("prompt_tokens_per_joule", "tokens_per_joule", "tokens_per_joule_without_idle")
    assert [told["before"][name] for name in ratios] == [0.0, 0.0, None]
    assert [told["after"][name] for name in ratios] == [None, None, None]
    assert told["tokens_per_joule"] is None
    _, after = csv.DictReader(io.StringIO(report(capsys, young, *times, "--csv")))
    assert [after[name] for name in ratios] == ["", "", ""]


# a daemon that runs


@pytest.fixture
def served(tmp_path) -> Iterator[Path]:
    """A real server on the Unix socket of a state directory, in a loop of its own."""
    folder = tmp_path / "served"
    ready, ends = threading.Event(), threading.Event()

    async def live() -> None:
        store = Store(folder)
        await fill(store)
        view = EngineView(engine=Engine(name="vllm-8000"), watermark_ns=NOW + MINUTE)
        energy = {("vllm-8000", "tiny", "decode", "measured"): 10**13}
        shown = Snapshot(t_ns=NOW + MINUTE, engines=(view,), counters={"energy_joules_total": energy})

        async def nothing(*_: object) -> object:
            return Received()

        door = Door(
            snapshot=lambda: shown,
            provisional=lambda _: None,
            receipts=store.receipts,
            history=store.history,
            ingests=[],
            accept=nothing,
            forward=None,
            release=nothing,
            forget=nothing,
            extra=dict,
            health=lambda: (True, "ok"),
            ready=lambda: (True, "ready"),
            token=None,
        )
        running = await start(build_app(door), listen="127.0.0.1:0", unix_socket=folder / "api.sock")
        ready.set()
        await asyncio.to_thread(ends.wait)
        await running.close()
        store.close()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert ready.wait(20)
    yield folder
    ends.set()
    thread.join()


def test_a_running_daemon_tells_the_same_and_the_books_as_they_are_now(served, state, capsys, monkeypatch):
    monkeypatch.setattr(runtime_report, "PAGE", 7)
    arguments = ("--until", "1m", "--since", "3h", "--by", "tenant", "--json")
    assert (
        json.loads(report(capsys, served, *arguments))["rows"] == json.loads(report(capsys, state, *arguments))["rows"]
    )
    (told,) = json.loads(report(capsys, served, "--compare", "--json"))["comparisons"]
    assert (told["before"]["requests"], told["after"]["requests"]) == (60, 60)
    source = runtime_report.open_source(served / "api.sock", served)
    marks = source.history(NOW - 10 * MINUTE).marks
    assert len(marks) == 12
    assert marks[-1].owners_uj == {"decode": 10**13}


def test_pages_of_receipts_that_ended_together_leave_none_out(tmp_path, monkeypatch, capsys):
    """Twenty requests with one last token, pages of seven."""
    monkeypatch.setattr(runtime_report, "PAGE", 7)
    receipts = [
        replace(receipt(number), id=f"r{number}", last_token_ns=NOW - SECOND * (number // 20)) for number in range(50)
    ]
    asked = []

    def ask(_socket: Path, route: str) -> bytes:
        asked.append(route)
        query = dict(pair.split("=") for pair in route.partition("?")[2].split("&"))
        since, until, limit, offset = (int(query[name]) for name in ("since_ns", "until_ns", "limit", "offset"))
        found = [r for r in receipts if since <= r.last_token_ns < until]
        found.sort(key=lambda r: (-r.last_token_ns, -receipts.index(r)))
        return msgspec.json.encode({"requests": found[offset : offset + limit]})

    monkeypatch.setattr(runtime_report, "ask", ask)
    told = list(runtime_report.RunningDaemon(tmp_path).receipts(0, NOW + SECOND))
    assert sorted(r.joules for r in told) == sorted(r.joules for r in receipts)
    assert len(told) == 50


@pytest.mark.parametrize("times", [("--since", "99999999d"), ("--since", "0001-01-01"), ("--until", "9999-01-01")])
def test_times_that_no_store_knows_are_its_ends(served, capsys, times):
    """The daemon is asked for whole numbers of 64 bits."""
    assert "tiny" in report(capsys, served, "--since", "3h", *times)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that is another user's")
@pytest.mark.parametrize("command", [["report"], ["report", "--compare"], ["forget", "--tenant", "red"], ["release"]])
def test_what_another_user_keeps_closed_is_said_in_a_sentence(state, capsys, command):
    state.chmod(0o700)
    os.seteuid(65534)
    try:
        assert main([*command, "--state", str(state)]) == 1
    finally:
        os.seteuid(0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Permission denied" in err
    assert "run this as its user" in err
