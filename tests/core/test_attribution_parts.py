"""The parts of the attribution: priors, work by cell, service start, the census of who ran when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.scenario import PARAMETERS, SECOND, START, gpu

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, start_of
from jouled.core.attribution.census import Census, Look, Monotone
from jouled.core.attribution.decode import Decoding
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.idle import IdlePower
from jouled.core.attribution.load import Load, Row, union_ns
from jouled.core.attribution.prefill_stretches import Stretch, stretches_of
from jouled.core.attribution.priors import betas, sizes_from_name
from jouled.core.attribution.request import Request
from jouled.core.attribution.service_start import ServiceStart
from jouled.core.attribution.step_clock import StepClock
from jouled.core.attribution.work import Work
from jouled.model.engine import Engine, EngineSample
from jouled.model.requests import RequestEvent


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", (8e9, 8e9)),
        ("Qwen3-30B-A3B", (30e9, 3e9)),
        ("Mixtral-8x7B-v0.1", (56e9, 14e9)),
        ("Qwen2.5-0.5B", (0.5e9, 0.5e9)),
        ("smollm-135m", (135e6, 135e6)),
        ("gpt-oss-120b", (120e9, 120e9)),
        ("tiny", None),
        ("gemma-3n-e4b-it", None),
        ("model-2b4x", None),
    ],
)
def test_sizes_are_read_from_names(name, sizes):
    assert sizes_from_name(name) == sizes


def test_priors_say_where_they_come_from():
    assert betas(Engine(name="e", model="Llama-8B")).source == "name"
    assert betas(Engine(name="e", model="x")).source == "generic"
    told = betas(Engine(name="e", model="x", parameters=8e9, layers=32, hidden_size=4096, kv_bytes_per_token=131072.0))
    assert told.source == "configuration"
    named = betas(Engine(name="e", model="Llama-8B"))
    assert named.step == pytest.approx(told.step)
    assert named.kv == pytest.approx(told.kv, rel=0.3)


def test_quantised_weights_cost_less_to_read():
    full, quarter = betas(Engine(name="e", model="L-8B")), betas(Engine(name="e", model="L-8B-AWQ"))
    assert quarter.step == pytest.approx(full.step / 4)
    assert quarter.prefill == full.prefill


def test_a_mixture_reads_all_weights_and_computes_with_the_active_ones():
    moe, dense = betas(Engine(name="e", model="Q-30B-A3B")), betas(Engine(name="e", model="Q-30B"))
    assert moe.step == dense.step
    assert moe.prefill == pytest.approx(dense.prefill / 10)


works = st.builds(
    lambda s, p, d, n, c, g: Work(s, s + max(p, 1_000_000), s + max(p, 1_000_000) + d, n, c, n + c, g, s),
    st.integers(0, 3 * SECOND),
    st.integers(0, SECOND),
    st.integers(0, 3 * SECOND),
    st.integers(0, 5000),
    st.integers(0, 500),
    st.integers(0, 500),
)


EVENT = RequestEvent(
    engine="e", id="r", arrival_ns=0, first_token_ns=0, last_token_ns=0, prompt_tokens=0, generation_tokens=0
)


@settings(max_examples=100, deadline=None)
@given(st.lists(works, max_size=8))
def test_cells_sum_to_the_work_of_all_requests(requests):
    load = Load()
    for work in requests:
        load.insert(Request(EVENT, work, ()))
    rows = [load.sweep(cell) for cell in range(80)]
    marked = [Request(EVENT, work, ()) for work in requests]
    Decoding(0, rows).fill(marked)
    assert sum(row.resident for row in rows) == pytest.approx(
        sum((w.last_ns - w.start_ns) / SECOND for w in requests), abs=1e-9
    )
    assert sum(row.prefill for row in rows) == pytest.approx(sum(w.computed for w in requests), rel=1e-9, abs=1e-6)
    decoded = [(w, w.generated - 1) for w in requests if w.decode_rate]
    assert sum(row.decode for row in rows) == pytest.approx(sum(g for _, g in decoded), rel=1e-9, abs=1e-6)
    context = sum(g * (w.prompt + g / 2) for w, g in decoded)
    assert sum(row.kv for row in rows) == pytest.approx(context, rel=1e-7, abs=1e-3)
    assert load.residents == 0
    assert load.sweep(80).busy == 0.0
    for row in rows:
        assert 0.0 <= row.busy <= 1.0
        assert row.resident <= len(requests) * CELL_SECONDS + 1e-9


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)).map(lambda p: (min(p), max(p))), max_size=8))
def test_busy_time_is_the_union_of_intervals(intervals):
    assert union_ns(intervals) == len({t for begin, end in intervals for t in range(begin, end)})


def test_service_starts_when_the_one_before_got_its_first_token():
    starts = ServiceStart()
    starts.known(3 * SECOND)
    starts.known(5 * SECOND)
    assert starts.start_ns(SECOND, 5 * SECOND, 100) == 3 * SECOND
    assert starts.start_ns(4 * SECOND, 5 * SECOND, 100) == 4 * SECOND, "no earlier than it was scheduled"
    assert starts.start_ns(5 * SECOND, 5 * SECOND, 100) == 5 * SECOND - 1_000_000, "and 1 ms before its first token"


def test_known_prefill_rates_let_a_start_move_forward():
    starts = ServiceStart()
    for k in range(20):
        starts.observe(k * SECOND, k * SECOND + SECOND // 10, 1000)
    starts.known(100 * SECOND)
    assert starts.start_ns(90 * SECOND, 101 * SECOND, 1000) == 100 * SECOND
    assert starts.start_ns(90 * SECOND, 101 * SECOND, 20_000) == 99 * SECOND


def census() -> Census:
    return Census(wait_ns=15 * SECOND, horizon_min_ns=120 * SECOND, horizon_max_ns=1800 * SECOND)


def look(at: float, running: int | None, **counters: int) -> EngineSample:
    return EngineSample(engine="e", t_ns=START + round(at * SECOND), requests_running=running, **counters)


def test_cells_are_verified_when_gauge_and_events_agree():
    book = census()
    book.sample(look(5, 2))
    book.known(START + 2 * SECOND, START + 8 * SECOND, START + 8 * SECOND)
    assert book.verified_ns(START + 60 * SECOND, START) == 0
    book.known(START + 4 * SECOND, START + 30 * SECOND, START + 31 * SECOND)
    assert book.verified_ns(START + 19 * SECOND, START) == 0, "the look is not 15 s old"
    assert book.verified_ns(START + 20 * SECOND, START) == START + 5 * SECOND


def test_events_before_their_look_count_too():
    book = census()
    book.known(START + 4 * SECOND, START + 6 * SECOND, START + 6 * SECOND)
    book.sample(look(5, 1))
    assert book.verified_ns(START + 20 * SECOND, START) == START + 5 * SECOND


def test_a_look_that_saw_somebody_untold_holds_what_lies_behind_it():
    """Also where nobody is there any more: an abort is told by nobody, and the others are not told from it."""
    book, now = census(), START + 100 * SECOND
    for at, running in ((5, 0), (10, 1), (15, 0), (20, 0), (25, 0)):
        book.sample(look(at, running))
    assert book.verified_ns(now, START) == START + 5 * SECOND
    assert book.verified_ns(now, START + 10 * SECOND) == START + 25 * SECOND, "the horizon has passed it"
    book.known(START + 8 * SECOND, START + 12 * SECOND, START + 90 * SECOND)
    assert book.verified_ns(now, START) == START + 25 * SECOND


@pytest.mark.parametrize("running", [1, 2])
@pytest.mark.parametrize("told_first", [False, True])
def test_a_gauge_may_be_a_step_behind(running, told_first):
    """A request that ended 50 ms before the look may still be in the gauge, as that of one that began may not yet.

    Such a look holds nothing up, but it verifies nothing either: one not told of yet could stand in for them.
    """
    book, now = census(), START + 60 * SECOND
    ended = (START + 2 * SECOND, START + 5 * SECOND - 50_000_000, START + 5 * SECOND)
    began = (START + 5 * SECOND - 50_000_000, START + 8 * SECOND, START + 8 * SECOND)
    if told_first:
        book.known(*ended)
    book.sample(look(5, running))
    book.known(*began)
    if not told_first:
        book.known(*ended)
    assert book.verified_ns(now, START) == 0
    book.sample(look(7, 1))
    assert book.verified_ns(now, START) == START + 7 * SECOND
    book.sample(look(10, 1))
    assert book.verified_ns(now, START) == START + 7 * SECOND, "nobody came or went near this look"


def test_the_horizon_follows_the_longest_requests():
    book = census()
    book.began(START)
    assert book.horizon_ns(START) == 120 * SECOND
    for k in range(100):
        book.waited(START + k * SECOND, START + (k + 600) * SECOND)
    assert 700 * SECOND < book.horizon_ns(START + 1000 * SECOND) < 800 * SECOND
    assert book.horizon_ns(START + 1_000_000 * SECOND) <= 1800 * SECOND


def test_after_the_first_hour_short_requests_make_a_short_horizon():
    book = census()
    book.began(START)
    for k in range(5000):
        book.waited(START + k * SECOND, START + (k + 2) * SECOND)
    assert book.horizon_ns(START + 5000 * SECOND) == 15 * SECOND


def test_an_engine_counter_starts_over_with_its_process():
    counter = Monotone()
    assert [counter.take(raw) for raw in (100, 150, 20, None, 25)] == [0, 50, 20, 0, 5]
    assert counter.total == 75


def test_in_the_first_hour_cells_wait_for_who_may_be_in_flight_all_the_time():
    book = census()
    book.began(START)
    for at in range(0, 600, 5):
        book.sample(look(at, 1 if at >= 100 else 0))
    now = START + 600 * SECOND
    assert book.given_up_ns(now) == now - 120 * SECOND, "nobody told of was there for long"
    book.known(START + SECOND, START + 85 * SECOND, START + 85 * SECOND)
    book.waited(START + SECOND, START + 85 * SECOND)
    assert now - 380 * SECOND < book.given_up_ns(now) < now - 330 * SECOND, "four times as long as the longest told of"
    book.known(START + SECOND, START + 85 * SECOND, START + 299 * SECOND)
    book.waited(START + SECOND, START + 299 * SECOND)
    assert book.given_up_ns(now) == START + 95 * SECOND, "nobody was untold then; since then somebody always was"
    assert book.given_up_ns(now, starts_told=True) > START + 200 * SECOND
    for at in range(600, 1300, 5):
        book.sample(look(at, 1))
    assert book.given_up_ns(START + 1300 * SECOND) == START + 400 * SECOND, "fifteen minutes at the most"


def test_who_was_gone_at_a_later_look_is_not_waited_for_longer():
    """A client's abort, of which nobody tells: it was there at some looks, and then nobody was."""
    book = census()
    book.began(START)
    for at in range(0, 600, 5):
        book.sample(look(at, 1 if 100 <= at < 200 else 0))
    assert book.given_up_ns(START + 600 * SECOND) == START + 480 * SECOND


