"""Recordings: what is written can be read, and what is broken is told line by line."""

import gzip
import os
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.app.runtime.recording import files as recording_files
from jouled.app.runtime.recording.recording import Broken, Entry, Heading, RecordingError, Unknown, Writer, read
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import CounterSemantics, Engine, EngineSample, LatencyHistogram
from jouled.model.errors import SourceState
from jouled.model.readings import ClockStep, DeviceStatus, EnergyReading, PowerReading, SourceReport
from jouled.model.requests import Outcome, RequestEvent, RequestStart

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def entries(path: Path) -> list:
    return [line.item for line in read(path) if isinstance(line, Entry)]


def recorded(tmp_path: Path, *lines: str | bytes, name: str = "r.jsonl") -> list:
    path = tmp_path / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return list(read(path))


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.integers(START, START + 3600 * SECOND)
counts = st.integers(0, 2**63 - 1)
maybe_counts = st.none() | counts
watts = st.floats(allow_nan=False, allow_infinity=False)
items = st.one_of(
    st.builds(
        Device,
        name=names,
        kind=st.sampled_from(DeviceKind),
        parent=texts,
        vendor=texts,
        product=texts,
        index=maybe_counts,
        source=texts,
        method=texts,
        quality=st.sampled_from(Quality),
        idle_watts=st.none() | watts,
        uplift_watts=st.none() | watts,
        max_watts=st.none() | watts,
        wrap_microjoules=st.none() | st.integers(0, 10**20),
        fraction=st.none() | st.floats(0.0, 1.0, exclude_min=True),
    ),
    st.builds(
        Engine,
        name=names,
        type=texts,
        model=texts,
        devices=st.lists(names, max_size=3).map(tuple),
        role=names,
        version=texts,
        kv_connector=texts,
        speculation=texts,
        parameters=st.none() | watts,
        layers=maybe_counts,
        attention_width=st.none() | watts,
        sizes_from=texts,
        counter_semantics=st.builds(CounterSemantics, prompt_at=st.sampled_from(["step", "finish"])),
    ),
    st.builds(EnergyReading, names, times, st.integers(-(10**20), 10**20), st.sampled_from(Quality)),
    st.builds(PowerReading, names, times, watts, st.sampled_from(Quality)),
    st.builds(
        EngineSample,
        engine=names,
        t_ns=times,
        model=texts,
        steps=maybe_counts,
        prompt_tokens=maybe_counts,
        requests_running=maybe_counts,
        cpu_seconds=st.none() | st.floats(0.0, 1e9),
        reported_energy_joules=st.none() | st.floats(0.0, 1e9),
        forward_seconds=st.dictionaries(st.sampled_from(["extend", "decode"]), st.floats(0.0, 1e9)),
        latencies=st.dictionaries(
            st.sampled_from(["ttft", "tpot", "e2el"]),
            st.just(LatencyHistogram((0.1, 2.5), (1, 2, 3))) | st.just(LatencyHistogram((), (0,))),
        ),
        departed_counts=st.dictionaries(st.sampled_from(["steps", "prompt", "generation"]), counts),
    ),
    st.builds(
        RequestEvent,
        engine=names,
        id=names,
        arrival_ns=times,
        first_token_ns=times,
        last_token_ns=times,
        prompt_tokens=counts,
        generation_tokens=counts,
        scheduled_ns=st.none() | times,
        cached_prompt_tokens=maybe_counts,
        outcome=st.sampled_from(Outcome),
        trace_id=texts,
        tenant=texts,
        preemptions=counts,
        seen_ns=st.just(0) | times,
        answer=counts,
    ),
    st.builds(RequestStart, engine=names, id=names, arrival_ns=times, seen_ns=st.just(0) | times),
    st.builds(SourceReport, source=names, state=st.sampled_from(SourceState), t_ns=times, reason=st.just("timeout")),
)


@settings(deadline=None)
@given(st.lists(items), st.sampled_from(["r.jsonl", "r.jsonl.gz", "r.jsonl.zst"]))
def test_what_is_written_is_read_again(tmp_path_factory, written, name):
    path = tmp_path_factory.mktemp("recording") / name
    writer = Writer(path, node="n", started_ns=START, boot_offset_ns=START - 77)
    for item in written:
        writer.write(item)
    writer.close()
    heading, start, *rest = read(path)
    assert isinstance(heading, Heading)
    assert (heading.header.version, heading.header.node, heading.header.started_ns) == (1, "n", START)
    assert start.item == ClockStep(START, 0)
    assert [line.item for line in rest] == written


