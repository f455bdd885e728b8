"""From a commit to the sinks and back: places, moments, what waits, and the end."""

import asyncio
from typing import Annotated, ClassVar

import pytest
from msgspec import Meta
from msgspec.structs import replace
from tests.support.snapshots import NOW_NS, receipt, snapshot

from jouled.api import Delivery, SinkSettings
from jouled.app.runtime import sinks as sinks_module
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.sinks import Sinks
from jouled.model.errors import ConfigurationError, SinkError
from jouled.outputs.store import NO_PROGRESS, Store

SECOND_NS = 1_000_000_000


class Settings(SinkSettings, kw_only=True):
    kinds: Annotated[tuple[str, ...], Meta(description="Streams.")] = ("points", "receipts")


class Stub:
    """A sink that remembers what it took; `down` for a while if told so."""

    name: ClassVar[str] = "stub"
    settings_type: ClassVar[type[Settings]] = Settings

    def __init__(self) -> None:
        self.moments, self.finals = [], []
        self.down = self.closed = False
        self.most = {}

    def open(self, settings, node):
        self.node = node
        self.most = dict.fromkeys(settings.kinds, 10)
        return self

    async def points(self, moments):
        return self._take(self.moments, moments)

    async def receipts(self, receipts):
        return self._take(self.finals, receipts)

    def _take(self, had, records):
        if self.down:
            raise SinkError("unreachable", "nobody listens")
        had += records
        return Delivery(len(records))

    async def close(self):
        self.closed = True


class Node:
    """The part of the daemon around the sinks: a store, commits at given seconds."""

    def __init__(self, folder, *stubs: Stub, own: OwnCounts | None = None, resend_seconds: float = 0.0) -> None:
        self.store = Store(folder)
        self.own = own or OwnCounts.empty(NOW_NS - 100 * SECOND_NS)
        settings = Settings(resend_seconds=resend_seconds)
        configured = {f"stub{k}" if k else "stub": (stub, settings) for k, stub in enumerate(stubs)}
        self.sinks = Sinks(configured, self.store, self.own, node="n1", interval_seconds=10.0, wall_ns=lambda: NOW_NS)

    async def commit(self, seconds: float, *receipts, fails: bool = False):
        shown = replace(snapshot(), t_ns=NOW_NS + round(seconds * SECOND_NS), wall_minus_core_ns=0)
        shown = self.sinks.added_to(self.own.added_to(shown))
        outgoing = self.sinks.outgoing(shown)
        if not fails:
            await self.store.commit(b"books", receipts, shown.t_ns, NO_PROGRESS, outgoing)
            self.sinks.committed(outgoing)
        return shown

    async def carry(self):
        for runner in self.sinks.runners:
            await runner.drain()


