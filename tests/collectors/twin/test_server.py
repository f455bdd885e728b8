"""The twin over HTTP on 127.0.0.1: pages, meters, truth, spans."""

import asyncio
import os
import signal

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from jouled_collectors.twin.server import STATE_FILE, Twin, TwinOptions, application, serve

BOUND_SECONDS = 20


@pytest.fixture
async def twin():
    """A twin that has already lived a minute."""
    living = Twin(TwinOptions(spans_url="http://127.0.0.1:1/v1/traces"))
    living._offset_ns += 60_000_000_000
    return living


@pytest.fixture
async def client(aiohttp_client, twin):
    return await aiohttp_client(application(twin))


async def test_meters_stand_at_now_and_go_on(client):
    first = await (await client.get("/devices")).json()
    assert len(first["readings"]) == 14
    assert first["t_ns"] - first["started_ns"] >= 60_000_000_000
    assert 0 <= first["t_ns"] - first["readings"]["gpu0"]["moved_ns"] < 100_000_000
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            later = await (await client.get("/devices")).json()
            if later["readings"]["gpu0"]["moved_ns"] > first["readings"]["gpu0"]["moved_ns"]:
                break
    assert later["readings"]["gpu0"]["microjoules"] > first["readings"]["gpu0"]["microjoules"]


async def test_pages_and_versions(client):
    page = await client.get("/engines/llama-70b/metrics")
    assert page.headers["Content-Type"].startswith("text/plain; version=1.0.0")
    assert 'vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-70B-Instruct"}' in await page.text()
    assert await (await client.get("/engines/llama-8b/version")).json() == {"version": "0.32.0"}
    assert (await client.get("/engines/other/metrics")).status == 404
    assert (await client.get("/engines/other/version")).status == 404


async def test_truth_comes_page_by_page_and_closes(client, twin):
    seen, since_ns, more = {}, 0, True
    while more:
        page = await (await client.get("/truth", params={"since_ns": str(since_ns), "limit": "100"})).json()
        assert not set(page["requests"]) & set(seen)
        seen |= page["requests"]
        since_ns, more = page["next_since_ns"], page["more"]
    total = page["total"]
    assert total["requests"] + total["aborted"] == len(seen) > 100
    assert {one["outcome"] for one in seen.values()} <= {"completed", "aborted"}
    finished_uj = sum(one["uj"] for one in seen.values() if one["outcome"] == "completed")
    assert finished_uj == total["finished_uj"]
    owned = total["finished_uj"] + total["aborted_uj"] + total["idle_uj"] + total["in_flight_uj"]
    assert abs(owned - total["measured_uj"]) <= 2 * (len(seen) + 20)
    assert set(page["devices"]) == set(twin.node.devices)


async def test_truth_refuses_what_is_no_number(client):
    assert (await client.get("/truth?since_ns=yesterday")).status == 400


async def test_truth_is_kept_for_hours_only(twin):
    await twin.catch_up()
    kept = len(twin._ended)
    assert kept > 0
    twin.node.now_ns += 5 * 3600 * 10**9
    twin._take([])
    assert twin._ended == []


async def test_spans_of_finished_requests_arrive_where_they_were_sent_last(aiohttp_server, client, twin):
    arrived = asyncio.Event()
    services, ids = set(), set()

    async def take(request):
        export = ExportTraceServiceRequest.FromString(await request.read())
        for exported in export.resource_spans:
            services.update(a.value.string_value for a in exported.resource.attributes if a.key == "service.name")
            for span in exported.scope_spans[0].spans:
                ids.update(a.value.string_value for a in span.attributes if a.key == "gen_ai.request.id")
        if len(services) == 2:
            arrived.set()
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    receiver = await aiohttp_server(app)
    assert (await client.post("/spans", data=b"no")).status == 400
    answer = await client.post("/spans", json={"url": str(receiver.make_url("/v1/traces"))})
    assert (await answer.json())["spans_url"] == str(receiver.make_url("/v1/traces"))
    async with asyncio.timeout(BOUND_SECONDS):
        await arrived.wait()
    assert services == {"llama-70b", "llama-8b"}
    truth = twin.truth(0, 10**6)["requests"]
    assert ids <= set(truth)
    assert not ids & {one for one, view in truth.items() if view["outcome"] == "aborted"}


async def test_the_description_is_what_an_operator_would_configure(client):
    node = await (await client.get("/node")).json()
    assert [engine["name"] for engine in node["engines"]] == ["llama-70b", "llama-8b"]
    large = node["engines"][0]
    assert large["url"] == f"{node['url']}/engines/llama-70b"
    assert large["devices"] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert large["layers"] == 80
    assert large["weight_bytes"] == 141.1e9
    assert len(node["devices"]) == 14
    assert (await (await client.get("/healthz")).json())["pid"] == os.getpid()


async def test_it_ends_when_nobody_asks(tmp_path):
    listening = []
    async with asyncio.timeout(BOUND_SECONDS):
        await serve(TwinOptions(linger_seconds=0.05, state_directory=tmp_path), listening.append)
    assert listening[0].startswith("http://127.0.0.1:")
    assert not (tmp_path / STATE_FILE).exists()


async def test_it_ends_on_sigterm(tmp_path):
    def stop(_url):
        assert (tmp_path / STATE_FILE).exists()
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(BOUND_SECONDS):
        await serve(
            TwinOptions(state_directory=tmp_path), lambda url: asyncio.get_running_loop().call_later(0.05, stop, url)
        )
    assert not (tmp_path / STATE_FILE).exists()
