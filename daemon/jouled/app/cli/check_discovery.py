"""What `jouled check` says of how engines are found: by what processes, what may not be seen, and what to paste."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from msgspec.structs import replace

from jouled.api import EngineCollector
from jouled.app.config.types import EngineConfig
from jouled.app.runtime.engines.device_masks import MASKS, devices_by_mask
from jouled.app.runtime.engines.device_owners import stranger_note, strangers
from jouled.app.runtime.engines.discovery import DROP_IN, FoundEngine, find_engines, lines_of, not_named, place_of
from jouled.app.runtime.engines.engine_processes import ProcessRecord, read_processes
from jouled.app.runtime.engines.facts import shown
from jouled.model.device import Device


def look_for_engines(
    configured: Sequence[EngineConfig],
    collectors: Mapping[str, EngineCollector],
    processes: Mapping[str, Collection[int]],
    devices: Sequence[Device] = (),
) -> tuple[Sequence[EngineConfig], list[str]]:
    """The engines to look at, those configured or else those found, and notes on what runs here.

    processes: those that compute on each device, as far as drivers tell.
    """
    records = read_processes(collectors)
    found = find_engines(records, collectors)
    as_service = {place_of(each.url) for each in find_engines(map(_as_others_see, records), collectors).engines}
    named = {(engine.type, place_of(engine.url)): engine for engine in configured}
    notes: list[str] = []
    for each in found.found:
        name = named.get((each.config.type, place_of(each.config.url)))
        if configured and name is None:
            notes.append(not_named(each))
        notes += _on(each, name, devices, is_seen=name is not None or place_of(each.config.url) in as_service)
    if not configured:
        notes += found.notes
    notes += [stranger_note(stranger, collectors) for stranger in strangers(processes, found.servers)]
    return configured or found.engines, notes


def _on(found: FoundEngine, named: EngineConfig | None, devices: Sequence[Device], *, is_seen: bool) -> Iterator[str]:
    """What is special about where this engine runs. named: as the configuration has it already."""
    process, config = found.process, found.config
    masked = devices_by_mask(process.environ or {}, devices, in_container=process.container is not None)
    if process.container:
        yield f"{config.name} is process {process.pid} in {process.container}"
    host, _ = place_of(config.url)
    if not host.startswith("127."):
        yield (
            f"{config.name} is reached at {host}: the unit lets the service reach loopback only, so add "
            f"IPAddressAllow={host} by systemd/drop-ins/network.conf, or publish its port on this host"
        )
    if not is_seen:
        yield (
            f"{config.name}: another user cannot see on which port process {process.pid} serves, and so cannot the "
            f"service as shipped; install {DROP_IN}, or put into the configuration:\n{lines_of(config, masked)}"
        )
    elif process.environ is None:
        yield (
            f"{config.name}: this user may not see the environment of process {process.pid}, so what it says of "
            f"devices and settings is not known; look with `sudo jouled check`, and let the service see it by {DROP_IN}"
        )
    elif os.geteuid() == 0 and not MASKS.isdisjoint(process.environ) and not (named and named.devices):
        masks = ", ".join(f"{name}={shown(process.environ[name])}" for name in sorted(MASKS & process.environ.keys()))
        yield (
            f"{config.name} was started with {masks}, which the service as shipped may not see; where the driver does "
            f"not tell its devices, install {DROP_IN} or name them in the configuration"
            + (f":\n{lines_of(named or config, masked)}" if masked else ", as `devices` of its [[engines]]")
        )


def _as_others_see(record: ProcessRecord) -> ProcessRecord:
    """What a user without privileges sees of another one's process."""
    return replace(record, listening=None, environ=None)
