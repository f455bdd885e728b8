"""Recordings in virtual time: complete, in order, repeatable, and true."""

import json
from itertools import pairwise

import pytest

from jouled_collectors.twin.__main__ import main
from jouled_collectors.twin.load import Load
from jouled_collectors.twin.recording import RecordingOptions, write_recording


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recording")
    recording, truth = directory / "node.jsonl", directory / "truth.json"
    options = RecordingOptions(seconds=30.0, seed=4, poll_seconds=0.05, tell_starts=True)
    count = write_recording(options, recording, truth)
    lines = [json.loads(line) for line in recording.read_text().splitlines()]
    return count, lines, json.loads(truth.read_text())


def of(lines, kind):
    return [line for line in lines if line["type"] == kind]


def test_it_opens_with_header_devices_and_engines(written):
    _, lines, _ = written
    assert lines[0]["type"] == "header"
    assert lines[0]["version"] == 1
    assert [line["type"] for line in lines[1:17]] == ["device"] * 14 + ["engine"] * 2
    gpu = of(lines, "device")[0]
    assert {"idle_watts", "uplift_watts", "max_watts"} <= set(gpu)
    assert {line["device"] for line in of(lines, "device") if "wrap_joules" in line} == {
        "cpu0",
        "cpu1",
        "dram0",
        "dram1",
    }
    engine = of(lines, "engine")[0]
    assert engine["devices"] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert {"layers", "hidden_size", "weight_bytes", "kv_bytes_per_token", "active_parameters"} <= set(engine)


def test_finished_requests_are_told_within_a_second_and_aborted_ones_never(written):
    count, lines, truth = written
    told = {line["id"]: line for line in of(lines, "request")}
    completed = {one for one, view in truth["requests"].items() if view["outcome"] == "completed"}
    assert set(told) == completed
    assert count == len(truth["requests"])
    for line in told.values():
        assert line["arrival_ns"] < line["scheduled_ns"] < line["first_token_ns"] <= line["last_token_ns"]
        assert 0 < line["seen_ns"] - line["last_token_ns"] <= 1e9
        assert line["generation_tokens"] == truth["requests"][line["id"]]["generation_tokens"]
    assert {line["id"] for line in of(lines, "request_start")} == completed


def test_counters_at_the_end_hold_aborted_tokens_too(written):
    _, lines, truth = written
    for name, view in truth["engines"].items():
        pages = [line for line in of(lines, "engine_counters") if line["engine"] == name]
        aborted = sum(
            one["generation_tokens"]
            for one in truth["requests"].values()
            if one["engine"] == name and one["outcome"] == "aborted"
        )
        assert pages[-1]["generation_tokens"] <= view["generation_tokens"] + aborted
        assert {later["t_ns"] - page["t_ns"] for page, later in pairwise(pages)} == {5 * 10**9}


def test_meters_add_up_to_the_truth(written):
    _, lines, truth = written
    for gpu in ("gpu1", "gpu4", "gpu7"):
        readings = [line for line in of(lines, "energy") if line["device"] == gpu]
        grown = readings[-1]["joules"] - readings[0]["joules"]
        assert grown == pytest.approx(truth["devices"][gpu]["uj"] / 1e6, rel=0.01)
        stale = sum(a["joules"] == b["joules"] for a, b in pairwise(readings))
        assert 0.4 < stale / len(readings) < 0.6
    owned = sum(truth["total"][key] for key in ("finished_uj", "aborted_uj", "idle_uj"))
    assert truth["total"]["in_flight_uj"] == 0
    assert abs(owned - truth["total"]["measured_uj"]) <= 2 * len(truth["requests"])


def test_lines_come_in_the_order_in_which_they_were_seen(written):
    _, lines, _ = written
    seen = [
        line.get("seen_ns", line.get("t_ns")) for line in lines[17:] if line["type"] not in {"power", "request_start"}
    ]
    assert seen == sorted(seen)


def test_the_same_seed_writes_the_same_file(tmp_path):
    for name in ("a", "b"):
        options = RecordingOptions(seconds=3.0, seed=9, load=Load(share=0.3), poll_seconds=0.1)
        write_recording(options, tmp_path / name, tmp_path / f"{name}.truth")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.truth").read_bytes() == (tmp_path / "b.truth").read_bytes()


def test_the_command_writes_one_without_idle_power(tmp_path, capsys):
    out, truth = tmp_path / "out.jsonl", tmp_path / "truth.json"
    arguments = ["recording", "--seconds", "2", "--poll-ms", "100", "--no-idle", "--shape", "short-answers"]
    assert main([*arguments, "--out", str(out), "--truth", str(truth)]) == 0
    assert "requests" in capsys.readouterr().out
    devices = [json.loads(line) for line in out.read_text().splitlines()[1:15]]
    assert not any("idle_watts" in device for device in devices)


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    missing = str(tmp_path / "nowhere" / "out.jsonl")
    assert main(["recording", "--seconds", "1", "--out", missing, "--truth", missing]) == 1
    assert "nowhere" in capsys.readouterr().err