def test_without_a_gauge_the_horizon_alone_counts():
    book = census()
    book.began(START)
    assert book.given_up_ns(START + 600 * SECOND) == START + 480 * SECOND
    for at in range(0, 600, 5):
        book.sample(look(at, None))
    assert book.given_up_ns(START + 600 * SECOND) == START + 480 * SECOND


def test_tokens_of_a_request_inserted_late_are_counted_back_from_its_end():
    """It made 800 of its 1000 tokens in its first half, alone; an even rate would leave 500 to the open cells."""
    book = EngineBook(Engine(name="e", model="tiny-8B", devices=("gpu0",)), PARAMETERS)
    for at in range(0, 205, 5):
        book.sample(look(at, 1, steps=8 * min(at, 100) + 2 * max(at - 100, 0)))
    work = Work(START, START + 1, START + 200 * SECOND, 10, 0, 10, 1001, from_ns=START + 100 * SECOND)
    assert book._decoded_before(work) is None, "what a step gives is not known yet"
    book._clock.observe_tokens(1.0)
    assert book._decoded_before(work) == pytest.approx(800.0)


def test_counters_are_linear_between_looks_and_absent_outside():
    book = census()
    book.sample(look(0, 0, generation_tokens=1000))
    book.sample(look(10, 0, generation_tokens=1500))
    assert book.counter_at("generation", START + 5 * SECOND) == 250
    assert book.counter_at("generation", START - SECOND) is None
    assert book.counter_at("generation", START + 11 * SECOND) is None
    assert book.counter_at("steps", START + 5 * SECOND) is None