async def test_moments_are_taken_every_interval_and_receipts_with_every_commit(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub)
    for second in range(25):
        await node.commit(second, receipt(second))
    await node.carry()
    assert [(moment.t_ns - NOW_NS) // SECOND_NS for moment in stub.moments] == [0, 10, 20]
    assert [final.receipt for final in stub.finals] == [receipt(second) for second in range(25)]
    moment = stub.moments[0]
    assert (moment.node, moment.since_ns) == (snapshot().node, NOW_NS - 100 * SECOND_NS)
    energies = next(family for family in moment.families if family.name == "jouled_device_energy_joules_total")
    told = snapshot().counters["device_energy_joules_total"]
    assert energies.values == {labels: microjoules / 1e6 for labels, microjoules in told.items()}
    node.store.close()


async def test_what_a_sink_has_is_kept_with_the_books_that_count_it(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub)
    await node.commit(0, receipt(1), receipt(2))
    await node.carry()
    shown = await node.commit(1)
    assert shown.counters["sink_records_total"] == {
        ("stub", "points", "accepted"): 1,
        ("stub", "receipts", "accepted"): 2,
    }
    assert shown.gauges["sink_last_success_timestamp_seconds"] == {("stub",): NOW_NS / SECOND_NS}
    node.store.close()
    again = Node(tmp_path, stub, own=node.own)
    await again.carry()
    assert (len(stub.moments), len(stub.finals)) == (1, 2), "after a restart nothing is sent twice"
    again.store.close()


async def test_a_restart_sends_again_what_the_receiver_may_have_forgotten(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub, resend_seconds=60.0)
    await node.commit(0, receipt(1), receipt(2))
    await node.carry()
    await node.commit(1)
    node.store.close()
    again = Node(tmp_path, stub, own=node.own, resend_seconds=60.0)
    await again.carry()
    shown = await again.commit(2)
    assert [final.number for final in stub.finals] == [1, 2, 1, 2]
    assert shown.counters["sink_records_total"] == {
        ("stub", "points", "accepted"): 1,
        ("stub", "points", "repeated"): 1,
        ("stub", "receipts", "accepted"): 2,
        ("stub", "receipts", "repeated"): 2,
    }
    again.store.close()


async def test_what_one_stream_sees_of_a_death_is_known_to_the_other(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub, resend_seconds=60.0)
    await node.commit(0, receipt(1))
    await node.carry()
    stub.down = True
    await node.commit(10)
    await node.carry()
    stub.down = False
    await node.carry()
    assert [final.number for final in stub.finals] == [1, 1], "no receipt was sent while it was down"
    node.store.close()


async def test_a_sink_that_is_down_delays_no_other_and_gets_all_later(tmp_path):
    down, up = Stub(), Stub()
    down.down = True
    node = Node(tmp_path, down, up)
    for second in range(0, 50, 10):
        await node.commit(second, receipt(second))
        await node.carry()
    shown = await node.commit(50)
    assert len(up.moments) == len(up.finals) == 5
    assert shown.gauges["sink_up"] == {("stub",): 0.0, ("stub1",): 1.0}
    assert shown.gauges["sink_oldest_pending_timestamp_seconds"][("stub",)] == receipt(0).last_token_ns / SECOND_NS
    assert shown.counters["sink_failures_total"][("stub", "unreachable")] == 10
    down.down = False
    await node.carry()
    assert [moment.number for moment in down.moments] == [1, 2, 3, 4, 5, 6]
    assert [final.number for final in down.finals] == [1, 2, 3, 4, 5]
    node.store.close()


async def test_moments_wait_for_a_store_that_fails_and_excess_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks_module, "MOST_HELD_MOMENTS", 3)
    stub = Stub()
    node = Node(tmp_path, stub)
    for second in range(0, 50, 10):
        await node.commit(second, fails=True)
    await node.commit(55)
    await node.carry()
    assert [(moment.t_ns - NOW_NS) // SECOND_NS for moment in stub.moments] == [30, 40, 55]
    assert (await node.commit(56)).counters["spool_dropped_total"] == {("stub", "points", "store_failing"): 3}
    node.store.close()


async def test_a_wall_clock_that_steps_back_does_not_stop_the_moments(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub)
    for second in (1000, 1010, 3, 4, 13):
        await node.commit(second)
    await node.carry()
    assert [(moment.t_ns - NOW_NS) // SECOND_NS for moment in stub.moments] == [1000, 1010, 3, 13]
    node.store.close()


async def test_a_damaged_moment_is_passed_over_and_counted(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub)
    await node.commit(0)
    await node.commit(10)
    node.store._writer.execute("UPDATE points SET points = x'00' WHERE number = 1")
    await node.carry()
    assert [moment.number for moment in stub.moments] == [2]
    assert node.own.sinks["stub"].dropped == {"points": {"damaged": 1}}
    node.store.close()


async def test_the_end_sends_what_waits_and_keeps_how_far_that_came(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub)
    await node.commit(0, receipt(1))
    await node.sinks.drain(5.0)
    await node.sinks.close()
    assert (len(stub.moments), len(stub.finals), stub.closed) == (1, 1, True)
    shown = await node.commit(1)
    assert shown.counters["sink_records_total"][("stub", "receipts", "accepted")] == 1
    node.store.close()
    store = Store(tmp_path)
    assert store.subscribe([("stub", "points"), ("stub", "receipts")]) == {
        ("stub", "points"): 1,
        ("stub", "receipts"): 1,
    }
    store.close()


async def test_the_end_waits_for_no_sink_that_hangs(tmp_path):
    stub = Stub()

    async def hang(records):
        await asyncio.Event().wait()

    stub.points = hang
    node = Node(tmp_path, stub)
    await node.commit(0)
    async with asyncio.timeout(5):
        await node.sinks.drain(0.01)
        await node.sinks.close()
    assert stub.closed
    node.store.close()


async def test_without_sinks_nothing_is_written_for_them(tmp_path):
    node = Node(tmp_path)
    shown = await node.commit(0, receipt(1))
    assert (await node.store.points_after(0, 10, lambda *row: row)).records == []
    assert "spool_bytes" not in shown.gauges
    node.store.close()


async def test_what_waits_for_a_sink_that_is_configured_no_more_is_kept_until_the_daemon_works(tmp_path):
    """A configuration that does not start is followed by the old one: nothing may have changed meanwhile."""
    stub = Stub()
    stub.down = True
    node = Node(tmp_path, stub)
    for second in (0, 10, 20):
        await node.commit(second)
    await node.carry()
    await node.commit(21)
    failures = node.own.sinks["stub"].failures
    node.store.close()
    other = Node(tmp_path, own=node.own)  # without the sink; it commits and does not get to work
    await other.commit(22)
    other.store.close()
    stub.down = False
    again = Node(tmp_path, stub, own=other.own)
    await again.carry()
    assert [moment.number for moment in stub.moments] == [1, 2, 3]
    assert again.own.sinks["stub"].failures == failures == {"unreachable": 1}
    again.store.close()
    last = Node(tmp_path, own=again.own)
    await last.sinks.settle()
    assert last.own.sinks == {}
    await last.commit(23)
    assert last.store.waiting.oldest_ns == {}
    last.store.close()


async def test_a_damaged_receipt_stops_nobody_and_is_counted_once(tmp_path):
    stub = Stub()
    node = Node(tmp_path, stub)
    await node.commit(0, receipt(1), receipt(2), receipt(3))
    node.store._writer.execute("UPDATE receipts SET receipt = x'c1' WHERE number = 2")
    stub.down = True
    for _ in range(3):
        await node.carry()
    stub.down = False
    await node.carry()
    assert [final.number for final in stub.finals] == [1, 3]
    assert node.own.sinks["stub"].dropped == {"receipts": {"damaged": 1}}
    node.store.close()


async def test_a_sink_that_lacks_what_it_promises_is_refused(tmp_path):
    stub = Stub()
    stub.open = lambda settings, node: type("Bare", (), {"most": {"points": 1}})()
    with pytest.raises(ConfigurationError, match=r"sink stub: `stub` says that it takes points"):
        Node(tmp_path, stub)
