import gzip
import logging

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.support.snapshots import ENGINES, MODELS, snapshot
from tests.support.tools import run, tool

from jouled.model.snapshot import Snapshot
from jouled.outputs.metrics.catalogue import CATALOGUE, families_off
from jouled.outputs.metrics.exposition import SERIES_LIMIT, Exposition, Format
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.metrics.process import Processes
from jouled.outputs.metrics.values import without_credentials


def page(shown: Snapshot, page_format: Format = Format.OPENMETRICS) -> str:
    return Exposition("1.2.3").page(shown, page_format).body.decode()


def samples(shown: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(page(shown))
        for sample in family.samples
    }


def test_promtool_finds_nothing_to_criticise():
    checked = run([tool("promtool"), "check", "metrics"], stdin=page(snapshot(), Format.TEXT))
    assert (checked.returncode, checked.stdout) == (0, "")


def test_both_formats_hold_the_same_values():
    shown = snapshot()
    exposition = Exposition("1.2.3", dict)
    text = exposition.page(shown, Format.TEXT).body.decode()
    openmetrics = exposition.page(shown, Format.OPENMETRICS).body.decode()

    def values(families):
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}

    assert values(parse_text(text)) == values(parse_openmetrics(openmetrics))


def test_every_family_that_the_snapshot_has_is_on_the_page_with_its_help():
    shown = snapshot()
    families = {family.name: family for family in parse_openmetrics(page(shown))}
    for name in [*shown.counters, *shown.gauges, *shown.histograms]:
        metric = CATALOGUE[name]
        family = families[metric.full_name.removesuffix("_total")]
        assert family.type == metric.type
        assert family.documentation == metric.documentation


def test_energy_is_published_in_joules_to_the_last_microjoule():
    # A product with 1e-6 would be off by the last bit here.
    shown = msgspec.structs.replace(snapshot(), counters={"residual_energy_joules_total": {(): 1000000023}})
    assert samples(shown)["jouled_residual_energy_joules_total", ()] == 1000000023 / 1e6


def test_owners_and_open_add_up_to_the_compute_boundary():
    values = samples(snapshot())
    owners = sum(value for (name, _), value in values.items() if name == "jouled_energy_joules_total")
    opened = values["jouled_open_energy_joules", (("quality", "measured"),)]
    boundary = values["jouled_boundary_energy_joules_total", (("boundary", "compute"),)]
    assert owners + opened == pytest.approx(boundary, rel=1e-9)


def test_a_silent_device_has_no_power_series():
    names = samples(snapshot())
    assert ("jouled_device_power_watts", (("device", "gpu6"),)) in names
    assert ("jouled_device_power_watts", (("device", "gpu7"),)) not in names


def test_an_empty_snapshot_shows_only_what_jouled_knows_of_itself():
    families = {family.name for family in parse_openmetrics(page(Snapshot()))}
    own = {m.full_name.removesuffix("_total").removesuffix("_info") for m in CATALOGUE.values() if m.clock == "own"}
    assert families <= own
    assert "jouled_build" in families


def test_the_state_of_a_source_is_one_of_seven():
    values = samples(snapshot())
    states = {dict(labels)["jouled_source_state"]: v for (n, labels), v in values.items()
              if n == "jouled_source_state" and dict(labels)["source"] == "rapl"}  # fmt: skip
    assert len(states) == 7
    assert [state for state, value in states.items() if value] == ["denied"]
    assert values["jouled_source_up", (("source", "rapl"),)] == 0
    assert values["jouled_source_up", (("source", "nvml"),)] == 1


def test_exemplars_carry_trace_ids_in_openmetrics_only():
    assert " # {trace_id=" not in page(snapshot(), Format.TEXT)
    family = next(f for f in parse_openmetrics(page(snapshot())) if f.name == "jouled_request_energy_joules")
    exemplars = {
        s.labels["le"]: s.exemplar for s in family.samples if s.labels.get("model_name") == MODELS[0] and s.exemplar
    }
    assert exemplars["2.0"].labels == {"trace_id": f"{2:032x}"}
    assert exemplars["2.0"].value == 1.8
    assert "+Inf" not in exemplars


def test_urls_are_shown_without_credentials():
    text = page(snapshot())
    assert 'url="http://127.0.0.1:8000/metrics"' in text
    assert "secret" not in text
    assert without_credentials("http://[::1]:8000/metrics") == "http://[::1]:8000/metrics"
    assert without_credentials("") == ""


def test_label_values_are_escaped():
    shown = msgspec.structs.replace(snapshot(), counters={"co2e_grams_total": {('a"b\\c\nd',): 1.0}})
    assert samples(shown)["jouled_co2e_grams_total", (("model_name", 'a"b\\c\nd'),)] == 1.0


