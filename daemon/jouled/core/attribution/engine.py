"""One engine replica's books: which requests it served, and what each closed cell gave them.

The order of things: events wait in `pending` until the cell of their service start is swept; `sweep` turns a range of
cells into rows of work; `assess` adds the work that counters saw and no event told of; `close` splits each cell's
energy over the channels and reads requests out as their last cell closes.
"""

from collections.abc import Callable, Iterator, Sequence

from jouled.core.attribution.by_request import ByRequest
from jouled.core.attribution.cell_rates import Split, cell_rates, expected_of, integrals, shared_time
from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, cell_of, start_of
from jouled.core.attribution.census import Census
from jouled.core.attribution.counters_only import CountedWork, Silence
from jouled.core.attribution.decode import SPECULATES, Decoding
from jouled.core.attribution.estimated_steps import EstimatedSteps
from jouled.core.attribution.in_flight import ABANDON_NS, Decode, InFlight
from jouled.core.attribution.learning import Learning
from jouled.core.attribution.load import Load, Lost, Row
from jouled.core.attribution.lost import LostWork
from jouled.core.attribution.means import Lately, Means
from jouled.core.attribution.pending import Pending, order_of
from jouled.core.attribution.priors import betas
from jouled.core.attribution.request import DECODE, DONE, IN_FLIGHT, ZERO, Integrals, Parts, Prefix, Request
from jouled.core.attribution.roles import Served, served
from jouled.core.attribution.service_start import KEEP_CELLS, SHORTEST_PREFILL_NS, ServiceStart
from jouled.core.attribution.step_clock import StepClock
from jouled.core.attribution.tellings import described, merged
from jouled.core.attribution.uncertainty import Doubt
from jouled.core.attribution.work import Work
from jouled.model.engine import Engine, EngineSample
from jouled.model.parameters import IdlePolicy, Parameters
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

GAPS_MAX = 1000
"""So many silences of meters are remembered, for requests that last through them."""
LEARNED = (
    "silence",
    "census",
    "lost",
    "in_flight",
    "_starts",
    "_clock",
    "_learning",
    "_estimated_steps",
    "lately",
)
"""What stays true of an engine when the devices around it are grouped anew."""


