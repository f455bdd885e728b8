"""A core that was cut off between two commits goes on as if nothing had happened."""

from collections import OrderedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, assert_balanced, gpu, request, request_sets, when

from jouled.core.books import Books
from jouled.core.continuity import checkpoint, resume
from jouled.core.identity import Waiting
from jouled.core.journal import Journal
from jouled.core.pipeline import Pipeline
from jouled.core.state import StateError, freeze, thaw
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import CounterSemantics, Engine, EngineSample, LatencyHistogram
from jouled.model.parameters import Parameters
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart

VERSION = "1"


def stored(books: Books) -> Books:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(books), type=Books)


class Daemon:
    """A core with a journal: what is saved of it at each commit, and how it comes back from that."""

    def __init__(self, every_checkpoint: int = 10, parameters: Parameters = PARAMETERS) -> None:
        self.parameters = parameters
        self.pipeline = Pipeline(parameters)
        self.every = every_checkpoint
        self.journal = Journal()
        self.rows: list[bytes] = []
        self.state = b""
        self.committed = Books()
        self.receipts: list[Receipt] = []
        self.waiting: list[Receipt] = []
        self.commits = 0

    def feed(self, item) -> str:
        reason = self.pipeline.feed(item)
        self.journal.fed(item, reason)
        return reason

    def advance(self, now_ns: int) -> None:
        self.waiting += self.pipeline.advance(now_ns)
        self.journal.advanced(now_ns)

    def commit(self) -> None:
        self.committed = stored(self.pipeline.books())
        self.receipts += self.waiting
        self.waiting = []
        if self.commits % self.every == 0:
            self.checkpoint()
        else:
            self.rows.append(self.journal.take())
        self.commits += 1

    def checkpoint(self) -> None:
        self.state = b"".join(checkpoint(self.pipeline, VERSION).chunks())
        self.rows = []
        self.journal.clear()

    def die_and_return(self) -> None:
        self.pipeline = resume(
            self.state, self.rows, version=VERSION, parameters=self.parameters, committed=self.committed
        )
        self.pipeline.remember(self.receipts)
        self.journal.clear()
        self.waiting = []


def run(inputs, cuts=(), *, every_checkpoint=10, parameters=PARAMETERS) -> tuple[dict[str, Receipt], Books]:
    """Drive a core, a commit each second; at each cut (a commit's number) it is replaced by what was saved."""
    daemon = Daemon(every_checkpoint, parameters)
    now = last = 0
    for item in inputs:
        reason = daemon.feed(item)
        now = now if reason else max(now, when(item))
        if now - last >= SECOND:
            last = now
            daemon.advance(now)
            daemon.commit()
            if daemon.commits in cuts:
                daemon.die_and_return()
    daemon.receipts += daemon.pipeline.finish()
    assert_balanced(daemon.pipeline.snapshot(now))
    ids = [(receipt.id, receipt.arrival_ns) for receipt in daemon.receipts]
    assert len(set(ids)) == len(ids), "a receipt was issued twice"
    return {receipt.id: receipt for receipt in daemon.receipts}, daemon.pipeline.books()


@settings(max_examples=25, deadline=None)
@given(request_sets(), st.sets(st.integers(1, 39), max_size=4), st.sampled_from([0.1, 0.37, 1.0]), st.booleans())
def test_a_core_that_is_cut_at_any_commit_gives_the_same(requests, cuts, interval, samples):
    node = Node(requests, interval=interval, samples=samples)
    inputs = node.inputs()
    doubled = [item for item in inputs for _ in range(1 + isinstance(item, RequestEvent))]
    assert run(doubled, cuts) == run(doubled)


