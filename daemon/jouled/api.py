"""What a collector or a sink implements, and nothing else.

Four families, each found by entry point: `jouled.power` (meters), `jouled.engines` (inference engines' pages),
`jouled.requests` (what tells of single requests) and `jouled.sinks` (where points and receipts are sent). Collectors
and sinks declare their settings as a `msgspec.Struct`; the configuration table of their name is turned into that type,
unknown keys refused.

Power collectors block and run in a sampler of their own: a thread, or a child process where a vendor library is
involved. Engine collectors and request receivers own no socket and no file: they declare what they want asked or
received and turn bytes into model types. A receiver is of one kind or several: fed by HTTP, datagrams, gRPC, files, or
by asking.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from msgspec import Meta, Struct

from jouled.model.device import Device
from jouled.model.engine import CounterSemantics, Latency, LatencyHistogram
from jouled.model.errors import SourceError
from jouled.model.points import Kind, NumberedReceipt, Points
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled.model.requests import RequestEvent, RequestStart

API_VERSION = 1

MOST_RECORDS = 50_000
"""Records that one body may hold: as objects they take some 50 MB, where a byte of gzip can bring hundreds of them."""

MOST_REJECTED = 100
"""Refused records of one body that are kept with place and sentence; the others are only counted."""

Reading = EnergyReading | PowerReading | DeviceStatus


class Clock(Protocol):
    """The clock of a sampler: core time in nanoseconds (boot time plus the daemon's offset)."""

    def now_ns(self) -> int:
        """Core time now."""
        ...


class PowerSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Settings every power collector has.

    startup: `require` (the daemon does not start without it), `retry` (ask again with back-off), `ignore` (ask again
    rarely, say nothing). interval_seconds: time between two reads; `None` lets the source choose at start from the
    measured cost of a read. idle_watts, max_watts: of each device, where the source cannot tell.
    """

    startup: Literal["require", "retry", "ignore"] = "retry"
    interval_seconds: float | None = None


class PowerSource(Protocol):
    """An opened source. Used by one sampler only, from one thread."""

    devices: Sequence[Device]
    interval_seconds: float

    def read(self) -> list[Reading]:
        """Read every device once; blocks. `devices` may have become others by then.

        A device that cannot be read is left out. Raises `SourceError` when the source as a whole is gone.
        """
        ...

    def close(self) -> None:
        """Let go of the hardware."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A power source that asks several others (BMCs, PDUs, plugs), each of which may fail alone.

    parts: by name (short and stable, such as the host's), what is wrong with the part since the last read; `None`: it
    works. Each part is shown as a source of its own, `SOURCE/PART`; its devices are simply missing from the readings.
    """

    parts: Mapping[str, SourceError | None]


class PowerCollector(Protocol):
    """A kind of meter.

    One in a process of its own is taken to hold a device open, which `jouled release` makes it let go of. One that is
    there for other reasons (a client over the network that needs much time) says `holds_devices = False`.
    """

    name: ClassVar[str]
    isolation: ClassVar[Literal["thread", "process"]]
    settings_type: ClassVar[type[PowerSettings]]

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find the devices and open them; blocks.

        Raises `SourceError` with state absent, denied or down, and the command that mends it.
        """
        ...


class EngineFacts(Struct, frozen=True, kw_only=True):
    """What an engine says of itself beside its counters; empty is not known.

    role: `unified`, `prefill`, `decode`, or `frontend`: it hands requests to engines that are counted by themselves.
    precision: number format and quantisation of the weights (`bfloat16`, `fp8`, `awq`). parallelism: sizes above one,
    in the order of the names, as in `dp2 tp4` (dp, ep, pp, cp, tp).
    kv_connector: what carries the KV cache between pools (`nixl`, `mooncake`, `mori`). speculation: method of
    speculative decoding.
    instance: the id by which events name it (`EngineHint`), another one after each start.
    """

    model: str = ""
    version: str = ""
    role: str = ""
    precision: str = ""
    parallelism: str = ""
    kv_connector: str = ""
    speculation: str = ""
    instance: str = ""


class EnginePage(Struct, frozen=True, kw_only=True):
    """What one read of an engine's page told; absent is `None`.

    facts: what the page says beside counters. semantics: of this page's counters, where they depend on the engine's
    release; `None`: as the collector says of all pages. transferred_prompt_tokens: of the prompt tokens those that came
    as KV cache from another engine. requests_finished: since the engine's start. forward_seconds: cumulative seconds in
    which its accelerators computed, by kind of step, as the engine times it. counts_by_model: by kind (`steps`,
    `prompt`, `generation`) what each model has in the counter, of an engine whose models come and go while it runs.
    """

    model: str = ""
    facts: EngineFacts = EngineFacts()
    semantics: CounterSemantics | None = None
    steps: int | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    transferred_prompt_tokens: int | None = None
    generation_tokens: int | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    requests_finished: int | None = None
    forward_seconds: Mapping[str, float] = {}
    counts_by_model: Mapping[str, Mapping[str, int]] = {}


class EngineCollector(Protocol):
    """A kind of engine. Pure: the runtime asks the engine (one request in flight, with time and size limits)."""

    name: ClassVar[str]
    page_path: ClassVar[str]
    version_path: ClassVar[str]
    default_port: ClassVar[int]
    semantics: ClassVar[CounterSemantics]

    def recognises(self, argv: Sequence[str], title: str) -> bool:
        """Whether a process with this command line and title is this engine's server (the one with the port)."""
        ...

    def port(self, argv: Sequence[str]) -> int:
        """The port that such a process serves on, from its arguments or the engine's default."""
        ...

    def page(self, body: bytes) -> EnginePage:
        """Read the metrics page. Raises `ValueError` with the reason if this is no page of this engine."""
        ...

    def version(self, body: bytes) -> str:
        """Read the answer of `version_path`. Raises `ValueError`."""
        ...


@runtime_checkable
class LatencyCollector(Protocol):
    """An engine collector whose page has histograms of latencies, one observation a request."""

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        """Read these histograms of the metrics page, series of several engines added up; those it lacks are missing.

        Raises `ValueError` with the reason if one cannot be read.
        """
        ...


@runtime_checkable
class EnvironmentPort(Protocol):
    """An engine collector whose servers take their port from the environment where the command line names none.

    port_variables: those that are looked at, the first that is set counts; a port, or `HOST:PORT`.
    """

    port_variables: ClassVar[Sequence[str]]


@runtime_checkable
class FactsCollector(Protocol):
    """An engine collector that reads what a server was started with. The page's word goes before this."""

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        """What the command line and the environment (empty where it may not be seen) say. Never raises."""
        ...


@runtime_checkable
class EnergyCollector(Protocol):
    """An engine collector whose engine meters its accelerators itself: for comparison, never for the books."""

    energy_path: ClassVar[str]

    def energy_joules(self, body: bytes) -> float:
        """Read the answer of `energy_path`: joules since some moment of the engine's life. Raises `ValueError`."""
        ...


class EngineHint(Struct, frozen=True, kw_only=True):
    """How a receiver knows which engine a request belongs to: pid or instance, then service name, then type and role.

    A client knows the server that it called: address (name or IP, of the engine or this host) and port, and the model.
    may_be_elsewhere: that server may be on another host; a request that fits no engine here is then left alone instead
    of refused.
    """

    engine: str = ""
    engine_type: str = ""
    pid: int | None = None
    instance: str = ""
    service_name: str = ""
    role: str = ""
    address: str = ""
    port: int | None = None
    model: str = ""
    may_be_elsewhere: bool = False


class ReceivedRequest(Struct, frozen=True, kw_only=True):
    """One event from outside with times in Unix nanoseconds; `engine` of the event is filled in by the runtime.

    position: where it stood in the body, as in `Rejected`; for what is refused after decoding.
    """

    event: RequestEvent | RequestStart
    hint: EngineHint = EngineHint()
    position: str = ""


class Rejected(Struct, frozen=True):
    """One record that was refused.

    position: where (`line 3`, `resourceSpans[0].scopeSpans[0].spans[2]`); reason: short, for the counter; message: a
    sentence for the sender.
    """

    position: str
    reason: str
    message: str


class Received(Struct, frozen=True, kw_only=True):
    """What one request body held.

    rejected: the first ones that were refused; more_rejected: how many others were, by reason. ignored: records that
    are well-formed and none of our business.
    """

    requests: Sequence[ReceivedRequest] = ()
    rejected: Sequence[Rejected] = ()
    ignored: int = 0
    more_rejected: Mapping[str, int] = {}

    @property
    def rejected_count(self) -> int:
        """All that were refused."""
        return len(self.rejected) + sum(self.more_rejected.values())


class Refusals:
    """Gathers what is refused of one body: the first `MOST_REJECTED` as they are, of the others the count by reason."""

    def __init__(self, kept: Sequence[Rejected] = (), more: Mapping[str, int] | None = None) -> None:
        self.kept = list(kept)
        self.more = Counter(more or {})

    def add(self, rejected: Rejected) -> None:
        """One more is refused."""
        if len(self.kept) < MOST_REJECTED:
            self.kept.append(rejected)
        else:
            self.more[rejected.reason] += 1


class MalformedBodyError(ValueError):
    """The body as a whole cannot be read; `position` says where it broke."""

    def __init__(self, message: str, position: str = "") -> None:
        super().__init__(message)
        self.position = position


class TooManyRecordsError(MalformedBodyError):
    """The body holds more than `MOST_RECORDS`; raised before they are built."""

    def __init__(self) -> None:
        super().__init__(f"too many records (more than {MOST_RECORDS}), send them in parts")


class Receiver(Protocol):
    """What tells of single requests, in one of the ways below or several; its name is that of its entry point."""

    name: ClassVar[str]


@runtime_checkable
class HttpIngest(Protocol):
    """A receiver fed by HTTP POST. Runtime opens the route, with limits and authentication, and undoes gzip."""

    name: ClassVar[str]
    path: ClassVar[str]
    content_types: ClassVar[Sequence[str]]

    def decode(self, body: bytes, content_type: str) -> Received:
        """Turn a body into requests. Raises `MalformedBodyError`, `TooManyRecordsError` among them."""
        ...

    def respond(self, received: Received, content_type: str) -> tuple[bytes, Mapping[str, str]]:
        """The answer's body and headers for a sender that speaks this protocol."""
        ...


@runtime_checkable
class DatagramIngest(Protocol):
    """A receiver fed by datagrams on a Unix socket in the runtime directory. Runtime owns the socket.

    socket_name: the file's name there. A datagram has no answer: what is refused is counted.
    """

    name: ClassVar[str]
    socket_name: ClassVar[str]

    def decode(self, datagram: bytes) -> Received:
        """Turn one datagram into requests. Raises `MalformedBodyError`."""
        ...


@runtime_checkable
class GrpcIngest(Protocol):
    """A receiver fed by a unary gRPC call. Runtime opens the port where the configuration names one.

    method: `/package.Service/Method`.
    """

    name: ClassVar[str]
    method: ClassVar[str]

    def decode_message(self, message: bytes) -> Received:
        """Turn a request message into requests. Raises `MalformedBodyError`."""
        ...

    def response_message(self, received: Received) -> bytes:
        """The response message for the sender."""
        ...


@runtime_checkable
class JoinsParts(Protocol):
    """A receiver to which several processes each tell a part of one request: it holds parts until the others came."""

    def overdue(self, now_ns: int) -> Received:
        """What has waited too long for its other parts, as far as it is known. Runtime asks every second.

        `now_ns` only goes forward.
        """
        ...


class FollowSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Settings every receiver that follows files has.

    directory: empty, nothing is followed.
    """

    directory: Annotated[str, Meta(description="Folder in which the engine writes. Empty: nothing is read.")] = ""
    engine: Annotated[str, Meta(description="Name of that engine. Empty: the only one of its type.")] = ""


class LinesRead(Struct, frozen=True, kw_only=True):
    """When lines were read, and when their file had last been written to: none of them is younger.

    unix_ns, written_ns: the wall clock; steady_ns: CLOCK_MONOTONIC (clock_gettime(2)), by which some engines stamp.
    """

    unix_ns: int
    steady_ns: int
    written_ns: int


@runtime_checkable
class FileFollow(Protocol):
    """A receiver fed by lines that an engine appends to files. Runtime follows them, with rotation and restarts.

    pattern: which files of the folder, as a glob; of several the newest is written to. A receiver of one type of engine
    may say so as `engine_type`: nothing is read before such an engine is known.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[FollowSettings]]
    pattern: ClassVar[str]

    def decode_lines(self, lines: Sequence[bytes], read: LinesRead, settings: FollowSettings) -> Received:
        """Turn whole lines of one file into requests; one that is wrong is refused alone."""
        ...


class DrainSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Settings every receiver has that empties an engine's queue by reading it.

    own: only whoever owns the queue may read it, as each record is told once.
    """

    own: Annotated[
        bool, Meta(description="Read the records, which the engine then forgets: nobody else sees them any more.")
    ] = False
    interval_seconds: Annotated[float, Meta(description="Time between two reads.")] = 5.0


class PageRead(Struct, frozen=True, kw_only=True):
    """When and of whom a page was read: the engine's name, and what the host's clocks showed as the answer was there.

    unix_ns: the wall clock; steady_ns: CLOCK_MONOTONIC (clock_gettime(2)), by which engines on this host stamp.
    """

    engine: str
    unix_ns: int
    steady_ns: int


@runtime_checkable
class PageDrain(Protocol):
    """A receiver that asks an engine for finished requests; each answer empties the engine's queue.

    engine_type: of which engines; path: where. Runtime asks only where `own` is set.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[DrainSettings]]
    engine_type: ClassVar[str]
    path: ClassVar[str]

    def decode_page(self, body: bytes, read: PageRead, settings: DrainSettings) -> Received:
        """Turn an answer into requests of that engine. Raises `MalformedBodyError`."""
        ...


