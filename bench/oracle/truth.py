"""A scenario as files: a recording for `jouled replay`, and the truth beside it."""

from pathlib import Path

import msgspec
from bench.oracle.scenario import Scenario
from bench.oracle.telling import START_NS, at_ns, name_of

from jouled.app.runtime.recording.recording import Writer
from jouled.model.units import microjoules


def write(scenario: Scenario, folder: Path) -> None:
    """Write `CASE-SEED.jsonl` and `CASE-SEED.truth.json` into a folder; files that exist are not overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{scenario.case.name}-{scenario.seed}"
    writer = Writer(folder / f"{stem}.jsonl", node="oracle", started_ns=START_NS, boot_offset_ns=START_NS)
    for item in scenario.items:
        writer.write(item)
    writer.close()
    with (folder / f"{stem}.truth.json").open("xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(_truth(scenario))) + b"\n")


def _truth(scenario: Scenario) -> dict[str, object]:
    """Joules are true ones; what the meters say is `gain` times as much."""
    pairs = zip(scenario.jobs, scenario.run.served, strict=True)
    return {
        "case": scenario.case.name,
        "seed": scenario.seed,
        "gain": scenario.meters.gain,
        "idle_uj": microjoules(scenario.run.idle_joules),
        "model": scenario.model,
        "physics": scenario.physics,
        "requests": [
            {
                "id": name_of(number),
                "told": job.told,
                "service_start_ns": at_ns(served.start),
                "first_token_ns": at_ns(served.first),
                "last_token_ns": at_ns(served.last),
                "prefill_uj": microjoules(served.prefill),
                "decode_uj": microjoules(served.decode),
                "resident_uj": microjoules(served.resident),
            }
            for number, (job, served) in enumerate(pairs)
        ],
    }
