"""What types cannot say: values that fit their type and still make no sense."""

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from jouled.app.config.faults import Fault
from jouled.app.config.types import Config, DeviceConfig, EngineConfig, Partition, Spool
from jouled.app.config.urls import http_url, listen_address, port_of
from jouled.model.engine import ENGINE_SIZES
from jouled.model.parameters import Limits, Price, Slo, Tier
from jouled.outputs.metrics.catalogue import families_off

ROLES = ("unified", "prefill", "decode")

MOST_WATTS = 1e7
"""Ten megawatts: no feed of a node."""


def check(config: Config) -> None:
    """Raise `Fault` for the first key whose value makes no sense."""
    check_listen(config.serve.listen, "$.serve.listen")
    for index, engine in enumerate(config.engines):
        _check_engine(engine, f"$.engines[{index}]")
    _refuse_twins((engine.name for engine in config.engines), "engines", "Give each engine a name of its own")
    _check_devices(config.device)
    _check_partitions(config.partition)
    for index, slo in enumerate(config.slo):
        _check_slo(slo, f"$.slo[{index}]")
    _refuse_twins((slo.name for slo in config.slo), "slo", "Give each SLO a name of its own")
    _check_tiers(config.tier)
    if config.requests.otlp.grpc_listen is not None:
        _check_grpc_listen(config.requests.otlp.grpc_listen, config.serve.listen, "$.requests.otlp.grpc_listen")
    if config.requests.otlp.forward is not None:
        _check_forward(config.requests.otlp.forward, config.serve.listen, "$.requests.otlp.forward")
    _check_cost(config.cost)
    _check_limits(config.limits)
    _check_spool(config.spool)
    try:
        families_off(config.metrics.off)
    except ValueError as error:
        raise Fault("$.metrics.off", str(error), "docs/metrics.md and `jouled metrics` list the names") from None


def check_listen(listen: str, key: str) -> None:
    """Raise `Fault` unless it is `HOST:PORT`."""
    try:
        listen_address(listen)
    except ValueError as error:
        raise Fault(key, str(error), "Write it as 127.0.0.1:9966 or [::1]:9966") from None


SHORTEST_INTERVAL_SECONDS = 0.001
"""A thousand reads a second; no meter moves faster."""


def check_interval(seconds: float | None, key: str) -> None:
    """Raise `Fault` unless it is a time that can pass between two reads."""
    if seconds is not None and seconds < SHORTEST_INTERVAL_SECONDS:
        mend = f"It must be at least {SHORTEST_INTERVAL_SECONDS:g}"
        raise Fault(key, f"{seconds:g} seconds is no time between two reads", mend)


def _check_spool(spool: Spool) -> None:
    for key in ("interval_seconds", "points_mebibytes", "points_days", "receipts_mebibytes", "receipts_days"):
        value = getattr(spool, key)
        if value <= 0:
            raise Fault(f"$.spool.{key}", f"{value:g} keeps nothing", "It must be above 0")
    if spool.interval_seconds < 1.0:
        raise Fault("$.spool.interval_seconds", "books are committed once a second", "It must be at least 1")


def _check_engine(engine: EngineConfig, key: str) -> None:
    if engine.url:
        _check_url(engine.url, f"{key}.url")
        if not engine.type:
            raise Fault(f"{key}.type", "an engine with a url needs a type", 'Say which engine it is, as type = "vllm"')
    elif not engine.name:
        raise Fault(f"{key}.name", "an engine without a url needs a name", "Give its url and type, or a name")
    if engine.role and engine.role not in ROLES:
        raise Fault(f"{key}.role", f"unknown value `{engine.role}`", f"Known here: {', '.join(ROLES)}")
    check_interval(engine.interval_seconds, f"{key}.interval_seconds")
    for size in ENGINE_SIZES:
        value = getattr(engine, size)
        if value is not None and value <= 0:
            raise Fault(f"{key}.{size}", f"{value:g} is no size", "It must be above 0; leave out what is not known")
    if engine.expert_share is not None and engine.expert_share > 1:
        raise Fault(
            f"{key}.expert_share",
            f"{engine.expert_share:g} is no share",
            "It is at most 1: 0.0625 for 8 of 128",
        )
    if engine.pid is not None and engine.pid <= 0:
        raise Fault(f"{key}.pid", f"{engine.pid} is no process id")
    if len(set(engine.devices)) < len(engine.devices):
        raise Fault(f"{key}.devices", "one device stands there twice", "Name each device once")


def _check_devices(devices: Sequence[DeviceConfig]) -> None:
    _refuse_twins((device.name for device in devices), "device", "Give each device one table")
    for index, device in enumerate(devices):
        if not device.name:
            raise Fault(f"$.device[{index}].name", "a device needs a name", "`jouled check` lists the devices")
        if device.parent == device.name:
            raise Fault(
                f"$.device[{index}].parent", "nothing contains itself", "Name what contains it, or leave it out"
            )
        if device.max_watts is not None and not 0 < device.max_watts < MOST_WATTS:
            raise Fault(f"$.device[{index}].max_watts", f"{device.max_watts:g} W is no limit", "It must be above 0")


