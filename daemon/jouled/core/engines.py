"""The engines of the node: as they were declared, and what their pages tell beside the books."""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from jouled.core.absence import Absences
from jouled.core.accounting.account import Account
from jouled.core.accounting.attainment import Attainment
from jouled.core.accounting.windows import AT_FINISH_WINDOW_NS, WINDOW_NS, RatioWindow
from jouled.core.attribution.engine import EngineBook
from jouled.core.attribution.roles import FRONTEND_ROLE, counts_generation, counts_prompt
from jouled.core.attribution.unreported import KINDS, UnreportedTokens
from jouled.core.ledger.meter import Meter
from jouled.core.ledger.own_energy import OwnEnergy
from jouled.core.live import ForwardTimer, LiveTokens
from jouled.core.topology import default_devices
from jouled.model.engine import Engine, EngineSample
from jouled.model.errors import SourceState
from jouled.model.snapshot import SourceView


class Engines:
    """Takes what is told of engines. Its inputs return an empty string, or the reason for which they are refused.

    changed: whether the groups have to be arranged anew. raw: the last token counters of each page. generation: tokens
    of all engines whose energy is measured. sources: what the node's sources said last of themselves.
    """

    def __init__(self, account: Account, absences: Absences, sources: Mapping[str, SourceView]) -> None:
        self.declared: dict[str, Engine] = {}
        self.samples: dict[str, EngineSample] = {}
        self.tokens: dict[str, LiveTokens] = {}
        self.token_windows: dict[str, RatioWindow] = {}
        self.unreported: dict[str, UnreportedTokens] = {}
        self.attainments: dict[str, Attainment] = {}
        self.own_energy: dict[str, OwnEnergy] = {}
        self.raw: dict[str, dict[str, int]] = {}
        self.generation = 0
        self.changed = False
        self._forward_timers: dict[str, ForwardTimer] = {}
        self._account = account
        self._absences = absences
        self._sources = sources

    def take(self, engine: Engine) -> str:
        """An engine is there, or is described anew."""
        known, is_read = self.declared.get(engine.name), engine.name in self.samples
        engine = self.declared[engine.name] = self._absences.named_engine(engine, known, is_read=is_read)
        self.changed = True
        if engine.name in self.unreported:
            self.unreported[engine.name].describe(engine.counter_semantics)
        if engine.name in self.tokens:
            self.tokens[engine.name].describe(engine.counter_semantics)
        return ""

    def sample(self, sample: EngineSample, *, estimated: bool) -> str:
        """An engine's page was read; of one whose energy is a guess no tokens are set against what is measured."""
        named = self._absences.read_engine(sample.engine)
        if named is not None:
            self.take(named)
        engine = self.declared.get(sample.engine)
        if engine is None:
            return "unknown_engine"
        last = self.samples.get(sample.engine)
        if last is not None and sample.t_ns <= last.t_ns:
            return "out_of_order"
        self.samples[sample.engine] = sample
        tokens = self.tokens.get(sample.engine)
        if tokens is None:
            tokens = self.tokens[sample.engine] = LiveTokens(engine.counter_semantics, self.raw.get(sample.engine))
        model = self._account.model(engine.model)
        for kind, grown in tokens.take(sample, engine.role).items():
            if kind == "generation" and not estimated:
                self.generation += grown
            self._account.counters.add("engine_tokens_total", (engine.name, model, kind), grown)
        self.raw[sample.engine] = dict(tokens.raw)
        self.unreported_of(engine).sample(sample)
        self.attainment(sample.engine).take(sample)
        self._own_meters(sample)
        window = self.token_windows.setdefault(sample.engine, RatioWindow())
        window.span_ns = self.window_ns([engine.name])
        window.add(sample.t_ns, {"generation": tokens.generation})
        return ""

    def _own_meters(self, sample: EngineSample) -> None:
        """What an engine meters and times itself is shown beside the books."""
        if sample.reported_energy_joules is not None:
            own = self.own_energy.setdefault(sample.engine, OwnEnergy())
            grown_uj = own.take(sample.t_ns, sample.reported_energy_joules)
            self._account.counters.add("engine_reported_energy_joules_total", (sample.engine,), grown_uj)
        if sample.forward_seconds:
            timer = self._forward_timers.setdefault(sample.engine, ForwardTimer())
            for category, seconds in timer.take(sample.forward_seconds).items():
                self._account.counters.add("engine_forward_seconds_total", (sample.engine, category), seconds)

    def unreported_of(self, engine: Engine) -> UnreportedTokens:
        """The tokens of an engine that no event told of."""
        found = self.unreported.get(engine.name)
        if found is None:
            found = self.unreported[engine.name] = UnreportedTokens(engine.counter_semantics)
        return found

    def attainment(self, engine: str) -> Attainment:
        """What an engine's histograms say of the SLOs."""
        found = self.attainments.get(engine)
        if found is None:
            found = self.attainments[engine] = Attainment(self._account.parameters.slos)
        return found

    def window_ns(self, names: Iterable[str]) -> int:
        """Over how long the rate of these engines' tokens means something."""
        moves = {self.declared[name].counter_semantics.moves for name in names}
        return WINDOW_NS if moves <= {"live"} else AT_FINISH_WINDOW_NS

    def drop(self, names: set[str]) -> None:
        """Engines that were named before a restart are not there any more."""
        for name in names & self.declared.keys():
            del self.declared[name]
            self.samples.pop(name, None)
            self.attainments.pop(name, None)
        self.changed = self.changed or bool(names)

    def is_gone(self, engine: str) -> bool:
        """Whether nobody answers where an engine's page was."""
        view = self._sources.get(engine)
        return view is not None and view.state is SourceState.ABSENT

    def placed(self, meters: Iterable[Meter]) -> list[Engine]:
        """The declared engines with their devices; an only engine that names none gets the default.

        One that is gone makes none of the others less the only one: it may have moved to another port.
        """
        declared = [engine for engine in self.declared.values() if engine.role != FRONTEND_ROLE]
        there = [engine for engine in declared if not self.is_gone(engine.name)] or declared
        if len(there) == 1 and not there[0].devices:
            devices = default_devices([meter.device for meter in meters])
            return [replace(there[0], devices=devices)] if devices else []
        return declared

    def settle(self, books: Mapping[str, EngineBook], meters: Mapping[str, Meter], now_ns: int) -> None:
        """Cells have closed: count the tokens that no event told of, and hold engines' own meters against the others.

        Where no device has ever been read no cell closes: looks are settled when requests are given up.
        """
        for name, book in books.items():
            unreported = self.unreported.get(name)
            if unreported is None:
                continue
            model, role = self._account.model(book.engine.model), book.engine.role
            given_up_ns = now_ns - book.census.horizon_ns(now_ns)
            tokens = unreported.settle(given_up_ns if book.edge_ns is None else book.edge_ns)
            for kind, counts, amount in zip(KINDS, (counts_prompt(role), counts_generation(role)), tokens, strict=True):
                if counts:
                    self._account.counters.add("unreported_tokens_total", (name, model, kind), amount)
        for name, own in self.own_energy.items():
            devices = books[name].engine.devices if name in books else ()
            own.compare([meters[device] for device in devices if device in meters])
