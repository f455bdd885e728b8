"""Recordings through the core: books that add up, receipts, and bad lines told."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.app.config.types import EngineConfig
from jouled.app.runtime.recording.files import RecordingError
from jouled.app.runtime.recording.replay import MOST_UNKNOWN_TYPES, replay
from jouled.model.parameters import Parameters, Slo

T0 = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
DEFAULTS = Parameters()
OWNERS = ("prefill", "decode", "resident", "unreported", "idle", "unattributed", "downtime", "open")

GPU = {"type": "device", "device": "gpu0", "kind": "gpu", "idle_watts": 100, "uplift_watts": 20, "max_watts": 700}
ENGINE = {"type": "engine", "engine": "e", "model": "m", "devices": ["gpu0"]}


def energy(seconds: float, watts: float = 300.0, device: str = "gpu0") -> dict:
    return {
        "type": "energy",
        "device": device,
        "t_ns": T0 + round(seconds * SECOND),
        "joules": round(seconds * watts, 6),
    }


def request(name: str, begin: float, end: float, **fields) -> dict:
    return {
        "type": "request",
        "engine": "e",
        "id": name,
        "arrival_ns": T0 + round(begin * SECOND),
        "first_token_ns": T0 + round((begin + 0.1) * SECOND),
        "last_token_ns": T0 + round(end * SECOND),
        "prompt_tokens": 100,
        "generation_tokens": 50,
        **fields,
    }


def session(seconds: int = 60, requests: int = 20) -> list[dict]:
    """A minute of one GPU with requests one after the other."""
    lines = [(T0 + step * SECOND // 10, energy(step / 10)) for step in range(seconds * 10 + 1)]
    for index in range(requests):
        line = request(f"r{index}", 5 + index * 2, 6.5 + index * 2)
        lines.append((line["last_token_ns"], line))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def write(path: Path, *lines: dict | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


class Run:
    """A replay with everything that it said."""

    def __init__(self, path: Path, parameters: Parameters = DEFAULTS, engines: tuple[EngineConfig, ...] = ()):
        self.receipts, self.complaints = [], []
        self.result = replay(
            path, parameters, engines, self.receipts.extend, lambda number, text: self.complaints.append((number, text))
        )
        self.total = self.result.snapshot.total
        for book in (*self.result.snapshot.groups, self.total):
            assert book.measured_uj == sum(getattr(book, f"{owner}_uj") for owner in OWNERS)


def test_every_request_gets_one_receipt_and_the_books_add_up(tmp_path):
    run = Run(write(tmp_path / "r", GPU, ENGINE, *session()), Parameters(slos=(Slo("fast", ttft=200.0),)))
    assert sorted(receipt.id for receipt in run.receipts) == sorted(f"r{index}" for index in range(20))
    assert run.result.requests == 20
    assert run.total.measured_uj == 60 * 300 * 1_000_000
    assert run.total.open_uj == 0
    assert all(not receipt.provisional and receipt.good == {"fast": True} for receipt in run.receipts)
    mine = sum(round(receipt.joules * 1_000_000) for receipt in run.receipts)
    assert mine == run.total.prefill_uj + run.total.decode_uj + run.total.resident_uj > 0
    assert run.result.summary().requests_per_second > 0
    assert run.complaints == []


def test_lines_that_cannot_be_used_are_told_counted_and_skipped(tmp_path):
    path = write(
        tmp_path / "r",
        GPU,
        ENGINE,
        "garbage",
        energy(0, device="gpu9"),
        {"type": "thermal"},
        {"type": "thermal"},
        *session(),
        request("backwards", 9, 8),
        request("r3", 11, 12.5),
        {**request("x", 9, 10), "engine": "nobody"},
    )
    run = Run(path)
    assert run.result.requests == 20
    summary = run.result.summary()
    assert summary.broken_lines == 1
    assert summary.unknown_types == {"thermal": 2}
    assert summary.rejected["unknown_device"] == 1
    assert summary.rejected["unknown_engine"] == 1
    assert summary.rejected["end_before_start"] == 1
    assert sum(summary.rejected.values()) == 4
    assert (3, "malformed: no JSON object") in run.complaints
    assert [text for number, text in run.complaints if number == 5] == [
        "unknown type 'thermal'; further ones are only counted"
    ]
    assert len([number for number, _ in run.complaints if number == 6]) == 0


def test_engines_of_the_configuration_stand_in_and_those_of_the_file_win(tmp_path):
    configured = (EngineConfig(name="e", model="configured", devices=["gpu0"]),)
    without = Run(write(tmp_path / "without", GPU, *session()), engines=configured)
    assert {receipt.model for receipt in without.receipts} == {"configured"}
    described = Run(write(tmp_path / "with", GPU, *session(), ENGINE), engines=configured)
    assert described.result.rejected == {"unknown_engine": 20}
    described = Run(write(tmp_path / "first", GPU, ENGINE, *session()), engines=configured)
    assert {receipt.model for receipt in described.receipts} == {"m"}


def test_a_header_alone_is_an_empty_recording(tmp_path):
    run = Run(write(tmp_path / "r", {"type": "header", "version": 1, "node": "n"}))
    assert (run.result.requests, run.total.measured_uj) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"), [("", "it is empty"), ("\n\n", "it is empty"), ("a\nb\n", "none of its 2 lines")]
)
def test_a_file_without_any_line_of_a_recording(tmp_path, text, said):
    path = tmp_path / "r"
    path.write_text(text)
    with pytest.raises(RecordingError, match=said):
        Run(path)


def test_one_wrong_time_stamp_does_not_move_the_clock(tmp_path):
    lines = session()
    for wrong in (energy(10 * 365 * 86400.0), request("future", 10**8, 10**8 + 1)):
        run = Run(write(tmp_path / "r", GPU, ENGINE, *lines[:200], wrong, *lines[200:]))
        assert run.result.rejected == {"time_jump": 1}
        assert (run.result.requests, run.total.measured_uj) == (20, 60 * 300 * 1_000_000)


def test_a_long_pause_is_believed_when_it_lasts(tmp_path):
    pause = 2 * 3600
    later = [energy(60 + pause + step / 10) for step in range(50)]
    run = Run(write(tmp_path / "r", GPU, *session(60, 0), *later))
    assert run.result.rejected == {"time_jump": 1}
    assert run.result.snapshot.devices[0].last_reading_ns == later[-1]["t_ns"]


def test_names_of_unknown_types_are_bounded(tmp_path):
    run = Run(write(tmp_path / "r", GPU, *({"type": f"t{index}"} for index in range(1000))))
    assert len(run.result.unknown_types) == MOST_UNKNOWN_TYPES + 1
    assert sum(run.result.unknown_types.values()) == 1000


def test_a_step_of_the_wall_clock_changes_no_joule(tmp_path):
    plain = Run(write(tmp_path / "plain", GPU, ENGINE, *session()))
    clock = {"type": "clock", "t_ns": T0, "boot_ns": 5}
    step, shift = 30 * SECOND, 3600 * SECOND
    stepped = [
        {key: value + shift if key.endswith("_ns") and value > T0 + step else value for key, value in line.items()}
        for line in session()
    ]
    at = next(index for index, line in enumerate(stepped) if line.get("t_ns", 0) > T0 + step)
    stepped.insert(at, {"type": "clock", "t_ns": T0 + step + shift, "boot_ns": 5 + step})
    moved = Run(write(tmp_path / "moved", GPU, ENGINE, clock, *stepped))
    assert moved.total == plain.total
    assert {receipt.id: receipt.joules for receipt in moved.receipts} == {
        receipt.id: receipt.joules for receipt in plain.receipts
    }


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_order_and_damage_the_books_add_up(tmp_path_factory, data):
    lines = [json.dumps(line) for line in [GPU, ENGINE, *session(20, 5)]]
    for index in data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=10)):
        damage = data.draw(st.sampled_from(["cut", "drop", "twice", "zero", "swap"]))
        other = data.draw(st.integers(0, len(lines) - 1))
        lines[index], lines[other] = {
            "cut": (lines[index][: len(lines[index]) // 2], lines[other]),
            "drop": ("", lines[other]),
            "twice": (lines[other], lines[other]),
            "zero": (lines[index].replace('"joules": ', '"joules": 0'), lines[other]),
            "swap": (lines[other], lines[index]),
        }[damage]
    Run(write(tmp_path_factory.mktemp("damage") / "r", json.dumps(GPU), *lines))
