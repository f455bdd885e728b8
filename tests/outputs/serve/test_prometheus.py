"""A real Prometheus scrapes the page."""

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest
from tests.support.snapshots import MODELS, snapshot
from tests.support.tools import tool

SETTINGS = """
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: jouled, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def prometheus(tmp_path: Path):
    """Starts a Prometheus that scrapes a port; gives the address of its API."""
    started: list[asyncio.subprocess.Process] = []

    async def begin(port: int) -> str:
        (tmp_path / "prometheus.yml").write_text(SETTINGS.format(port=port))
        address = f"127.0.0.1:{free_port()}"
        started.append(
            await asyncio.create_subprocess_exec(
                tool("prometheus"),
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
                "--log.level=error",
            )
        )
        return f"http://{address}/api/v1"

    yield begin
    for process in started:
        process.terminate()
        await process.wait()


async def ask(session: aiohttp.ClientSession, url: str, query: str) -> list[dict]:
    """Ask until there is an answer that is not empty; a scrape may not have happened yet."""
    window = {"query": query, "start": "0", "end": "4000000000"}
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get(url, params=window, raise_for_status=True) as answer:
                    data = json.loads(await answer.text())["data"]
                    if found := data["result"] if isinstance(data, dict) else data:
                        return found
            except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError):
                pass  # not there yet; while it reads its storage it answers 503 with plain text
            await asyncio.sleep(0.1)


async def test_prometheus_takes_the_page_with_exemplars_units_and_totals(serve, prometheus):
    served = await serve()
    api = await prometheus(served.running.port)
    session = served.session
    [up] = await ask(session, f"{api}/query", 'up{job="jouled"} == 1')
    assert up["value"][1] == "1"

    exemplars = await ask(session, f"{api}/query_exemplars", "jouled_request_energy_joules_bucket")
    by_model = {series["seriesLabels"]["model_name"]: series["exemplars"] for series in exemplars}
    assert set(by_model) == set(MODELS)
    assert f"{2:032x}" in {each["labels"]["trace_id"] for s in exemplars for each in s["exemplars"]}

    [owners] = await ask(session, f"{api}/query", "sum(jouled_energy_joules_total) + sum(jouled_open_energy_joules)")
    assert float(owners["value"][1]) == pytest.approx(snapshot().boundaries_uj["compute"] / 1e6, rel=1e-12)

    [size] = await ask(session, f"{api}/query", "scrape_samples_scraped")
    [told] = await ask(session, f"{api}/query", "jouled_page_series")
    assert size["value"][1] == told["value"][1]

    async with session.get(f"{api}/metadata", params={"metric": "jouled_device_energy_joules"}) as answer:
        [metadata] = (await answer.json())["data"]["jouled_device_energy_joules"]
    assert (metadata["type"], metadata["unit"]) == ("counter", "joules")