def test_idle_power_is_configured_learned_or_estimated():
    assert IdlePower(gpu(0, idle_watts=90.0)).per_cell_uj() == pytest.approx(9e6)
    power = IdlePower(gpu(0, idle_watts=None))
    assert (power.source, power.per_cell_uj()) == ("estimated", pytest.approx(0.15 * 70e6))
    for _ in range(20):
        power.observe(5_000_000, idle=False)
    assert power.per_cell_uj() == pytest.approx(0.8 * 5e6), "never above what it draws when it draws least"
    for microjoules in (6_000_000, 6_100_000, 6_200_000) * 4:
        power.observe(microjoules, idle=True)
    assert (power.source, power.per_cell_uj()) == ("learned", pytest.approx(6.1e6))


assert CELL_NS == SECOND // 10


def counted_look(t_ns: int, steps: float) -> Look:
    found = Look(t_ns, None, None)
    found.steps = round(steps)
    return found


def busy_rows(count: int) -> list[Row]:
    rows = [Row() for _ in range(count)]
    for row in rows:
        row.busy = 1.0
    return rows


def prompt(from_ns: int, until_ns: int, tokens: int) -> Request:
    """A request of which only the prefill matters."""
    return Request(EVENT, Work(from_ns, until_ns, until_ns, tokens, 0, tokens, 1, from_ns), ())