def _check_partitions(partitions: Sequence[Partition]) -> None:
    _refuse_twins((partition.name for partition in partitions), "partition", "Give each partition a name of its own")
    names = {partition.name for partition in partitions}
    used: dict[str, float] = {}
    for index, partition in enumerate(partitions):
        key = f"$.partition[{index}]"
        for word in ("name", "parent"):
            if not getattr(partition, word):
                raise Fault(f"{key}.{word}", f"a partition needs a {word}")
        if partition.parent in names:
            raise Fault(f"{key}.parent", f"`{partition.parent}` is a partition", "Name the whole device")
        if not 0 < partition.fraction <= 1:
            raise Fault(f"{key}.fraction", f"{partition.fraction:g} is no share", "It must be above 0 and at most 1")
        used[partition.parent] = used.get(partition.parent, 0.0) + partition.fraction
        if used[partition.parent] > 1 + 1e-6:
            raise Fault(
                f"{key}.fraction",
                f"the partitions of `{partition.parent}` are {used[partition.parent]:g} of it",
                "Together they may be 1 at most",
            )


def _check_url(url: str, key: str) -> None:
    try:
        http_url(url)
    except ValueError as error:
        raise Fault(key, f"no usable URL: {error}", "Write it as http://HOST:PORT") from None


def _check_grpc_listen(listen: str, serve_listen: str, key: str) -> None:
    check_listen(listen, key)
    host, port = listen_address(listen)
    if not _is_loopback(host):
        mend = "Write 127.0.0.1:4317; what comes from other hosts, let a collector pass on, or take it by HTTP"
        raise Fault(key, f"`{host}` is no loopback address, and gRPC is taken from this host only", mend)
    if port and port == listen_address(serve_listen)[1]:
        raise Fault(key, f"{port} is the port of serve.listen", "Write another one, as 127.0.0.1:4317")


def _check_forward(url: str, listen: str, key: str) -> None:
    _check_url(url, key)
    own_host, own_port = listen_address(listen)
    host = http_url(url).hostname or ""
    if port_of(url) == own_port and (host == own_host.lower() or _is_this_machine(host)):
        mend = "Name the other collector's address, or leave forward out: jouled takes the spans anyway"
        raise Fault(key, f"`{url}` is jouled itself, listening on {listen}", mend)


def _is_this_machine(host: str) -> bool:
    """Whether it is a loopback address, or the one that stands for every address of this host."""
    return _is_loopback(host) or host in {"0.0.0.0", "::"}


def _is_loopback(host: str) -> bool:
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_twins(names: Iterable[str], section: str, mend: str) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise Fault(f"$.{section}[{index}].name", f"the name `{name}` is given twice", mend)
        seen.add(name)


def _check_slo(slo: Slo, key: str) -> None:
    if not slo.name:
        raise Fault(f"{key}.name", "an SLO needs a name")
    limits = {"ttft": slo.ttft, "tpot": slo.tpot, "e2el": slo.e2el}
    if all(limit is None for limit in limits.values()):
        raise Fault(key, f"the SLO `{slo.name}` has no limit", "Give ttft, tpot or e2el in milliseconds")
    for name, limit in limits.items():
        if limit is not None and limit <= 0:
            raise Fault(f"{key}.{name}", f"{limit:g} ms can never be met", "It must be above 0")


def _check_tiers(tiers: Sequence[Tier]) -> None:
    _refuse_twins((tier.name for tier in tiers), "tier", "Give each tier a name of its own")
    for index, tier in enumerate(tiers):
        key = f"$.tier[{index}]"
        if not tier.name:
            raise Fault(f"{key}.name", "a tier needs a name")
        bound = tier.min_tokens_per_second_per_user
        if bound < 0:
            raise Fault(f"{key}.min_tokens_per_second_per_user", f"{bound:g} is below 0")
        if index and bound <= tiers[index - 1].min_tokens_per_second_per_user:
            raise Fault(
                f"{key}.min_tokens_per_second_per_user",
                f"the tier `{tier.name}` does not begin above the one before it",
                "Write the tiers from the slowest to the fastest",
            )


def _check_cost(cost: Price) -> None:
    if not re.fullmatch("[A-Z]{3}", cost.currency):
        raise Fault("$.cost.currency", f"`{cost.currency}` is no currency code", "Write it as three letters, as EUR")
    if cost.pue is not None and cost.pue < 1:
        raise Fault("$.cost.pue", f"{cost.pue:g} is below 1", "A facility uses at least what its nodes use: 1 or more")
    for name in ("hardware_price_per_hour", "grid_grams_per_kwh"):
        value = getattr(cost, name)
        if value is not None and value < 0:
            raise Fault(f"$.cost.{name}", f"{value:g} is below 0")


def _check_limits(limits: Limits) -> None:
    for name in limits.__struct_fields__:
        if getattr(limits, name) < 1:
            raise Fault(f"$.limits.{name}", "it must be at least 1")
