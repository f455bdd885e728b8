import asyncio
import json

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from tests.support.snapshots import ENGINES, NOW_NS, SLOS, receipt, snapshot

from jouled.model.snapshot import Owner
from jouled.outputs.metrics.exposition import Format
from jouled.outputs.serve.scrape import negotiate, takes_gzip
from jouled.outputs.store import StoreError

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_ACCEPT, Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"; charset=utf-8', Format.OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", Format.TEXT),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=0.2,text/plain", Format.TEXT),
        ("text/html,*/*", Format.TEXT),
        ("application/openmetrics-text;q=much", Format.TEXT),
        ("", Format.TEXT),
    ],
)
def test_the_format_is_the_one_the_client_prefers(accept, expected):
    assert negotiate(accept) is expected


def test_gzip_only_for_those_who_take_it():
    assert takes_gzip("deflate, gzip;q=0.5")
    assert not takes_gzip("gzip;q=0")
    assert not takes_gzip("")


async def test_metrics_in_both_formats_and_compressed(serve):
    served = await serve()
    url = served.url("/metrics")
    for accept, page_format in ((PROMETHEUS_ACCEPT, Format.OPENMETRICS), ("text/plain", Format.TEXT)):
        for encoding in ("gzip", "identity"):
            async with served.session.get(url, headers={"Accept": accept, "Accept-Encoding": encoding}) as answer:
                assert answer.headers["Content-Type"] == page_format.value
                assert answer.headers.get("Content-Encoding", "identity") == encoding
                text = await answer.text()
                assert 'jouled_boundary_energy_joules_total{boundary="compute"}' in text
                assert text.endswith("# EOF\n") == (page_format is Format.OPENMETRICS)
    assert len(list(parse_openmetrics(await served.get("/metrics", headers={"Accept": PROMETHEUS_ACCEPT})))) > 30


async def test_a_scrape_follows_the_committed_snapshot(serve):
    served = await serve()
    before = await served.get("/metrics")
    assert 'jouled_co2e_grams_total{model_name="x"}' not in before
    served.shown = msgspec.structs.replace(snapshot(8), counters={"co2e_grams_total": {("x",): 5.0}})
    assert 'jouled_co2e_grams_total{model_name="x"} 5.0' in await served.get("/metrics")


async def test_the_snapshot_has_the_books_in_exact_microjoules(serve):
    served = await serve(extra=lambda: {"graded": {"wmape_percent": 3.25}})
    data = await served.get("/api/v1/snapshot")
    shown = snapshot()
    for book, made in [(data["total"], shown.total), (data["groups"][0], shown.groups[0])]:
        owned = sum(book[f"{owner}_uj"] for owner in Owner)
        assert owned + book["open_uj"] == book["measured_uj"] == made.measured_uj
    assert data["balance_uj"] == 0
    assert data["boundaries_uj"] == shown.boundaries_uj
    assert data["groups"][0]["devices"] == [f"gpu{i}" for i in range(8)]
    assert sum(row["decode_uj"] for row in data["owners"]) == shown.total.decode_uj
    assert data["extra"] == {"graded": {"wmape_percent": 3.25}}
    assert data["time_ns"] == NOW_NS
    assert {row["slo"]: row["good_requests"] for row in data["slos"]} == dict.fromkeys(SLOS, 3600)
    assert data["tokens_per_joule"]["compute"] == 0.94
    engine = data["engines"][0]
    assert (engine["name"], engine["url"]) == (ENGINES[0], "http://127.0.0.1:8000/metrics")
    silent = data["devices"][7]
    assert (silent["name"], silent["watts"], silent["energy_uj"]) == ("gpu7", None, 900_000_000_007)


async def test_the_snapshot_says_when_the_books_do_not_balance(serve):
    served = await serve()
    total = msgspec.structs.replace(snapshot().total, idle_uj=0)
    served.shown = msgspec.structs.replace(snapshot(), total=total)
    assert (await served.get("/api/v1/snapshot"))["balance_uj"] == snapshot().total.idle_uj


async def test_core_times_are_shown_as_unix_times(serve):
    served = await serve()
    served.shown = msgspec.structs.replace(snapshot(), wall_minus_core_ns=1000)
    data = await served.get("/api/v1/snapshot")
    assert data["time_ns"] == NOW_NS + 1000
    assert data["engines"][0]["watermark_ns"] == NOW_NS - 20_000_000_000 + 1000
    assert data["devices"][0]["last_reading_ns"] == NOW_NS + 1000


async def test_receipts_by_id(serve):
    served = await serve()
    await served.store.commit(b"", [receipt(1, id="chatcmpl-x"), receipt(2, id="chatcmpl-x"), receipt(3)], NOW_NS)
    newest = await served.get("/api/v1/requests/x")
    assert newest == json.loads(msgspec.json.encode(receipt(2, id="chatcmpl-x")))
    both = (await served.get("/api/v1/requests/chatcmpl-x?all=1"))["requests"]
    assert [r["arrival_ns"] for r in both] == [receipt(2).arrival_ns, receipt(1).arrival_ns]
    live = await served.get("/api/v1/requests/live")
    assert (live["id"], live["provisional"]) == ("chatcmpl-live", True)
    assert len((await served.get("/api/v1/requests/live?all=1"))["requests"]) == 1
    missing = await served.get("/api/v1/requests/nobody", status=404)
    assert "no request nobody is known here, or it is not priced yet" in missing["error"]
    assert "an engine without a page waits 120 s" in missing["error"]
    assert "nobody" in (await served.get("/api/v1/requests/nobody?all=1", status=404))["error"]


