"""Requests out of an engine's files, in a real daemon: to receipts, over a kill and a restart, each once."""

import json
import time
from pathlib import Path

from tests.e2e.conftest import METER, Launch, until_covered
from tests.e2e.engine_server import engine_server
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for
from tests.support.tools import REPOSITORY

MOMENTS = ("forward_entry_time", "prefill_finished_time")
LINE = json.loads((REPOSITORY / "tests/fixtures/requests/sglang-0.5.23-export.jsonl").read_text().splitlines()[0])


def configuration(folder: Path, url: str) -> str:
    """The engine's page is read as well, for only then are the books closed within seconds."""
    engine = f'[[engines]]\nname = "big"\ntype = "vllm"\nurl = "{url}"\ndevices = ["gpu0"]\ninterval_seconds = 0.5\n'
    return f'{METER}\n{engine}\n[requests.sglang_export]\ndirectory = "{folder}"\nengine = "big"\n'


def append(file: Path, *ids: str) -> None:
    """Requests that took 1.5 s and have just ended."""
    now = time.time()
    shift = now - LINE["request_finished_ts"]
    moved = {key: value + shift for key, value in LINE.items() if key.endswith("_ts") or key in MOMENTS}
    with file.open("a") as lines:
        for request_id in ids:
            lines.write(json.dumps({**LINE, **moved, "id": request_id}) + "\n")


def completed(daemon: LiveDaemon) -> float:
    try:
        return daemon.page().total("jouled_requests_total", engine="big", outcome="completed")
    except KeyError:
        return 0.0


def has_receipts(daemon: LiveDaemon, *ids: str) -> bool:
    return all((receipt := daemon.receipt(each)) and not receipt["provisional"] for each in ids)


def test_every_line_becomes_one_receipt_over_a_kill(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    with engine_server() as (engine, url):
        first = launch(configuration(folder, url))
        until_covered(first, engine, 2.0)
        folder.mkdir()
        append(folder / "sglang-request-metrics-20261126_20.log", "r1", "r2")
        wait_for(lambda: has_receipts(first, "r1", "r2"), PATIENCE_SECONDS, "no receipts")
        first.kill()
        append(folder / "sglang-request-metrics-20261126_20.log", "r3")
        append(folder / "sglang-request-metrics-20261126_21.log", "r4")
        second = launch(configuration(folder, url))
        wait_for(lambda: has_receipts(second, "r1", "r2", "r3", "r4"), PATIENCE_SECONDS, "no receipts")
        wait_for(lambda: completed(second) >= 4, PATIENCE_SECONDS, "not counted")
        assert completed(second) == 4
        receipt = second.receipt("r1")
    assert receipt is not None
    assert (receipt["engine"], receipt["generation_tokens"]) == ("big", 64)
    assert "PROMPT-TEXT" not in first.log.read_text() + second.log.read_text()
