"""The configuration as types: one struct a section, one field a key, each with its meaning beside it.

docs/configuration.md is generated from here.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine
from jouled.model.parameters import DeviceChange, IdlePolicy, Limits, Parameters, Price, Slo, Tier


class State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the committed books are kept."""

    directory: Annotated[
        str, Meta(description="Empty: `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/jouled`. `--state` wins over it.")
    ] = ""


class Serve(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The daemon's own port: metrics, page, API and ingest."""

    listen: Annotated[str, Meta(description="`HOST:PORT`; an IPv6 address in brackets. `--listen` wins over it.")] = (
        "127.0.0.1:9966"
    )
    token_file: Annotated[
        str,
        Meta(
            description="File that holds the token which page, API and ingest then ask for. Without it they answer on "
            "loopback and on the Unix socket only."
        ),
    ] = ""
    web_config_file: Annotated[
        str,
        Meta(
            description="File with TLS, users and headers in the format of Prometheus' exporter-toolkit; it is read "
            "again when it changes. Needs `pip install 'jouled[web]'`."
        ),
    ] = ""


class Node(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What push sinks and recordings call this host, and which meter speaks for it."""

    name: Annotated[str, Meta(description="Empty: the host name.")] = ""
    meters: Annotated[
        list[str],
        Meta(
            description="Sources that measure the whole node, the one to believe first. Of meters of one kind only "
            "those of one source (or of one feed) count; outlets go before power supplies, these before the BMC."
        ),
    ] = field(default_factory=lambda: list(Parameters().node_meters))


class DeviceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known better of a device than its source tells; `jouled check` lists the devices."""

    name: Annotated[str, Meta(description="The device's name.")]
    parent: Annotated[
        str | None,
        Meta(description="What contains it: for outlets the feed of this node, for a GPU or package its module."),
    ] = None
    max_watts: Annotated[
        float | None, Meta(description="Its limit: readings above three times of it are rejected as implausible.")
    ] = None
    ignore: Annotated[bool, Meta(description="Leave it out everywhere, for example a second meter of the same.")] = (
        False
    )

    def change(self) -> DeviceChange:
        """As the core knows it."""
        return DeviceChange(name=self.name, parent=self.parent, max_watts=self.max_watts, ignore=self.ignore)


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An inference engine on this node. Without any, the engines are discovered.

    Sizes sharpen the split of energy between requests; leave out what is not known. What is left out is taken from the
    model's `config.json` where `model` is a folder on this host or lies in the Hugging Face cache and can be read, else
    from a table of known models, else from the sizes in the model's name. `jouled check` says which.
    """

    name: Annotated[str, Meta(description="Stable name in every label. Empty: `TYPE-PORT`.")] = ""
    type: Annotated[str, Meta(description="The collector that reads its page, for example `vllm`.")] = ""
    url: Annotated[str, Meta(description="Where it serves, without a path. Empty: no page, request events only.")] = ""
    token_file: Annotated[
        str,
        Meta(description="File with the key that its page asks for (`llama-server --api-key`). Empty: none is sent."),
    ] = ""
    devices: Annotated[
        list[str],
        Meta(
            description="The devices it runs on, or partitions of them. Empty: all accelerators, if it is the only "
            "engine."
        ),
    ] = []
    replica: Annotated[
        str,
        Meta(
            description="Of a page with several engines (vLLM, data parallel), the one meant: the `engine` label of "
            "its series. Empty: all of them, added up."
        ),
    ] = ""
    pid: Annotated[int | None, Meta(description="Process id of its server, to recognise its spans by.")] = None
    model: Annotated[str, Meta(description="Model name. Empty: as its page says.")] = ""
    role: Annotated[
        str, Meta(description="`unified`, `prefill` or `decode`. Empty: as its page or its command line says.")
    ] = ""
    version: Annotated[str, Meta(description="Version of the engine. Empty: as it says itself.")] = ""
    precision: Annotated[str, Meta(description="Number format of the weights, for example `fp8`.")] = ""
    parameters: Annotated[float | None, Meta(description="Parameters of the model.")] = None
    active_parameters: Annotated[float | None, Meta(description="Parameters used for each token.")] = None
    layers: Annotated[int | None, Meta(description="Layers of the model.")] = None
    hidden_size: Annotated[int | None, Meta(description="Width of the model.")] = None
    attention_width: Annotated[
        float | None, Meta(description="Attention heads times head size, where that is not the width of the model.")
    ] = None
    weight_bytes: Annotated[float | None, Meta(description="Bytes of all resident weights.")] = None
    kv_bytes_per_token: Annotated[float | None, Meta(description="Bytes of KV cache per token.")] = None
    expert_share: Annotated[
        float | None, Meta(description="Of a mixture of experts: the share of them a token takes.")
    ] = None
    interval_seconds: Annotated[float, Meta(description="Time between two reads of its page.")] = 5.0

    def engine(self) -> Engine:
        """As the core knows it."""
        return Engine(
            name=self.name,
            type=self.type,
            url=self.url,
            devices=tuple(self.devices),
            pid=self.pid,
            model=self.model,
            role=self.role or "unified",
            version=self.version,
            precision=self.precision,
            parameters=self.parameters,
            active_parameters=self.active_parameters,
            layers=self.layers,
            hidden_size=self.hidden_size,
            attention_width=self.attention_width,
            weight_bytes=self.weight_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            expert_share=self.expert_share,
        )


class Partition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a device that an engine runs on (MIG).

    No sensor tells what it uses, so its energy is an estimate: idle power by its fraction of the device, the rest by
    the work of the engines there.
    """

    name: Annotated[str, Meta(description="As it stands in `devices` of an engine, for example `gpu0/mig1`.")]
    parent: Annotated[str, Meta(description="The device that it is a part of, for example `gpu0`.")]
    fraction: Annotated[
        float, Meta(description="Its share of the device, above 0 and at most 1: its slices over all slices.")
    ]

    def device(self) -> Device:
        """As the core knows it."""
        return Device(name=self.name, kind=DeviceKind.PARTITION, parent=self.parent, fraction=self.fraction)


class Idle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who pays for static power while requests are resident."""

    policy: Annotated[
        IdlePolicy,
        Meta(
            description="`resident`: the requests resident at that moment. `dynamic`: all owners, pro rata to their "
            "dynamic joules. `separate`: nobody, it stays idle."
        ),
    ] = IdlePolicy.RESIDENT


class Attribution(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How energy is shared out."""

    learn_ratios: Annotated[
        bool,
        Meta(
            description="Let the meter correct what the model's sizes say about the ratios between prefill, decode and "
            "steps."
        ),
    ] = Parameters().learn_ratios


class Otlp(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trace receiver at `/v1/traces`, and by gRPC where it is told to listen."""

    grpc_listen: Annotated[
        str | None,
        Meta(
            description="HOST:PORT of a loopback address on which traces come by gRPC, usually 127.0.0.1:4317. "
            "Needs `pip install 'jouled[grpc]'`."
        ),
    ] = None
    forward: Annotated[
        str | None, Meta(description="URL of another collector that gets every span unchanged (OTLP over HTTP).")
    ] = None


class Requests(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tells of single requests."""

    by_tenant: Annotated[bool, Meta(description="Keep energy and tokens by tenant.")] = False
    otlp: Otlp = Otlp()


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which families are published, on the page and to sinks; docs/metrics.md has them all."""

    off: Annotated[
        list[str],
        Meta(description="Families that are left out, by their full names; `*` at the end takes all that begin so."),
    ] = []


class Privacy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of single requests; docs/privacy.md says what else there is, and for how long."""

    receipts: Annotated[
        bool,
        Meta(
            description="Keep, show and send receipts. Without them requests are counted and attributed all the same, "
            "and only sums remain."
        ),
    ] = True
    hash_ids: Annotated[
        bool,
        Meta(
            description="Replace the ids of requests, traces and spans by keyed hashes as soon as they arrive. The key "
            "is made once and lies beside the books."
        ),
    ] = False


class Spool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What waits on disk until every sink has it. Nothing is written for sinks where there are none.

    Receipts are kept for the API in any case; a sink that is away for longer misses those that were removed. Whatever
    a limit takes from a sink is counted in `jouled_spool_dropped_total`.
    """

    interval_seconds: Annotated[float, Meta(description="Time between two moments of all series.")] = 10.0
    points_mebibytes: Annotated[float, Meta(description="Most that waiting series may take; the oldest go first.")] = (
        256.0
    )
    points_days: Annotated[float, Meta(description="Longest that series wait.")] = 7.0
    receipts_mebibytes: Annotated[float, Meta(description="Most that receipts may take; the oldest go first.")] = 512.0
    receipts_days: Annotated[float, Meta(description="How long receipts are kept.")] = 7.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the operator decides.

    `power` holds one table for each collector, whose settings are the collector's own; with none of them the daemon
    looks for what the node has. `sinks` holds one table for each sink, with the sink's own settings. `receivers` holds
    the tables `[requests.<name>]` of receivers with settings of their own.
    """

    state: State = State()
    serve: Serve = Serve()
    node: Node = Node()
    engines: list[EngineConfig] = []
    device: list[DeviceConfig] = []
    partition: list[Partition] = []
    slo: list[Slo] = []
    tier: list[Tier] = []
    idle: Idle = Idle()
    attribution: Attribution = Attribution()
    power: dict[str, dict[str, Any]] = {}
    requests: Requests = Requests()
    receivers: dict[str, dict[str, Any]] = {}
    cost: Price = Price()
    limits: Limits = Limits()
    metrics: Metrics = Metrics()
    privacy: Privacy = Privacy()
    spool: Spool = Spool()
    sinks: dict[str, dict[str, Any]] = {}

    def parameters(self) -> Parameters:
        """What of it the core needs to know."""
        return Parameters(
            node=self.node.name,
            node_meters=tuple(self.node.meters),
            device_changes=tuple(device.change() for device in self.device),
            slos=tuple(self.slo),
            tiers=tuple(self.tier) or Parameters().tiers,
            price=self.cost,
            idle_policy=self.idle.policy,
            learn_ratios=self.attribution.learn_ratios,
            limits=self.limits,
            by_tenant=self.requests.by_tenant,
            keep_receipts=self.privacy.receipts,
        )
