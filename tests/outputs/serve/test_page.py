"""The page in a real browser."""

import msgspec
import pytest
from playwright.async_api import Page, async_playwright
from tests.support.snapshots import receipt, snapshot
from tests.support.tools import tool

from jouled.model.snapshot import Snapshot

GRADED = {"requests": 1234, "wmape_percent": 3.25, "attributed_ratio": 0.9712, "unattributed_uj": 4_000_000}

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def page():
    """A page of a headless browser; the test fails if it logs an error or asks another host."""
    faults: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=str(tool("chromium")), args=QUIET)
        opened = await browser.new_page(viewport={"width": 1280, "height": 900})
        opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("request", lambda asked: None if "//127.0.0.1:" in asked.url else faults.append(asked.url))
        yield opened
        await browser.close()
    assert faults == []


async def section(page: Page, name: str) -> str:
    return " ".join((await page.locator(f"#{name}").inner_text()).split())


async def test_the_page_shows_the_figures_of_the_snapshot(serve, page):
    served = await serve(extra=lambda: {"graded": GRADED})
    await page.goto(served.url("/"))
    await page.locator("#tiles .value").first.wait_for()

    tiles = await section(page, "tiles")
    watts = sum(view.watts for view in snapshot().devices if view.watts is not None)
    assert f"{watts:,.0f} W" in tiles
    assert "feed: 4,300 W" in tiles
    assert "outlets incomplete: 1 of 2" in tiles
    assert "0.94 tokens/J" in tiles
    assert "= 940 k tokens/s per MW" in tiles
    assert "90.0 % of requests within the SLO" in tiles
    assert "0.88 good tokens/J" in tiles
    assert "2,966 tokens/s" in tiles

    devices = await section(page, "devices")
    assert "gpu3 H200 SXM" in devices
    assert "447 W / 700" in devices
    assert "silent / 700" in devices
    filled = await page.locator("#devices .bar").first.evaluate("bar => bar.firstChild.offsetWidth / bar.offsetWidth")
    assert filled == pytest.approx(310 / 700, abs=0.02)

    books = await section(page, "books")
    assert "owners + open = measured, exact to the microjoule" in books
    assert "decode 64.5 %" in books
    widths = await page.locator("#books > .stack i").evaluate_all("parts => parts.map(part => part.offsetWidth)")
    assert max(widths) / sum(widths) == pytest.approx(0.645, abs=0.01)

    assert "vllm-8000" in await section(page, "engines")
    assert "62.0 %" in await section(page, "engines")
    assert "chat 90.0 %" in await section(page, "slos")
    requests = await section(page, "requests")
    assert "322 ± 9.5 J" in requests
    assert "missed agent" in requests
    assert await page.locator("#requests tbody tr").count() == 20
    sources = await section(page, "sources")
    assert "rapl denied energy_uj of package-0 may be read by root only sudo setfacl" in sources
    assert await section(page, "state") == "degraded"
    graded = await section(page, "graded")
    assert "wmape 3.25 %" in graded
    assert "attributed 97.12 %" in graded


async def test_the_page_follows_and_says_when_jouled_has_gone(serve, page):
    served = await serve()
    await page.goto(served.url("/"))
    await page.get_by_text("commit 7").wait_for()
    served.shown = msgspec.structs.replace(snapshot(8), recent=(receipt(77, joules=777.0),), sources=())
    await page.get_by_text("commit 8").wait_for()
    assert "777" in await section(page, "requests")
    assert await section(page, "state") == "live"


async def test_sinks_stand_beside_the_sources(serve, page):
    served = await serve()
    now_seconds = (served.shown.t_ns + served.shown.wall_minus_core_ns) / 1e9
    waiting = {"sink_up": {("influx",): 0.0, ("mqtt",): 1.0}}
    waiting["sink_oldest_pending_timestamp_seconds"] = {("influx",): now_seconds - 1450.0}
    served.shown = msgspec.structs.replace(served.shown, gauges={**served.shown.gauges, **waiting})
    await page.goto(served.url("/"))
    await page.get_by_text("sink influx").wait_for()
    sources = await section(page, "sources")
    assert "sink influx down 24 min behind" in sources
    assert "sink mqtt ok" in sources


async def test_an_empty_node_gives_a_page_without_figures(serve, page):
    served = await serve()
    served.shown = Snapshot()
    await page.goto(served.url("/"))
    await page.get_by_text("No request has finished yet.").wait_for()
    assert "No meter gives readings" in await section(page, "devices")
    assert "NaN" not in await page.locator("main").inner_text()
    assert "undefined" not in await page.locator("main").inner_text()


async def test_names_from_outside_are_text_and_never_markup(serve, page):
    served = await serve()
    hostile = '<img src="http://evil.example/x" onerror="document.title=1">'
    served.shown = msgspec.structs.replace(snapshot(), node=hostile, recent=(receipt(1, id=hostile, model=hostile),))
    await page.goto(served.url("/"))
    await page.get_by_text("commit 7").wait_for()
    assert await page.locator("img[onerror]").count() == 0
    assert hostile in await page.locator("#requests").inner_text()