def test_the_page_is_rendered_once_for_each_snapshot_and_format():
    exposition = Exposition("1.2.3")
    first = snapshot(1)
    assert exposition.kept(first, Format.TEXT) is None
    rendered = exposition.page(first, Format.TEXT)
    assert exposition.page(first, Format.TEXT) is rendered
    assert exposition.kept(first, Format.TEXT) is rendered
    assert exposition.kept(first, Format.OPENMETRICS) is None
    assert exposition.page(snapshot(1), Format.TEXT) is not rendered
    assert gzip.decompress(rendered.gzipped) == rendered.body


def test_a_realistic_page_keeps_its_budget_and_counts_its_series():
    rendered = Exposition("1.2.3").page(snapshot(), Format.TEXT)
    lines = [line for line in rendered.body.decode().splitlines() if not line.startswith("#")]
    assert rendered.series == len(lines)
    assert len(lines) <= 1_000
    assert f"jouled_page_series {len(lines)}.0" in lines
    assert "jouled_page_series_dropped 0.0" in lines


def test_series_beyond_the_limit_are_left_out_counted_and_logged_once(caplog):
    tenants = {(f"tenant{i}", "m"): 1 for i in range(6_000)}
    shown = msgspec.structs.replace(snapshot(), counters={"tenant_tokens_total": tenants})
    exposition = Exposition("1.2.3")
    with caplog.at_level(logging.WARNING):
        rendered = exposition.page(shown, Format.TEXT)
        exposition.page(msgspec.structs.replace(shown, sequence=9), Format.TEXT)
    lines = [line for line in rendered.body.decode().splitlines() if not line.startswith("#")]
    assert len(lines) == rendered.series == SERIES_LIMIT
    dropped = float(next(line for line in lines if line.startswith("jouled_page_series_dropped")).split()[1])
    assert dropped > 1_000
    assert len([r for r in caplog.records if "limit" in r.message]) == 1


def test_a_name_outside_the_catalogue_is_reported_once_and_the_page_stays(caplog):
    shown = msgspec.structs.replace(snapshot(), gauges={"surprise_watts": {(): 1.0}})
    exposition = Exposition("1.2.3")
    for sequence in (1, 2):
        body = exposition.page(msgspec.structs.replace(shown, sequence=sequence), Format.TEXT).body
    assert b"surprise" not in body
    assert b"jouled_boundary_energy_joules_total" in body
    assert len([r for r in caplog.records if "surprise_watts" in r.message]) == 1


def test_help_warns_of_sums_that_are_wrong():
    for metric in CATALOGUE.values():
        for label in ("slo", "boundary", "meter", "level"):
            assert (f"{label} (" in metric.documentation) == (label in metric.labels), metric.name


def test_use_of_the_process_and_its_children(tmp_path):
    stat = "{pid} (a) b) S 1 " + " ".join(["0"] * 9) + " 100 50 30 20 0 0 0 0 777 0 5 0"
    (tmp_path / "stat").write_text("cpu 1\nbtime 1700000000\n")
    for name in ("self/fd", "self/task/1", "42"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "self/stat").write_text(stat.format(pid=1))
    (tmp_path / "42/stat").write_text(stat.format(pid=42))
    (tmp_path / "self/task/1/children").write_text("42 43 ")
    (tmp_path / "self/fd/0").touch()
    values = Processes(tmp_path).read()
    assert values["process_cpu_seconds_total"] == {("daemon",): 1.5, ("children",): 0.5 + 1.5 + 0.5}
    assert (
        values["process_resident_memory_bytes"]["daemon",] == values["process_resident_memory_bytes"]["children",] > 0
    )
    assert values["process_open_fds"] == {("daemon",): 1}
    assert values["process_start_time_seconds"] == {("daemon",): 1700000007.77}


def test_without_proc_there_are_no_process_series(tmp_path):
    assert Processes(tmp_path).read() == {}


def test_own_process_series_are_real():
    values = Processes().read()
    assert values["process_resident_memory_bytes"]["daemon",] > 5_000_000
    assert values["process_start_time_seconds"]["daemon",] > 1_500_000_000


def test_engines_of_the_page():
    assert {f'engine="{engine}"' in page(snapshot()) for engine in ENGINES} == {True}


def test_families_that_are_switched_off_are_left_out():
    off = families_off(["jouled_tier_*", "jouled_device_info", "jouled_request_energy_joules"])
    shown = snapshot()
    body = Exposition("0", off=off).page(shown, Format.OPENMETRICS).body.decode()
    sent = {family.name for family in unpacked(1, packed(shown, "0", 0, off)).families}
    for name in ("tier_tokens_total", "tier_energy_joules_total", "device_info", "request_energy_joules"):
        assert f"jouled_{name}" not in body
        assert f"jouled_{name}" not in sent
    assert "jouled_energy_joules_total" in body
    assert "jouled_energy_joules_total" in sent


def test_a_family_that_there_is_not_cannot_be_switched_off():
    with pytest.raises(ValueError, match="jouled_nonsense"):
        families_off(["jouled_nonsense"])