def test_a_prompt_is_one_step_and_the_rest_is_counted_beside_it():
    """100 steps a second; in the interval 2 prompts take 4 cells each, a step each."""
    rows, clock = busy_rows(100), StepClock()
    prompts = [prompt(start_of(60), start_of(64), 500), prompt(start_of(70), start_of(74), 1500)]
    looks = [counted_look(start_of(0), 0), counted_look(start_of(50), 500), counted_look(start_of(100), 922)]
    assert clock.set(0, rows, looks, prompts)
    assert [rows[cell].steps for cell in (10, 55, 61, 66, 73)] == pytest.approx([10.0, 10.0, 0.25, 10.0, 0.25])
    assert sum(row.steps for row in rows) == pytest.approx(922)


def test_how_many_tokens_a_step_takes_shows_in_the_counter():
    """Prompts of 8000 tokens, half of the intervals with one for a second, in steps of 1024 tokens."""
    clock, prompts, looks, steps = StepClock(), [], [counted_look(0, 0)], 0.0
    for interval in range(12):
        if interval % 2:
            begin = start_of(50 * interval + 20)
            prompts.append(prompt(begin, begin + 10 * CELL_NS, 8000))
            steps += 40 * 10 + 8000 / 1024
        else:
            steps += 50 * 10
        looks.append(counted_look(start_of(50 * (interval + 1)), steps))
    rows = busy_rows(600)
    assert clock.set(0, rows, looks, prompts)
    assert clock.chunk_tokens == 1024.0
    assert clock.plain_rate == pytest.approx(100.0, rel=1e-3)
    assert rows[75].steps == pytest.approx(0.78125)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 30), st.integers(1, 40_000)), max_size=12),
    st.lists(st.integers(0, 3000), min_size=2, max_size=2),
)
def test_steps_add_up_to_the_counted_whatever_the_prompts(spans, counts):
    rows, clock = busy_rows(100), StepClock()
    prompts = [prompt(start_of(cell) + 7, min(start_of(cell + length), start_of(100)), n) for cell, length, n in spans]
    looks = [counted_look(0, 0), counted_look(start_of(50), counts[0]), counted_look(start_of(100), sum(counts))]
    assert clock.set(0, rows, looks, prompts)
    assert sum(row.steps for row in rows[:50]) == pytest.approx(counts[0])
    assert sum(row.steps for row in rows[50:]) == pytest.approx(counts[1])
    assert all(row.steps >= 0.0 and row.pace > 0.0 for row in rows)