ResendSeconds = Annotated[
    float,
    Meta(
        description="Behind an outage of the receiver, and when the daemon starts, what it took in the last so many"
        " seconds before is sent again, as a receiver that dies forgets what it has not synced. At most 300, 0: none."
    ),
]


class SinkSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Settings every sink has."""

    type: Annotated[str, Meta(description="Which sink it is. Empty: the one that the table is named after.")] = ""
    timeout_seconds: Annotated[float, Meta(description="A delivery that takes longer counts as failed.")] = 10.0
    resend_seconds: ResendSeconds = 0.0


class RejectedRecord(Struct, frozen=True):
    """A record that the other side will never take: its place in the delivery, a word, and a sentence."""

    index: int
    reason: str
    message: str


class Delivery(Struct, frozen=True):
    """What became of a delivery.

    taken: how many records from the first on are dealt with; the others are kept and sent again. rejected: those among
    the taken that were refused for good; all other taken ones were accepted.
    """

    taken: int
    rejected: tuple[RejectedRecord, ...] = ()


class OpenSink(Protocol):
    """A sink in use, from one event loop. It does not retry: the runner does.

    most: the streams that it takes, `TakesPoints` or `TakesReceipts` or both, and how many records of each one
    delivery may hold. Deliveries raise `SinkError` where nothing was taken, and must bear that records come again which
    had been taken before.
    """

    most: Mapping[Kind, int]

    async def close(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class TakesPoints(Protocol):
    """A sink for the stream `points`."""

    async def points(self, moments: Sequence[Points]) -> Delivery:
        """Send the series of some moments, oldest first."""
        ...


@runtime_checkable
class TakesReceipts(Protocol):
    """A sink for the stream `receipts`."""

    async def receipts(self, receipts: Sequence[NumberedReceipt]) -> Delivery:
        """Send receipts, in the order of their numbers."""
        ...


class Sink(Protocol):
    """A kind of sink."""

    name: ClassVar[str]
    settings_type: ClassVar[type[SinkSettings]]

    def open(self, settings: SinkSettings, node: str) -> OpenSink:
        """Make one out of its settings; asks nobody yet.

        Raises `ConfigurationError` for settings that make no sense and files that cannot be read.
        """
        ...