@settings(max_examples=15, deadline=None)
@given(request_sets(8), st.sets(st.integers(1, 39), max_size=4), st.integers(1, 6), st.randoms(use_true_random=False))
def test_requests_told_twice_live_on_whichever_telling_a_commit_came_between(requests, cuts, every, rng):
    tellings = []
    for event in requests:
        gateway = change(event, scheduled_ns=None, tenant="t", arrival_ns=event.arrival_ns - SECOND // 500)
        engine = change(event, id=f"chatcmpl-{event.id}", cached_prompt_tokens=event.prompt_tokens // 2)
        seen_ns = event.last_token_ns + SECOND // 100
        for telling in rng.sample([gateway, engine], 2):
            seen_ns += round(rng.choice([0.01, 0.5, 3.0, 8.0]) * SECOND)
            tellings.append(change(telling, seen_ns=seen_ns))
    node = Node(requests, seconds=50.0, interval=0.37, samples=True)
    timed = sorted([*node.readings(), *node.engine_samples(), *tellings], key=when)
    inputs = [*node.devices(), node.engine, *timed]
    whole = run(inputs)
    assert len(whole[0]) == len(requests)
    assert run(inputs, cuts, every_checkpoint=every) == whole


def test_long_requests_and_starts_live_on():
    long = [request(f"l{i}", 2.0 * i, decode=70.0, generated=3000) for i in range(4)]
    node = Node((*long, *(request(f"s{i}", 0.9 * i) for i in range(150))), seconds=170.0, samples=True)
    starts = [RequestStart(engine="e", id=r.id, arrival_ns=r.arrival_ns, seen_ns=r.arrival_ns) for r in long]
    head, rest = node.inputs()[:2], node.inputs()[2:]
    inputs = [*head, *sorted([*rest, *starts], key=lambda item: getattr(item, "seen_ns", 0) or when(item))]
    whole = run(inputs)
    assert len(whole[0]) == 154
    assert run(inputs, {7, 31, 64, 65, 99, 140}, every_checkpoint=30) == whole


UNTAUGHT = change(PARAMETERS, learn_ratios=False)
"""Who was away has been taught less of the ratios: what is compared here is not that."""


def away(inputs, gone: float, back: float, *, first_back=None) -> tuple[Daemon, dict[str, Receipt]]:
    """A daemon that is killed and sees nothing from `gone` to `back`, seconds after the start."""
    daemon = Daemon(parameters=UNTAUGHT)
    now = last = 0
    returned = False
    for item in inputs:
        at = when(item)
        if START + gone * SECOND < at < START + back * SECOND:
            continue
        if not returned and at >= START + back * SECOND:
            returned = True
            daemon.die_and_return()
            daemon.pipeline.come_back(START + round(back * SECOND))
            if first_back is not None:
                first_back(daemon.pipeline)
            for named in inputs:
                if isinstance(named, Device | Engine):
                    daemon.feed(named)
        daemon.feed(item)
        now = max(now, at)
        if now - last >= SECOND:
            last = now
            daemon.advance(now)
            daemon.commit()
    daemon.receipts += daemon.pipeline.finish()
    assert_balanced(daemon.pipeline.snapshot(now))
    return daemon, {receipt.id: receipt for receipt in daemon.receipts}


CROSSING = (request("before", 2.0), request("across", 35.0, decode=20.0, generated=600), request("after", 55.0))


def test_energy_used_while_away_is_downtime_and_no_requests():
    node = Node(CROSSING, seconds=100.0)
    daemon, receipts = away(node.inputs(), 40.0, 46.0)
    total = daemon.pipeline.snapshot(START + 100 * SECOND).total
    gap_uj = node.joules_at(START + 46 * SECOND) - node.joules_at(START + 40 * SECOND)
    assert total.downtime_uj == pytest.approx(gap_uj, rel=0.02)
    assert total.measured_uj == node.joules_at(START + 100 * SECOND)
    assert total.unattributed_uj < 10, "what was open found its owners"
    plain, _ = run(node.inputs(), parameters=UNTAUGHT)
    share = 1 - 6.0 / 20.2
    assert receipts["across"].joules == pytest.approx(plain["across"].joules * share, rel=0.05)
    assert receipts["before"].joules == pytest.approx(plain["before"].joules, rel=1e-3)
    assert receipts["across"].validity == "meter_gap,interrupted"
    assert receipts["after"].validity == "ok"
    assert receipts["after"].joules == pytest.approx(plain["after"].joules, rel=1e-3)


def test_a_gap_teaches_nothing_of_idle_power():
    node = Node((request("late", 174.0),), seconds=180.0)
    learned = [change(item, idle_watts=None) if isinstance(item, Device) else item for item in node.inputs()]
    _, receipts = away(learned, 20.0, 172.0)
    plain, _ = run(learned, parameters=UNTAUGHT)
    assert receipts["late"].method["idle_power"] == plain["late"].method["idle_power"] == "learned"
    assert receipts["late"].joules_resident == pytest.approx(plain["late"].joules_resident, rel=0.01)


def test_a_reboot_makes_a_gap_and_no_downtime():
    def booted(pipeline: Pipeline) -> None:
        pipeline.hardware_restarted()

    daemon, receipts = away(Node(CROSSING, seconds=100.0).inputs(), 40.0, 46.0, first_back=booted)
    snapshot = daemon.pipeline.snapshot(START + 100 * SECOND)
    assert snapshot.total.downtime_uj == 0
    assert snapshot.counters["source_gap_seconds_total"]["test", "downtime"] == pytest.approx(6.0, abs=0.3)
    assert len(receipts) == 3


def test_a_power_gauge_has_a_gap():
    node = Node(CROSSING, seconds=100.0)
    watts = [PowerReading("gpu0", START + k * SECOND // 10, 200.0) for k in range(1001)]
    items = [*node.devices(), node.engine, *sorted([*watts, *CROSSING], key=when)]
    daemon, _ = away(items, 40.0, 46.0)
    snapshot = daemon.pipeline.snapshot(START + 100 * SECOND)
    assert snapshot.total.measured_uj == pytest.approx(94 * 200e6, rel=0.01)
    assert snapshot.total.downtime_uj == 0
    assert snapshot.counters["source_gap_seconds_total"]["test", "downtime"] == pytest.approx(6.0, abs=0.3)


def test_what_is_not_named_again_is_gone():
    daemon = Daemon()
    for item in (gpu(0), gpu(1), Node(()).engine, *(EnergyReading(f"gpu{i}", START + 1, 5) for i in range(2))):
        daemon.feed(item)
    daemon.advance(START + SECOND)
    daemon.commit()
    daemon.die_and_return()
    daemon.pipeline.come_back(START + 10 * SECOND)
    daemon.feed(gpu(1))
    daemon.feed(EnergyReading("gpu1", START + 11 * SECOND, 10))
    daemon.advance(START + 69 * SECOND)
    assert [view.engine.name for view in daemon.pipeline.snapshot(START).engines] == ["e"]
    daemon.advance(START + 71 * SECOND)
    snapshot = daemon.pipeline.snapshot(START + 71 * SECOND)
    assert not snapshot.engines
    assert [view.device.name for view in snapshot.devices] == ["gpu1"]
    daemon.feed(gpu(0))
    daemon.feed(EnergyReading("gpu0", START + 80 * SECOND, 50_000_000))
    daemon.advance(START + 81 * SECOND)
    assert_balanced(daemon.pipeline.snapshot(START + 81 * SECOND))


def test_an_engine_that_is_gone_takes_what_its_histograms_said_along():
    daemon = Daemon()
    engine = Node(()).engine
    daemon.feed(engine)
    for second in range(2):
        histogram = LatencyHistogram((0.25, 1.0), (0, second, second))
        daemon.feed(
            EngineSample(engine="e", t_ns=START + second * SECOND, latencies={"ttft": histogram, "tpot": histogram})
        )
    daemon.advance(START + 2 * SECOND)
    assert "slo_attainment_lower_bound_ratio" in daemon.pipeline.snapshot(START + 2 * SECOND).gauges
    daemon.commit()
    daemon.die_and_return()
    daemon.pipeline.come_back(START + 10 * SECOND)
    daemon.advance(START + 71 * SECOND)
    assert "slo_attainment_lower_bound_ratio" not in daemon.pipeline.snapshot(START + 71 * SECOND).gauges


def test_what_the_page_told_before_holds_until_it_is_read_again():
    daemon = Daemon()
    told = change(Node(()).engine, version="1.2")
    daemon.feed(told)
    daemon.commit()
    daemon.die_and_return()
    daemon.pipeline.come_back(START)
    daemon.feed(change(told, model="", version=""))
    [view] = daemon.pipeline.snapshot(START).engines
    assert view.engine == told
    daemon.feed(change(told, model="", version=""))
    assert daemon.pipeline.snapshot(START).engines[0].engine.model == ""


def test_the_role_that_the_page_told_before_holds_until_it_is_read_again():
    told = change(Node(()).engine, role="prefill", counter_semantics=CounterSemantics(prompt="computed"))
    event = request("x", 2.0, decode=30.0, generated=1)
    node = Node((event,), seconds=200.0, engine=told)
    daemon = Daemon()
    daemon.feed(gpu())
    daemon.feed(told)
    for item in sorted([*node.readings()[:350], node.sample_at(START + SECOND), event], key=when):
        daemon.feed(item)
    daemon.advance(START + 35 * SECOND)
    daemon.commit()
    assert not daemon.receipts
    daemon.die_and_return()
    daemon.pipeline.come_back(START + 36 * SECOND)
    bare = Node(()).engine
    daemon.feed(gpu())
    daemon.feed(bare)
    for item in node.readings()[360:]:
        daemon.feed(item)
    daemon.advance(START + 199 * SECOND)
    daemon.commit()
    assert [receipt.role for receipt in daemon.receipts] == ["prefill"]
    assert not daemon.pipeline.snapshot(START).counters["request_tokens_total"]["e", "tiny-8B", "generation"]
    assert not daemon.feed(node.sample_at(START + 199 * SECOND))
    [view] = daemon.pipeline.snapshot(START).engines
    assert view.engine == bare, "the page was read, and nothing told of a role"


def saved() -> Daemon:
    daemon = Daemon()
    for item in Node(CROSSING).inputs():
        daemon.feed(item)
    daemon.advance(START + 40 * SECOND)
    daemon.commit()
    daemon.feed(EnergyReading("gpu0", START + 41 * SECOND, 10**10))
    daemon.advance(START + 41 * SECOND)
    daemon.commit()
    return daemon


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "2"}, "by jouled 1"),
        ({"parameters": change(PARAMETERS, wait_seconds=3.0)}, "another configuration"),
        ({"committed": Books()}, "committed books"),
        ({"journals": []}, "committed books"),
        ({"journals": [b"\x92\x01"]}, "inputs that cannot be taken"),
        ({"state": b""}, "damaged"),
        ({"state": b"\xdd\x00\x00\x00\x01\xc0"}, "damaged"),
    ],
)
def test_state_that_does_not_fit_is_refused(changes, reason):
    daemon = saved()
    good = {
        "state": daemon.state,
        "journals": daemon.rows,
        "version": VERSION,
        "parameters": PARAMETERS,
        "committed": daemon.committed,
    }
    assert isinstance(resume(**good), Pipeline)
    with pytest.raises(StateError, match=reason):
        resume(**(good | changes))