async def test_an_id_with_odd_characters_is_found(serve):
    served = await serve()
    await served.store.commit(b"", [receipt(1, id="a/b?c ü")], NOW_NS)
    assert (await served.get("/api/v1/requests/a%2Fb%3Fc%20%C3%BC"))["id"] == "a/b?c ü"


async def test_the_list_of_receipts_filters_and_pages(serve):
    served = await serve()
    await served.store.commit(b"", [receipt(n) for n in range(1, 26)], NOW_NS)
    listed = await served.get("/api/v1/requests?limit=3")
    assert [r["id"] for r in listed["requests"]] == [receipt(n).id for n in (25, 24, 23)]
    assert "next" not in listed
    filtered = await served.get(f"/api/v1/requests?engine={ENGINES[1]}&outcome=cancelled")
    assert [r["id"] for r in filtered["requests"]] == [receipt(21).id]

    seen, address = [], "/api/v1/requests?all=1&limit=10"
    while address:
        page = await served.get(address)
        seen += [r["id"] for r in page["requests"]]
        # What is finished in between must not shift the pages.
        await served.store.commit(b"", [receipt(100 + len(seen))], NOW_NS)
        address = page.get("next", "")
    assert seen == [receipt(n).id for n in range(25, 0, -1)]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", "limit is between 1 and 1000"),
        ("limit=1001", "limit is between"),
        ("limit=ten", "limit is a whole number"),
        ("limit=²", "limit is a whole number"),
        ("since_ns=-1", "since_ns is a whole number"),
        ("until_ns=99999999999999999999", "until_ns is a whole number"),
        ("until_ns=" + "9" * 5000, "until_ns is a whole number"),
        ("outcome=lost", "outcome is one of completed, cancelled, failed"),
        ("modell=x", "unknown parameter modell; there are all, id"),
        ("all=yes", "all is 0 or 1"),
    ],
)
async def test_wrong_parameters_are_named(serve, query, sentence):
    served = await serve()
    assert sentence in (await served.get(f"/api/v1/requests?{query}", status=400))["error"]


async def test_health_and_readiness(serve):
    served = await serve(ready=lambda: (False, "engine vllm-8000 is quarantined"))
    assert await served.get("/healthz") == "ok\n"
    assert await served.get("/readyz", status=503) == "engine vllm-8000 is quarantined\n"


async def test_unknown_paths_and_methods_are_said_in_json(serve):
    served = await serve()
    assert "nothing at /api/v2" in (await served.get("/api/v2", status=404))["error"]
    assert "takes GET" in (await served.post("/metrics", b"", status=405))["error"]


async def test_a_store_that_cannot_be_read_is_said(serve):
    async def broken(_):
        raise StoreError("the receipts cannot be read: disk I/O error")

    served = await serve(receipts=broken)
    assert "disk I/O error" in (await served.get("/api/v1/requests", status=503))["error"]


async def test_the_page_is_whole_and_asks_nobody_else(serve):
    served = await serve()
    async with served.session.get(served.url("/")) as answer:
        assert answer.content_type == "text/html"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        page = await answer.text()
    assert "http://" not in page
    assert "https://" not in page
    for path in ("/static/page.css", "/static/page.js", "/static/icon.svg"):
        assert path in page
        assert await served.get(path)


async def test_a_client_that_does_not_read_holds_up_nobody(serve):
    served = await serve()
    writers = []
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        writers.append(writer)
    _, silent = await asyncio.open_connection("127.0.0.1", served.running.port)
    silent.write(b"POST /api/v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: 100\r\n\r\nhalf")  # fmt: skip
    async with asyncio.timeout(10):
        assert "jouled_build_info" in await served.get("/metrics")
    for writer in [*writers, silent]:
        writer.close()


async def test_what_can_be_got_can_be_asked_for_by_head(serve):
    served = await serve()
    for path in ("/metrics", "/healthz", "/", "/api/v1/snapshot"):
        async with served.session.head(served.url(path)) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    async with served.session.head(served.url("/v1/none")) as answer:
        assert answer.status == 404


async def test_a_tenant_is_forgotten_through_the_unix_socket_only(serve):
    served = await serve()
    await served.store.commit(b"books", [receipt(1, tenant="red"), receipt(2, tenant="blue")], NOW_NS)
    refused = await served.post("/api/v1/forget", b'{"tenant": "red"}', 403)
    assert "jouled forget" in refused["error"]
    assert await served.post("/api/v1/forget", b'{"tenant": "red"}', unix=True) == {"forgotten": 1}
    assert [each["tenant"] for each in (await served.get("/api/v1/requests"))["requests"]] == ["blue"]
    await served.post("/api/v1/forget", b"{}", 400, unix=True)