def test_an_interval_of_impossible_counts_keeps_the_usual_proportions():
    """After minutes at 100 steps a second, a prompt of one step: of 5 counted ones the prompt has its small part."""
    rows, clock = busy_rows(300), StepClock()
    looks = [counted_look(start_of(50 * k), 500 * k) for k in range(6)]
    looks.append(counted_look(start_of(300), 2505))
    assert clock.set(0, rows, looks, [prompt(start_of(250), start_of(260), 100)])
    assert sum(row.steps for row in rows[250:]) == pytest.approx(5.0)
    assert sum(row.steps for row in rows[250:260]) < 0.1


def test_prompts_computed_together_are_one_stretch():
    requests = [prompt(100_000_000, 300_000_000, 400), prompt(200_000_000, 300_000_500, 100)]  # half a µs apart
    found = stretches_of(requests, 0, SECOND)
    assert found == [
        Stretch(100_000_000, 200_000_000, 200.0),
        Stretch(200_000_000, 300_000_000, pytest.approx(300.0, rel=1e-5)),
    ]
    assert stretches_of(requests, SECOND, 2 * SECOND) == []
    assert [s.steps(128.0) for s in found] == [pytest.approx(200 / 128), pytest.approx(300 / 128, rel=1e-5)]


def test_the_step_clock_counts_each_interval_as_the_engine_did():
    rows = busy_rows(100)
    clock = StepClock()
    assert clock.set(
        0,
        rows,
        [
            counted_look(start_of(0), 0),
            counted_look(start_of(50) + CELL_NS // 2, 505),
            counted_look(start_of(101), 1010),
        ],
    )
    assert rows[10].steps == pytest.approx(10.0)
    assert rows[80].steps == pytest.approx(10.0)
    assert sum(row.steps for row in rows) == pytest.approx(1000.0)


def test_without_close_looks_there_is_no_step_clock():
    assert not StepClock().set(0, busy_rows(100), [])
    assert not StepClock().set(0, busy_rows(200), [counted_look(start_of(0), 0), counted_look(start_of(200), 2000)])


def test_in_the_first_range_a_step_gives_what_it_gave_those_who_are_through():
    """Steps are 10 a cell, then 30. One makes 100 tokens in the range; who goes on beyond it makes as many a step."""
    rows = busy_rows(20)
    for index, row in enumerate(rows):
        row.pace = 100.0 if index < 10 else 300.0
    through = Request(EVENT, Work(0, 0, start_of(10), 10, 0, 10, 101, 0), ())
    beyond = Request(EVENT, Work(0, start_of(10), start_of(40), 10, 0, 10, 901, 0), ())
    Decoding(0, rows).fill([through, beyond], counted=True, tokens_per_step=None)
    assert (through.decoded, beyond.decoded) == (pytest.approx(100.0), pytest.approx(300.0))
    assert rows[15].decode == pytest.approx(30.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(works, min_size=1, max_size=8), st.lists(st.floats(0.1, 100.0), min_size=80, max_size=80))
def test_decode_in_step_time_makes_the_same_tokens(requests, paces):
    load = Load()
    for work in requests:
        load.insert(Request(EVENT, work, ()))
    rows = [load.sweep(cell) for cell in range(80)]
    for row, pace in zip(rows, paces, strict=True):
        row.pace = pace
    Decoding(0, rows).fill([Request(EVENT, work, ()) for work in requests])
    assert sum(row.decode for row in rows) == pytest.approx(
        sum(w.generated - 1 for w in requests if w.decode_rate), rel=1e-9, abs=1e-6
    )
    assert all(row.decode >= 0.0 and row.kv >= 0.0 for row in rows)


def test_a_request_decodes_where_the_engine_steps():
    load = Load()
    work = Work(0, SECOND, 3 * SECOND, 100, 0, 100, 21, 0)
    load.insert(Request(EVENT, work, ()))
    rows = [load.sweep(cell) for cell in range(40)]
    for row in rows[20:]:
        row.pace = 3.0
    request = Request(EVENT, work, ())
    Decoding(0, rows).fill([request])
    assert sum(row.decode for row in rows[10:20]) == pytest.approx(5.0)
    assert sum(row.decode for row in rows[20:30]) == pytest.approx(15.0)
    assert rows[10].kv == pytest.approx(0.5 * (100 + 0.25)), "the context grows by a token each"
    assert sum(row.kv for row in rows) == pytest.approx(20 * (100 + 10))