def test_every_flipped_byte_is_refused_or_harmless():
    daemon = saved()
    for position in range(0, len(daemon.state), 97):
        broken = bytearray(daemon.state)
        broken[position] ^= 0x41
        try:
            thaw(bytes(broken), VERSION)
        except StateError:
            continue


def test_a_class_with_another_attribute_is_refused(monkeypatch):
    state = saved().state

    def init(self, device):
        self.device, self.of_a_later_version = device, 1

    monkeypatch.setattr("jouled.core.ledger.meter.Meter.__init__", init)
    with pytest.raises(StateError, match="another Meter"):
        thaw(state, VERSION)


def test_what_is_not_of_the_core_is_not_saved():
    pipeline = Pipeline(PARAMETERS)
    pipeline.stray = Daemon()
    with pytest.raises(StateError, match="Daemon, which is none"):
        freeze(pipeline, VERSION)
    pipeline.stray = 1 << 70
    with pytest.raises(StateError, match="too large"):
        b"".join(freeze(pipeline, VERSION).chunks())


def test_shared_objects_stay_shared():
    daemon = saved()
    pipeline = thaw(daemon.state, VERSION)
    assert pipeline._account.counters is pipeline._live._counters
    [group] = pipeline._groups.living.values()
    assert group.meters[0] is pipeline._devices.meters["gpu0"]
    assert group.engines[0] is pipeline._groups.books["e"]
    assert pipeline._take[Device].__self__ is pipeline._devices
    assert pipeline._devices.meters["gpu0"].device.kind is DeviceKind.GPU


def test_ordered_dictionaries_come_back_in_order():
    waiting = Waiting()
    waiting._by_id = OrderedDict((f"r{k}", []) for k in (3, 1, 2))
    waiting._by_id.move_to_end("r3")
    again = thaw(b"".join(freeze(waiting, VERSION).chunks()), VERSION)
    assert list(again._by_id) == ["r1", "r2", "r3"]
    assert again._by_id.popitem(last=False) == ("r1", [])


def test_time_away_does_not_count_as_waiting_for_events():
    """A request that was there before ten minutes away and is told of a minute after them keeps its joules."""
    told = request("across", 35.0, decode=603.0, generated=600)
    late = change(told, seen_ns=told.last_token_ns + 40 * SECOND)
    node = Node((told,), seconds=900.0, interval=1.0)
    inputs = sorted([*node.readings(), late], key=when)
    daemon, receipts = away([*node.devices(), node.engine, *inputs], 40.0, 640.0 - 4.0)
    assert "late_events_total" not in daemon.pipeline.snapshot(START).counters
    assert receipts["across"].validity == "meter_gap,interrupted"
    assert receipts["across"].joules == pytest.approx((100.0 + 80.0) * (5.0 + 2.2), rel=0.1)
