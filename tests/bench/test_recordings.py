"""The synthetic recordings of the benchmark are good input: the core takes all of them and its books balance."""

from pathlib import Path

from bench.recordings import Arrival, items, poisson, trace, write

from jouled.app.runtime.recording.recording import Entry
from jouled.app.runtime.recording.replay import drive, replay
from jouled.core.pipeline import Pipeline
from jouled.model.engine import EngineSample
from jouled.model.parameters import Parameters
from jouled.model.receipt import Receipt


def refuse_nothing(number: int, reason: str) -> None:
    raise AssertionError(f"item {number}: {reason}")


def test_the_core_takes_every_item_and_settles_every_request() -> None:
    recorded = items(poisson(300, rate=20.0))
    finals: list[Receipt] = []
    pipeline = Pipeline(Parameters())
    now_ns = drive([Entry(n, item) for n, item in enumerate(recorded)], pipeline, finals.extend, refuse_nothing)
    total = pipeline.snapshot(now_ns).total
    assert len(finals) == 300
    assert {receipt.validity for receipt in finals} == {"ok"}
    assert total.open_uj == 0
    assert total.unreported_uj == 0
    assert total.prefill_uj + total.decode_uj + total.resident_uj == sum(round(f.joules * 1e6) for f in finals)


def test_the_page_counts_every_token_by_the_end() -> None:
    arrivals = list(poisson(50, rate=5.0))
    last = [item for item in items(arrivals) if isinstance(item, EngineSample)][-1]
    assert last.requests_running == 0
    assert last.prompt_tokens == sum(arrival.prompt_tokens for arrival in arrivals)
    assert last.generation_tokens == sum(arrival.generation_tokens for arrival in arrivals)


def test_a_written_recording_replays_without_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    write(path, items(poisson(20, rate=5.0)))
    finals: list[Receipt] = []
    replayed = replay(path, Parameters(), [], finals.extend, refuse_nothing)
    assert (replayed.requests, replayed.broken_lines, len(finals)) == (20, 0, 20)


def test_a_trace_file_gives_its_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9805900,396,109\n"
    )
    assert list(trace(path)) == [Arrival(0.0, 374, 44), Arrival(4.3, 396, 109)]