def test_a_step_of_the_wall_clock_moves_no_core_time(tmp_path):
    path = tmp_path / "r.jsonl"
    written = [
        EnergyReading("g", START + SECOND, 1),
        ClockStep(START + 2 * SECOND, 3600 * SECOND),
        EnergyReading("g", START + 3 * SECOND, 2),
        RequestStart(engine="e", id="before the step", arrival_ns=START + SECOND),
    ]
    writer = Writer(path, node="n", started_ns=START, boot_offset_ns=START - 77)
    for item in written:
        writer.write(item)
    writer.close()
    assert f'"t_ns":{START + 3603 * SECOND}' in path.read_text()
    assert entries(path)[1:] == written


def test_two_boots_in_one_file_go_on(tmp_path):
    lines = recorded(
        tmp_path,
        '{"type":"clock","t_ns":1000,"boot_ns":900}',
        '{"type":"clock","t_ns":3000,"boot_ns":20}',
        '{"type":"energy","device":"g","t_ns":3100,"joules":1}',
    )
    assert [line.item.t_ns for line in lines] == [1000, 3000, 3100]


def test_a_large_counter_keeps_its_microjoules(tmp_path):
    values = ["12345678901234.567891", "0.1", "1e-6", "2.5e-7", "7E2", "5"]
    lines = recorded(tmp_path, *(f'{{"type":"energy","device":"g","t_ns":1,"joules":{value}}}' for value in values))
    assert [line.item.microjoules for line in lines] == [12345678901234567891, 100000, 1, 0, 700_000_000, 5_000_000]


def test_fields_nobody_knows_are_ignored_and_null_is_absent(tmp_path):
    (line,) = recorded(
        tmp_path,
        '{"new":[1],"type":"request","engine":"e","id":"r","arrival_ns":1,"first_token_ns":2,"last_token_ns":3,'
        '"prompt_tokens":4,"generation_tokens":5,"tenant":null,"outcome":null,"seen_ns":null}',
    )
    assert line.item == RequestEvent(
        engine="e", id="r", arrival_ns=1, first_token_ns=2, last_token_ns=3, prompt_tokens=4, generation_tokens=5
    )


def test_the_semantics_of_an_engines_counters_default_to_vllms(tmp_path):
    lines = recorded(
        tmp_path,
        '{"type":"engine","engine":"e","model":"m","devices":["g0","g1"]}',
        '{"type":"engine","engine":"e","model":"m","devices":[],"counter_semantics":{"generation_at":"finish"}}',
    )
    assert lines[0].item.devices == ("g0", "g1")
    assert lines[0].item.counter_semantics == CounterSemantics("total", "first_token", "all", "step")
    assert lines[1].item.counter_semantics == CounterSemantics("total", "first_token", "all", "finish")


@pytest.mark.parametrize(
    ("line", "reason", "said"),
    [
        ("nonsense", "malformed", "no JSON"),
        (b"\xff\xfe\x00", "malformed", "no JSON"),
        ('{"type":"energy","device":"\udcff"}'.encode("utf-8", "surrogatepass"), "invalid", "utf-8"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":1,"x":' + "[" * 100_000, "malformed", "no JSON"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":NaN}', "malformed", "no JSON"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":"1"}', "invalid", "`joules` is no number"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":null}', "invalid", "`joules` is no number"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":[1]}', "invalid", "`joules` is no number"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":1e999999999}', "invalid", "out of range"),
        ('{"type":"energy","device":"g","t_ns":-1,"joules":1}', "invalid", "$.t_ns"),
        ('{"type":"energy","device":"g","t_ns":1.5,"joules":1}', "invalid", "$.t_ns"),
        ('{"type":"energy","device":"g","t_ns":1e30,"joules":1}', "invalid", "$.t_ns"),
        ('{"type":"energy","device":"","t_ns":1,"joules":1}', "invalid", "$.device"),
        ('{"type":"energy","device":"g","joules":1}', "invalid", "t_ns"),
        ('{"type":"energy","device":"g","t_ns":1,"joules":1,"quality":"good"}', "invalid", "$.quality"),
        ('{"type":"power","device":"g","t_ns":1,"watts":1e999}', "invalid", "$.watts"),
        ('{"type":"device","device":"g","kind":"tpu"}', "invalid", "$.kind"),
        ('{"type":"device","device":"g","kind":"gpu","wrap_joules":"x"}', "invalid", "wrap_joules"),
        ('{"type":"engine","engine":"e","model":"m","devices":"g"}', "invalid", "$.devices"),
        ('{"type":"engine_counters","engine":"e","t_ns":1,"steps":-1}', "invalid", "$.steps"),
        ('{"type":"source","source":"s","state":"fine","t_ns":1}', "invalid", "$.state"),
        ('{"type":7}', "invalid", "$.type"),
        ("{}", "invalid", "type"),
        ("[]", "invalid", "object"),
        ("null", "invalid", "object"),
    ],
)
def test_a_broken_line_is_told_and_the_next_is_read(tmp_path, line, reason, said):
    broken, good = recorded(tmp_path, line, '{"type":"clock","t_ns":1,"boot_ns":1}')
    assert isinstance(broken, Broken)
    assert (broken.number, broken.reason) == (1, reason)
    assert said in broken.message
    assert (good.number, good.item) == (2, ClockStep(1, 0))