class EngineBook:
    """Attribution for one engine. Cells before `next_cell` are closed."""

    def __init__(self, engine: Engine, parameters: Parameters) -> None:
        self.engine = engine
        self.betas = self._prices = betas(engine)
        self._policy = parameters.idle_policy
        self.census = Census(
            wait_ns=nanoseconds(parameters.wait_seconds),
            horizon_min_ns=nanoseconds(parameters.horizon_min_seconds),
            horizon_max_ns=nanoseconds(parameters.horizon_max_seconds),
        )
        self.lost = LostWork(engine.counter_semantics)
        self._starts = ServiceStart()
        self._load = Load()
        self._pending = Pending()
        self.in_flight = InFlight()
        self.open: dict[Request, Request] = {}
        self.next_cell: int | None = None
        self._first_cell = 0
        self._prefix: Integrals = ZERO
        self._looked: set[int] = set()
        self._clock = StepClock()
        self._estimated_steps = EstimatedSteps()
        self._learning = Learning(mixture=self.betas.is_mixture)
        self._learns_ratios = parameters.learn_ratios
        self.lately = Lately()
        self._carried: ByRequest[Parts] = ByRequest()
        self._gaps: list[tuple[int, int]] = []
        self.unreported_uj = 0.0
        self.silence = Silence()
        self.counted = CountedWork()
        self.by_counters = False

    def describe(self, engine: Engine) -> None:
        """The engine told more of itself (its model, its version)."""
        self.engine = engine
        self.lost.describe(engine.counter_semantics)
        priors = betas(engine)
        if priors != self.betas:
            self.betas = self._prices = priors
            self._learning = Learning(mixture=priors.is_mixture)

    def begin(self, cell: int) -> None:
        """The books of this engine begin with `cell`."""
        self.next_cell = self._first_cell = cell
        for earlier in self._pending.cells_before(cell):
            for part in self._pending.take(earlier):
                self._pending.add(cell, part)
        self.census.began(start_of(cell))

    @property
    def edge_ns(self) -> int | None:
        """Core time up to which this engine's books are closed; `None` before they begin."""
        return None if self.next_cell is None else start_of(self.next_cell)

    # what is told

    def sample(self, sample: EngineSample) -> None:
        """Take a sample of the engine's page."""
        grown = self.census.sample(sample)
        if grown.get("generation") or grown.get("prompt"):
            self.silence.moved(sample.t_ns)

    def started(self, start: RequestStart) -> None:
        """A request is known to be in flight."""
        self.silence.told()
        self.in_flight.begun(start)

    def ended(self, event: RequestEvent) -> str:
        """Take a request that ended; returns `late` or `before_start` if part of its time is closed already."""
        self.in_flight.ended(event)
        self.silence.told()
        part = self._expect(event)
        self.census.waited(part.earliest_ns, event.seen_ns or event.last_token_ns)
        floor = self.next_cell
        if floor is None or start_of(floor) <= part.earliest_ns:
            return ""
        if cell_of(part.earliest_ns) < self._first_cell:
            return "before_start"
        self.lost.told_late(event, start_of(floor))
        return "late"

    def amended(self, known: RequestEvent, event: RequestEvent) -> RequestEvent:
        """Another telling of a request; returns what is known of it now.

        Before its service start is swept all of it counts, later only names and cached tokens: its energy is shared.
        """
        part = self._pending.remove(known, cell_of(served(known, self.engine.role).earliest_ns))
        if part is not None:
            return self._told_otherwise(part, merged(known, event))
        named = described(known, event)
        for request in self.open:
            if request.event is known:
                request.event = named
                return named
        # It came late and waits for the next cell, or its turn was put off: no further than to its first token.
        floor = cell_of(known.arrival_ns) if self.next_cell is None else self.next_cell
        cell = self._pending.cell_of(known, range(floor, max(floor, cell_of(known.first_token_ns)) + 1))
        part = None if cell is None else self._pending.remove(known, cell)
        return known if part is None else self._told_otherwise(part, merged(known, event))

    def _told_otherwise(self, part: Served, event: RequestEvent) -> RequestEvent:
        known = part.event
        self.census.untold(part.earliest_ns, part.last_ns, scheduled=known.scheduled_ns is not None)
        self._starts.unknown(known.first_token_ns)
        self._expect(event)
        return event

    def _expect(self, event: RequestEvent) -> Served:
        """Let a request wait for the cell of its service start, or for the next one to be swept."""
        part = served(event, self.engine.role)
        seen_ns = event.seen_ns or event.last_token_ns
        self.census.known(part.earliest_ns, part.last_ns, seen_ns, scheduled=event.scheduled_ns is not None)
        self._starts.known(event.first_token_ns)
        self._pending.add(max(cell_of(part.earliest_ns), self.next_cell or 0), part)
        return part

    # when cells may close

    def verified_cell(self, now_ns: int) -> int:
        """Cells before this one may close: all their requests are known, or the horizon has passed."""
        given_up_ns = self.census.given_up_ns(now_ns, starts_told=len(self.in_flight) > 0)
        return cell_of(max(self.census.verified_ns(now_ns, self.edge_ns or 0), given_up_ns))

    # sweeping

    def sweep(self, until_cell: int, now_ns: int) -> list[Row]:
        """Rows of all cells from `next_cell` up to `until_cell`, with requests placed and lost work assessed."""
        begin = self.next_cell
        if begin is None:
            return []
        self.abandon_in_flight(start_of(begin) - ABANDON_NS)
        if start_of(until_cell) > self.census.verified_ns(now_ns, start_of(begin)):
            self._assume_in_flight(begin, until_cell)
        self.lost.begin(self.census)
        rows = [self._sweep_cell(cell) for cell in range(begin, until_cell)]
        self.by_counters = self.silence.lasts(now_ns)
        if self.by_counters:
            self.counted.fill(self.census, begin, rows, self.lost, self._means().tpot_seconds)
        self._pace(begin, rows)
        if not self.by_counters:
            self.lost.assess(self.census, begin, rows, self._means(rows))
        looks = self.census.between(start_of(begin), start_of(until_cell))
        self._looked = {cell_of(look.t_ns) - begin for look in looks if look.steps is not None}
        self.census.forget_before(start_of(until_cell))
        return rows

    def skip(self, until_cell: int) -> list[Request]:
        """Pass over cells in which no energy was measured, however many; returns the requests that ended in them."""
        finals: list[Request] = []
        while waiting := self._pending.cells_before(until_cell):
            for key in waiting:
                self._place_all(key)
        if self.next_cell is not None:
            self.unmetered(self.next_cell, until_cell)
        for touched in sorted(key for key in self._load.cells if key < until_cell):
            finals += self.close(touched, self._sweep_cell(touched), Split(0, 0, 0.0))[1]
        self._starts.forget_before(until_cell - KEEP_CELLS)
        self.next_cell = until_cell
        self.census.forget_before(start_of(until_cell))
        return finals

    def _sweep_cell(self, cell: int) -> Row:
        self._place_all(cell)
        row = self._load.sweep(cell)
        self.lost.expect(row)
        self._starts.forget(cell - KEEP_CELLS)
        return row

    def _resident_in(self, rows: Sequence[Row]) -> list[Request]:
        """The requests that are there at some time of a swept range."""
        return [*self.open.values(), *(request for row in rows for request in row.starting)]

    def _place_all(self, cell: int) -> None:
        for part in self._pending.take(cell):
            self._place(part, cell)

    def _place(self, part: Served, cell: int) -> None:
        event = part.event
        first_ns, prompt = event.first_token_ns, event.prompt_tokens
        computed = prompt - part.cached
        start_ns = self._starts.start_ns(part.earliest_ns, first_ns, computed)
        start_cell = start_ns // CELL_NS
        if start_cell > cell:
            part.moved = True
            self._pending.add(start_cell, part)
            return
        if part.moved:
            start_ns, start_cell = max(start_ns, start_of(cell)), cell
        self._starts.observe(start_ns, first_ns, computed)
        edge_ns = start_of(cell) if start_cell < cell else start_ns
        flags: tuple[str, ...] = ()
        if edge_ns - start_ns > SHORTEST_PREFILL_NS:
            flags = ("before_start",) if start_cell < self._first_cell else ("truncated",)
        last_ns = part.last_ns if part.last_ns > first_ns else first_ns
        if first_ns <= start_ns:
            first_ns = start_ns + 1
        work = Work(start_ns, first_ns, last_ns, computed, part.cached, prompt, part.generated, edge_ns)
        request = Request(event, work, flags)
        if flags:
            request.decoded = self._decoded_before(work)
        self._load.insert(request)

    def _decoded_before(self, work: Work) -> float | None:
        """Tokens after the first that a request had made before its first open cell, counted back from its last one.

        `None` where no steps are counted: then they came evenly in time. An engine that fills up slows down, so an
        even rate would leave too many tokens to the open cells.
        """
        if work.from_ns <= work.first_ns:
            return 0.0
        per_step = self._clock.tokens_per_step
        until_ns = min(work.last_ns, self.census.last_look_ns)
        from_steps, until_steps = (self.census.counter_at("steps", t_ns) for t_ns in (work.from_ns, until_ns))
        if from_steps is None or until_steps is None or per_step is None or per_step > SPECULATES:
            return None
        untold = work.decode_rate * (work.last_ns - until_ns) / NANOSECONDS_PER_SECOND
        left = per_step * (until_steps - from_steps) + untold
        return min(max(work.generated - 1 - left, 0.0), max(work.generated - 1, 0.0))

    def _assume_in_flight(self, begin: int, until_cell: int) -> None:
        """Requests known to be in flight at the horizon take part with mean figures."""
        if not len(self.in_flight):
            return
        begin_ns, end_ns = start_of(begin), start_of(until_cell)
        told = self._decodes(until_cell) if self.engine.counter_semantics.generation_at == "step" else None
        for request in self.in_flight.stand_ins(self.census, begin_ns, end_ns, self._means(), told):
            self._load.insert(request)

    def _decodes(self, until_cell: int) -> Iterator[Decode]:
        """When requests that are told of, and are there before a cell, decode."""
        for request in self.open:
            yield Decode(request.work.first_ns, request.work.last_ns, request.work.generated)
        for part in self._pending.before(until_cell):
            yield Decode(part.event.first_token_ns, part.last_ns, part.generated)

    def _means(self, rows: Sequence[Row] = ()) -> Means:
        return self.lately.means(self.lost.mean_computed, self.lost.mean_prefill_seconds, rows)

    def _pace(self, begin: int, rows: Sequence[Row]) -> None:
        """When the steps of a swept range happened, and with them the decoding."""
        looks = self.census.around(start_of(begin), start_of(begin + len(rows)))
        requests = self._resident_in(rows)
        counted = self._clock.set(begin, rows, looks, requests)
        decoding = Decoding(begin, rows)
        per_step = decoding.fill(requests, counted=counted, tokens_per_step=self._clock.tokens_per_step)
        if counted:
            self._clock.observe_tokens(per_step)
        else:
            self._estimated_steps.fill(self.census, begin, rows)

    def learn(self, rows: Sequence[Row], above_idle_uj: Sequence[float], idle_uj: float, *, idle_guessed: bool) -> None:
        """Hold a swept range against what its cells used above idle; for an engine that has its devices alone."""
        busy = [row.busy for row in rows]
        expected = [expected_of(row, self.betas) for row in rows]
        told = min(1.0 if self.lost.coverage is None else self.lost.coverage, 1.0 - self.lost.mismatch)
        prefill_seconds = self.lost.mean_prefill_seconds
        if idle_guessed != self._learning.idle_guessed:
            # What was learned against a guess is nothing beside a figure of the device.
            self._learning = Learning(mixture=self.betas.is_mixture, idle_guessed=idle_guessed)
        self._learning.observe(busy, expected, above_idle_uj, idle_uj, prefill_seconds, self._looked, told=told)
        if self._learns_ratios:
            self._prices = self.betas.scaled(self._learning.fitted.factors)

    @property
    def uplift(self) -> float:
        """What being busy adds to idle power before any work is counted, as a multiple of it."""
        return self._learning.fitted.uplift

    # closing

    def expected_uj(self, row: Row) -> float:
        """Expected dynamic energy of a row in the priors' scale; only ratios of it are used."""
        return sum(expected_of(row, self._prices))

    def close(self, cell: int, row: Row, split: Split) -> tuple[int, list[Request]]:
        """Close one cell; returns microjoules that nothing explains, and the requests that are final now."""
        self.next_cell = cell + 1
        residents = row.resident + (row.lost.resident if row.lost else 0.0)
        shared = shared_time(cell, row)
        shared_seconds = residents if shared is None else shared.busy_seconds
        all_dynamic = self._policy is IdlePolicy.DYNAMIC
        rates, spent, unexplained = cell_rates(row, split, self._prices, shared_seconds, all_dynamic=all_dynamic)
        if spent:
            self.lately.take(row, residents, spent)
        if row.lost and residents > 0.0:
            self._book_lost(row.lost, rates)
        watts = (split.energy - split.idle) * 1e-6 / CELL_SECONDS
        at = integrals(self._prefix, rates, cell, row, shared)
        finals = self._read_out(row, at, watts / max(residents / CELL_SECONDS, 1.0))
        self._prefix = at(start_of(cell + 1))
        return unexplained, finals

    def _book_lost(self, lost: Lost, rates: Prefix) -> None:
        if self.by_counters:
            self.counted.book(lost, rates)
            return
        self.unreported_uj += (
            (rates.resident + rates.step) * lost.resident
            + rates.prefill * lost.prefill
            + rates.attention * lost.attention
            + rates.decode * lost.decode
            + rates.kv * lost.kv
        )

    def _read_out(self, row: Row, at: Callable[[int], Integrals], watts_each: float) -> list[Request]:
        """Give requests what is theirs where they start, turn to decode and end; returns those that are final."""
        for request in row.starting:
            request.since = at(request.work.begin_ns)
            request.start_watts = watts_each
            self.open[request] = request
        for request in row.turning:
            request.fold(at(request.work.turn_ns))
            request.phase = DECODE
        for request in row.ending:
            request.fold(at(request.work.end_ns))
            request.end_watts = watts_each
        return [request for request in row.ending if self._retire(request)]

    def _retire(self, request: Request) -> bool:
        """Take a request out of the open ones; one that only stood in for a request in flight is carried over."""
        request.phase, request.since = DONE, ZERO
        self.open.pop(request, None)
        if self._gaps:
            self._mark_gaps(request)
        event = request.event
        carried = self._carried.take(event.id, event.arrival_ns) if self._carried else None
        if request.flags and IN_FLIGHT in request.flags:
            if carried is not None:
                request.add(carried)
            self._carried.put(event.id, event.arrival_ns, request)
            return False
        if carried is not None:
            request.add(carried)
            request.unmetered_ns -= request.work.begin_ns - request.work.start_ns
        return True

    def unmetered(self, begin_cell: int, end_cell: int) -> None:
        """Of these cells, which are being closed, at least one of the engine's meters tells nothing."""
        if self._gaps and self._gaps[-1][1] >= begin_cell:
            begin_cell = self._gaps.pop()[0]
        self._gaps.append((begin_cell, end_cell))
        del self._gaps[:-GAPS_MAX]

    def _mark_gaps(self, request: Request) -> None:
        """Say of a request how long it was there while a meter told nothing."""
        begin_ns, last_ns = request.work.begin_ns, request.work.last_ns
        missing_ns = 0
        for begin, end in reversed(self._gaps):
            if start_of(end) <= begin_ns:
                break
            missing_ns += max(min(start_of(end), last_ns) - max(start_of(begin), begin_ns), 0)
        if missing_ns:
            request.unmetered_ns += missing_ns
            request.flags = (*request.flags, "meter_gap")

    # what is held for whom

    def open_uj(self) -> float:
        """What closed cells gave to requests that are not final, microjoules; at the end of a range."""
        total = self.unreported_uj + self.counted.open_uj + sum(parts.total for _, _, parts in self._carried)
        for request in self.open.values():
            request.fold(self._prefix)
            request.since = ZERO
            total += request.total
        self._prefix = ZERO
        return total

    def take_unreported(self) -> int:
        """Whole microjoules of work that no event told of; each is handed out once."""
        whole = int(self.unreported_uj)
        self.unreported_uj -= whole
        return whole

    def finish(self) -> Iterator[Request]:
        """At the end of a recording: requests that last beyond the last reading are read out as they are."""
        for request in sorted(self.open.values(), key=lambda r: order_of(r.event)):
            request.fold(self._prefix)
            request.flags = (*request.flags, "truncated")
            if self._retire(request):
                yield request
        for event in sorted((part.event for part in self._pending), key=order_of):
            yield _unmetered(event, "beyond_end")
        self._pending.clear()
        self.abandon_in_flight(None)

    def abandon_in_flight(self, before_ns: int | None) -> None:
        """Requests that began (before a time) and never ended: what they were given is unreported."""
        self.in_flight.abandon(before_ns)
        orphans = [(key, arrival_ns) for key, arrival_ns, _ in self._carried if not self.in_flight.has(key, arrival_ns)]
        if not orphans:
            return
        living: ByRequest[bool] = ByRequest()
        if before_ns is not None:
            for event in (*(part.event for part in self._pending), *(request.event for request in self.open)):
                living.put(event.id, event.arrival_ns, True)
        for key, arrival_ns in orphans:
            parts = None if living.get(key, arrival_ns) else self._carried.take(key, arrival_ns)
            if parts is not None:
                self.unreported_uj += parts.total

    def give_up(self, before_ns: int) -> Iterator[Request]:
        """Requests that ended before a time and whose devices have never been read: they own nothing."""
        self._starts.forget_before(cell_of(before_ns))
        self.census.forget_before(before_ns)
        self.abandon_in_flight(before_ns - ABANDON_NS)
        for key in self._pending.cells_before(cell_of(before_ns - 1) + 1):
            for part in self._pending.take(key):
                yield _unmetered(part.event, "no_energy")

    def inherit(self, former: "EngineBook") -> None:
        """Take over what another book has learned of the same engine."""
        for name in LEARNED:
            setattr(self, name, getattr(former, name))

    def doubt(self) -> Doubt:
        """What the uncertainty of requests that become final in the cell last closed depends on."""
        return Doubt(
            shares=tuple(self.lately.spent),
            architecture=self.betas.knows_architecture,
            steps_counted=self.census.counts_steps,
            coverage=self.lost.coverage,
            means=self.lately.rates(),
        )


def _unmetered(event: RequestEvent, flag: str) -> Request:
    """A request without any joules."""
    start_ns, last_ns = event.arrival_ns, event.last_token_ns
    return Request(event, Work(start_ns, event.first_token_ns, last_ns, 0, 0, 0, 0, last_ns), (flag,))