def test_types_nobody_knows_are_named(tmp_path):
    assert recorded(tmp_path, '{"type":"thermal","celsius":60}') == [Unknown(1, "thermal")]


def test_a_line_without_end_is_dropped_and_the_numbers_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_files, "LONGEST_LINE", 200_000)
    good = '{"type":"clock","t_ns":1,"boot_ns":1}'
    lines = recorded(tmp_path, good, "x" * 300_001, good, "", "y" * 200_001, good, "z" * 900_000)
    assert [(line.number, getattr(line, "reason", "")) for line in lines] == [
        (1, ""), (2, "too_long"), (3, ""), (5, "too_long"), (6, ""), (7, "too_long"),
    ]  # fmt: skip


def test_line_ends_of_other_systems_and_a_missing_last_one(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"type":"clock","t_ns":1,"boot_ns":1}\r\n\r\n{"type":"clock","t_ns":2,"boot_ns":2}')
    assert [line.item.t_ns for line in read(path)] == [1, 2]


def many_lines() -> bytes:
    return b"".join(
        b'{"type":"energy","device":"%s","t_ns":%d,"joules":%d}\n' % (os.urandom(9).hex().encode(), t, t)
        for t in range(6000)
    )


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_compressed_file_that_breaks_off_gives_what_it_has(tmp_path, compress):
    data = compress(many_lines())
    path = tmp_path / "r.jsonl"
    path.write_bytes(data[: len(data) // 2])
    *good, last = read(path)
    assert len(good) > 500
    assert (last.number, last.reason) == (len(good) + 1, "truncated")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_damaged_compressed_file_gives_what_it_has(tmp_path, compress):
    data = bytearray(compress(many_lines()))
    for position in range(len(data) // 2, len(data) // 2 + 64):
        data[position] = 0x55
    path = tmp_path / "r.jsonl"
    path.write_bytes(data)
    assert "corrupt" in {getattr(line, "reason", "") for line in read(path)}


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_several_compressed_files_in_a_row_are_one(tmp_path, compress):
    path = tmp_path / "r.jsonl"
    path.write_bytes(compress(many_lines()) + compress(many_lines()))
    assert len([line for line in read(path) if isinstance(line, Entry)]) == 12000


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst"])
def test_what_was_flushed_survives_a_killed_writer(tmp_path, name):
    writer = Writer(tmp_path / name, node="n", started_ns=START, boot_offset_ns=0)
    writer.write(EnergyReading("g", START, 1))
    writer.flush()
    assert EnergyReading("g", START, 1) in entries(tmp_path / name)
    writer.close()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_told(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "r.jsonl"
    path.write_bytes(data)
    for line in read(path):
        assert line.number >= 1


def test_a_file_that_cannot_be_read_at_all(tmp_path, monkeypatch):
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        list(read(tmp_path / "nothing"))
    with pytest.raises(RecordingError, match="cannot be read: Is a directory"):
        list(read(tmp_path))
    with pytest.raises(RecordingError, match="not compressed as its name says"):
        recorded(tmp_path, "{}", name="r.jsonl.gz")
    with pytest.raises(RecordingError, match=r"version 2.*reads version 1"):
        recorded(tmp_path, '{"type":"header","version":2}')
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "r.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(RecordingError, match=r"jouled\[zstd\]"):
        list(read(tmp_path / "r.zst"))


def test_a_recording_is_never_overwritten(tmp_path):
    path = tmp_path / "r.jsonl"
    Writer(path, node="n", started_ns=START, boot_offset_ns=0).close()
    with pytest.raises(RecordingError, match="exists already"):
        Writer(path, node="n", started_ns=START, boot_offset_ns=0)
    with pytest.raises(RecordingError, match="cannot be written"):
        Writer(tmp_path / "no" / "r", node="n", started_ns=START, boot_offset_ns=0)
    assert path.stat().st_mode & 0o077 == 0


def test_secrets_and_serial_numbers_stay_out(tmp_path):
    path = tmp_path / "r.jsonl"
    writer = Writer(path, node="n", started_ns=START, boot_offset_ns=0)
    writer.write(Device(name="g", kind=DeviceKind.GPU, uuid="GPU-hush", pci_bus_id="hush"))
    writer.write(Engine(name="e", url="http://u:hush@host/?key=hush", pid=4321))
    reason = "GET http://u:hush@h:1/metrics?token=hush 401, Authorization: Bearer hush"
    writer.write(SourceReport(source="s", state=SourceState.DOWN, t_ns=START, reason=reason, message="hush"))
    writer.write(DeviceStatus(device="g", t_ns=START))
    writer.close()
    text = path.read_text()
    assert "hush" not in text
    assert "4321" not in text
    assert "401" in text
